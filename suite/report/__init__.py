"""Tables and figures of a grid, rebuilt from its rows alone: `python -m suite.report --grid NAME`.

frames        rows as pandas frames, beside what the grid asks for
cells         statistics: runs become cells
fairness      what the methods of a comparison share
inference     intervals, tests and the number of seeds that they need
pairs         which methods the runs tell apart
published     the numbers of others; `reproduction` puts them beside ours
words         how numbers and conditions are written
tables        CSV and Markdown; `latex` for papers; `documents` is all of them
figures       Pareto figures; their look is in `style`
structure     a pruned network as a picture, from its plan
learning      what methods log while they learn, as curves
paper         the counterparts of the paper's results, by name; `claims` is the table of what it claims
"""

from suite.report.build import Report, build, show

__all__ = ["Report", "build", "show"]
