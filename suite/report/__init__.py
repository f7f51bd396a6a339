"""Tables and figures of a grid, rebuilt from its rows alone: `python -m suite.report --grid NAME`.

frames     rows as pandas frames, beside what the grid asks for
cells      statistics: runs become cells
words      how numbers and conditions are written
tables     CSV and Markdown
figures    Pareto figures; their look is in `style`
structure  a pruned network as a picture, from its plan
learning   what methods log while they learn, as curves
"""

from suite.report.build import Report, build, show

__all__ = ["Report", "build", "show"]
