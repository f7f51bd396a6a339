"""Tables, figures and page of a grid: `python -m suite.report --grid NAME`.

They are rebuilt from its rows alone.

frames        rows as pandas frames, joined with the runs of the grid
cells         statistics: runs become cells
fairness      what the methods of a comparison share
inference     intervals, tests and the number of seeds that they need
pairs         which methods the runs tell apart
published     the numbers of others; `reproduction` puts them beside ours
timings       speed-ups by device and batch
notes         source and deviations of the methods, under each table
columns       how columns are described; `table_columns` of the table, `further_columns` of those below it
content       all of that for one grid
words         how numbers and conditions are written
tables        CSV and Markdown; `latex` for papers; `documents` is all of them
figures       all figures, a module for each kind
runs          what there is to know of each run on the page
page          the grid as a web page, from `templates/`
paper         the counterparts of the paper's results, by name; `claims` is the table of what it claims
"""

from suite.report.build import Report, build, show

__all__ = ["Report", "build", "show"]
