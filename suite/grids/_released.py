"""The schedules that DSP's authors released for CIFAR-10, which the paper's grids give to all methods.

Batch 128, SGD with momentum 0.9; how often the cosine moves is not stated, here it moves every step. The cut grows by 0.1
points at each of the four re-plannings of the fine-tuning. The authors keep the epoch that is best on the test set; here the
last is kept, or (`*_BEST`) the best on the validation part.
"""

from __future__ import annotations

from dataclasses import replace

from suite.schedule import Schedule

BASE = Schedule(epochs=164, lr=0.1, weight_decay=1e-4, shape="warm_steps")
LEARN = Schedule(epochs=120, lr=0.05, weight_decay=1e-3)
FINETUNE = Schedule(epochs=400, lr=0.015, weight_decay=1e-3, cycles=5, replan_pp=0.1)

LEARN_BEST = replace(LEARN, keep="best_validation", keep_after=8)
FINETUNE_BEST = replace(FINETUNE, keep="best_validation")
