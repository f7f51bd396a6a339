"""Tables as text: `documents` is all of them.

markdown      `table.md`
latex         tables for papers
notes         source and deviations of the methods, under each table
timings       speed-ups by device and batch, in tables and on the page
"""
