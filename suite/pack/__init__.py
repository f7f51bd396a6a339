"""Packed networks: small networks of the channels that a plan keeps."""

from suite.pack.checkpoint import header, load, plan_of, save
from suite.pack.choice import Choice, load_choices, save_choices
from suite.pack.fold import per_group
from suite.pack.network import PackedNetwork, check_dense, load_full, masks, pack, unpack
from suite.pack.plain import plain
from suite.pack.portable import tuned_for
from suite.pack.tune import tuned

__all__ = [
    "Choice",
    "PackedNetwork",
    "check_dense",
    "header",
    "load",
    "load_choices",
    "load_full",
    "masks",
    "pack",
    "per_group",
    "plain",
    "plan_of",
    "save",
    "save_choices",
    "tuned",
    "tuned_for",
    "unpack",
]
