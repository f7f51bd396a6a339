"""Benchmarks of the suite's own code; `python -m tests.benchmarks.NAME`."""
