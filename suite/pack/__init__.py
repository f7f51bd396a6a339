"""Packed networks: what a plan means, built small. `load(path)` gives that of a finished run as an ordinary module."""

from suite.pack.checkpoint import header, load, plan_of, save
from suite.pack.choice import Choice, load_choices, save_choices
from suite.pack.deploy import deploy
from suite.pack.layers import Execution
from suite.pack.network import PackedNetwork, load_full, masks, pack, unpack
from suite.pack.tune import tuned

__all__ = [
    "Choice",
    "Execution",
    "PackedNetwork",
    "deploy",
    "header",
    "load",
    "load_choices",
    "load_full",
    "masks",
    "pack",
    "plan_of",
    "save",
    "save_choices",
    "tuned",
    "unpack",
]
