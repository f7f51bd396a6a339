"""Tables, figures and the page of a grid, rebuilt from its rows alone: `python -m suite.report --grid NAME`.

frames     rows as pandas frames, beside what the grid asks for
cells      statistics: runs become cells
words      how numbers and conditions are written
tables     CSV and Markdown
figures    which figures there are; their look is in `style`
pareto     accuracy over what was saved, beside what others published
speed      measured speed-up over the theoretical one
comparison methods against each other: intervals and ranks
ablation   accuracy over the value of one setting
structure  a pruned network as a picture, from its plan
learning   what methods log while they learn and networks while they are fine-tuned, as curves
runs       what there is to know of each run
page       the grid as a web page, from `templates/`
"""

from suite.report.build import Report, build, show

__all__ = ["Report", "build", "show"]
