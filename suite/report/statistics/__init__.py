"""Statistics of the runs of a grid, as frames.

cells         runs become cells: mean, spread, n
fairness      what the methods of a comparison share
inference     intervals, tests and the number of seeds that they need
pairs         which methods the runs tell apart; `leader` is the best of a comparison set
published     the numbers of others; `reproduction` puts them beside ours
claims        claims under test, with evidence so far and verdict
not_faster    networks with fewer MACs that are not faster
steps         training steps per second
"""
