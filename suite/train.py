"""The one training loop: base networks, sparse learning and fine-tuning all go through `fit`.

A killed `fit` goes on from its last checkpoint and ends with the same bits on a CPU with the same number of threads: the
batches follow from (seed, epoch), and the checkpoint holds weights, momentum, step, random states, loss scale, averaged weights,
the learner's state and the names of skipped images.
"""

from __future__ import annotations

import io
import logging
import random
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from suite import distributed
from suite.contract import Batch
from suite.files import is_of_machine, write_bytes
from suite.loggers import Loggers
from suite.progress import Interrupted, Watch
from suite.trainer import Diverged, History, Trainer

log = logging.getLogger(__name__)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@torch.inference_mode()
def top1_pct(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the top-1 accuracy in percent, over the images of all tasks.

    The mode of the model stays as it was. Raises Diverged if a logit is not finite.
    """
    training = model.training
    model.eval()
    correct = seen = broken = 0
    for images, labels in batches:
        logits = model(images)
        correct += int((logits.argmax(1) == labels).sum())
        broken += int((~logits.isfinite()).any(1).sum())
        seen += len(labels)
    model.train(training)
    correct, seen, broken = distributed.all_sum(torch.tensor([correct, seen, broken])).tolist()
    if broken:
        raise Diverged(f"logits of {broken} of {seen} images are not finite, so there is no accuracy")
    return 100 * correct / seen


def fit(
    trainer: Trainer, checkpoint: Path, watch: Watch, *, seed: int, doing: str, skipped: set[str] | None = None
) -> History:
    """Train to the end, from `checkpoint` if it exists; return one entry an epoch.

    skipped  names of images that were left out (`Dataset.skipped`); kept in the checkpoint, as a later process may not meet them

    The checkpoint is written at the end of every epoch, and if `watch.must_stop` is set. Raises Interrupted after the latter,
    Diverged if the loss is not finite. A damaged checkpoint is set aside and the training starts anew.
    """
    seed_everything(seed)
    skipped = set() if skipped is None else skipped
    with distributed.rank_0_first():
        state = load_checkpoint(checkpoint)
    if state is not None:
        trainer.load_state_dict(state)
        skipped.update(state.get("skipped", ()))
    trainer.model.train()
    steps, total = trainer.steps_per_epoch, trainer.total
    began = time.monotonic() - trainer.seconds
    loggers = Loggers(checkpoint.parent, active=distributed.is_first())

    def save() -> None:
        trainer.seconds = time.monotonic() - began
        state = {**trainer.state_dict(), "skipped": sorted(distributed.union(skipped))}
        watch.check_holder()  # on the first task alone, so after what all do together
        save_checkpoint(checkpoint, state)

    while trainer.step < total:
        epoch = trainer.step // steps
        for images, labels in trainer.batches.epoch(trainer.first_epoch + epoch, start=trainer.step % steps):
            trainer.advance(images, labels)
            last = trainer.history[-1] if trainer.history else {}
            watch.report(
                doing,
                epoch=epoch + 1,
                epochs=total // steps,
                share=trainer.step / total,
                train_top1_pct=last.get("train_top1_pct"),
            )
            if _must_stop(watch) and trainer.step % steps:
                save()
                raise Interrupted(f"stopped in epoch {epoch + 1} of {total // steps}")
        trainer.end_epoch()
        loggers.epoch(epoch + 1, trainer.history[-1])
        save()
        if _must_stop(watch) and trainer.step < total:
            raise Interrupted(f"stopped after epoch {epoch + 1} of {total // steps}")
    loggers.close()
    trainer.finish()
    return trainer.history


def _must_stop(watch: Watch) -> bool:
    """Return True if any task must stop. A signal to one is passed to all."""
    if not distributed.any_task(watch.must_stop):
        return False
    if distributed.any_task(watch.signalled.is_set()):
        watch.signalled.set()
    return True


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, atomically. A no-op on all ranks but 0.

    Equal states of plain dicts, lists and tuples give equal bytes, also when parts of one come from a checkpoint. The bytes are
    made in memory first: on a full disk torch's own error lacks the reason.
    """
    if distributed.is_first():
        buffer = io.BytesIO()
        torch.save(_with_shared_texts(state), buffer)
        write_bytes(path, buffer.getbuffer())


def _with_shared_texts(state: Any) -> Any:
    """Return `state` with equal texts as one object.

    A pickle holds an object that occurs again as a reference to the first.
    """
    if type(state) is str:
        return sys.intern(state)
    if type(state) is dict:
        return {_with_shared_texts(key): _with_shared_texts(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(map(_with_shared_texts, state))
    return state


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state that `save_checkpoint` wrote, or None if there is none.

    A damaged file is renamed to NAME.damaged and named in the log. Raises OSError naming a file that the storage does not give.
    """
    try:
        content = path.read_bytes()  # apart from the parsing: zipfile reports an I/O error as a damaged file
    except FileNotFoundError:
        return None
    except OSError as error:
        error.filename = str(path)  # an error while reading has no file name
        raise
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if part := archive.testzip():  # torch itself does not look at the checksums
                raise ValueError(f"{part} in it is damaged")
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises many kinds of errors on a damaged file
        if is_of_machine(error):
            raise
        aside = path.with_suffix(path.suffix + ".damaged")
        path.replace(aside)
        log.warning("%s cannot be read (%s); set aside as %s, training starts anew", path, error, aside.name)
        return None
