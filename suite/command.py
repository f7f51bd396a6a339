"""Command `pruning-suite VERB ...`: the same as `python -m suite.VERB ...`."""

from __future__ import annotations

import argparse
import importlib
import sys

VERBS = {
    "launch": "run a grid, show its state, or cancel it",
    "run": "run one stage of a grid",
    "report": "write tables, figures and page from rows",
    "methods": "list the pruning methods, or describe one",
    "measure": "measure a network of any tool beside its dense one",
    "export": "write a packed network as ONNX, exported program or TorchScript",
    "prefetch": "download and check the data and weights of a grid",
    "records": "merge results folders",
    "new": "write the file of a new method from a template",
    "study": "continue a study that is computed block by block, for days",
    "zoo": "list the networks of the record, add to them, check one",
}


def main() -> int:
    """Call the command line of the verb, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="pruning-suite",
        description="Benchmark of structured pruning. `pruning-suite VERB --help` describes a verb.",
        epilog="\n".join(f"{verb:10} {text}" for verb, text in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help=", ".join(VERBS))
    verb = parser.parse_args(sys.argv[1:2]).verb
    sys.argv = [f"pruning-suite {verb}", *sys.argv[2:]]
    module = importlib.import_module(f"suite.{verb}")
    if not hasattr(module, "main"):  # a package
        module = importlib.import_module(f"suite.{verb}.__main__")
    return int(module.main())


if __name__ == "__main__":
    raise SystemExit(main())
