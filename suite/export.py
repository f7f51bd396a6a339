"""`python -m suite.export`: the command of `suite.pack.export`."""

from suite.pack.export import main

if __name__ == "__main__":
    raise SystemExit(main())
