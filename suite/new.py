"""`python -m suite.new`: file of a new method, from a template."""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path

from rich.console import Console

from suite import cli, methods, registry
from suite.files import write_text

TEMPLATES = {False: "_template.py", True: "_template_learning.py"}
"""If the method learns before it prunes -> template in the package of methods."""


def method(name: str, folder: Path, *, learns: bool) -> Path:
    """Write the file of a new method, and return its path.

    Raises ValueError if the name is taken or is no name of a module, or if the file exists.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise ValueError(f"{name!r} is no name of a method; take lower-case letters, digits and underscores")
    if name in methods.discover():
        raise ValueError(f"there is a method {name} already; take another name")
    path = folder / f"{name}.py"
    if path.exists():
        raise ValueError(f"{path} exists already; take another name, or remove the file")
    text = files(registry.HOMES["methods"]).joinpath(TEMPLATES[learns]).read_text(encoding="utf-8")
    about = text.index("\n\n`pruning-suite new"), text.index('"""\n', 3)
    text = text[: about[0]] + text[about[1] :]
    kind = "".join(word.capitalize() for word in name.split("_"))
    if keyword.iskeyword(kind) or re.search(rf"\b{kind}\b", text):
        raise ValueError(f"{name!r} would be the class {kind}, a name that the template uses; take another name")
    text = re.sub(r"\bTemplate\b", kind, text.replace("TEMPLATE: ", "TODO: "))
    write_text(path, text.replace("template's", f"{name}'s"))
    return path


def main() -> int:
    """Return the exit status: 0 written, 2 bad arguments."""
    parser = argparse.ArgumentParser(
        prog=cli.program("suite.new"),
        description="Write the file of a new method from a template. The file's presence registers the method.",
        epilog="Example: pruning-suite new method mine --plugins my_methods",
    )
    parser.add_argument("kind", choices=("method",), help="the kind of file")
    parser.add_argument("name", metavar="NAME", help="name of the method and of its file")
    parser.add_argument(
        "--plugins", type=Path, required=True, metavar="DIR", help="folder of the file, made if it is missing"
    )
    parser.add_argument("--learning", action="store_true", help="a method that trains before it prunes")
    arguments = parser.parse_args()
    folder: Path = arguments.plugins
    try:
        path = method(arguments.name, folder, learns=arguments.learning)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.new: {error}\n")
        return 2
    console = Console(soft_wrap=True)
    for line in (
        f"wrote {path}",
        f"describe it: pruning-suite methods {arguments.name} --plugins {folder}",
        f"in a grid:   cross(bases=..., method={arguments.name!r}, ...), launched with --plugins {folder}",
        f"from Python: suite.prune(model, images, method={arguments.name!r}), with {registry.VARIABLE}={folder}",
    ):
        console.print(line, markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
