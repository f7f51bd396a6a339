"""Path of a grid's file, in the results folder of a grid given by path."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from suite import grids, jsonfile, lease
from suite.files import write_json

NAME = "grid.json"


class GridFile(TypedDict):
    """Content of `grid.json`.

    The grid's file is code, so a path from another host is not loaded."""

    file: str
    host: str


def write(grid: str, folder: Path) -> None:
    """Write the path of a grid that has no name; else delete an earlier path."""
    if grid.endswith(".py") and Path(grid).resolve().parent != Path(grids.__file__).parent:
        write_json(folder / NAME, GridFile(file=str(Path(grid).absolute()), host=lease.host()))
    else:
        (folder / NAME).unlink(missing_ok=True)


def read(folder: Path) -> str:
    """Return the path. Raises ValueError if there is none, or none on this host."""
    try:
        about = jsonfile.read(folder / NAME, GridFile)
    except (OSError, ValueError):
        raise ValueError(
            f"no grid has this name, and {folder} has no path of its file; `python -m suite.report --grid FILE` adds the path"
        ) from None
    if about["host"] != lease.host() or not Path(about["file"]).is_file():
        where = "does not exist" if about["host"] == lease.host() else f"is on {about['host']}"
        raise ValueError(
            f"its file {about['file']} {where}; `python -m suite.report --grid FILE` gives it another path"
        )
    return about["file"]
