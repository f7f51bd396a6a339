"""Tables, figures and page of a grid: `python -m suite.report --grid NAME`.

They are rebuilt from its rows alone, in this order:

frames        rows as pandas frames, joined with the runs of the grid
columns       the columns of all tables, each described once; `words` writes their numbers and conditions
statistics    cells, fairness, intervals and tests, numbers of others, claims
content       all tables of one grid, as frames
tables        the tables as CSV, Markdown and LaTeX
figures       all figures, a module for each kind
page          the grid as a web page
build         all of that in one folder

`paper`, `leaderboard`, `winners` and `staircase` are reports of their own.
"""

from suite.report.build import Report, build, show

__all__ = ["Report", "build", "show"]
