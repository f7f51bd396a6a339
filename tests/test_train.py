"""The training loop: stopped anywhere and continued, it ends with the same bits."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from suite import data, methods, models
from suite.contract import Learner, Step, Task
from suite.graph import Graph
from suite.progress import Interrupted, Watch
from suite.schedule import Schedule
from suite.train import fit, load_checkpoint, save_checkpoint, seed_everything, top1_pct
from suite.trainer import Diverged, Trainer

DIGITS = data.load("digits")
SCHEDULE = Schedule(epochs=2, lr=0.05, weight_decay=5e-4, batch=64, epoch_images=192)
STEPS = 3
"""Of an epoch."""


class StopAfter(Watch):
    """Says stop from the n-th step of this attempt on."""

    def __init__(self, steps: float = math.inf) -> None:
        super().__init__()
        self.left = steps

    def report(self, doing: str, **numbers: Any) -> None:
        self.left -= 1

    @property
    def must_stop(self) -> bool:
        return self.left <= 0


class AllGenerators(Learner):
    """Draws from every generator that a method may use, and remembers what it drew."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def penalty(self) -> Tensor:
        self.drawn += [
            random.random(),
            float(np.random.rand()),
            float(np.random.standard_normal()),
            float(torch.rand(())),
        ]
        return torch.tensor(self.drawn[-4:]).sum()

    def before_step(self, step: Step) -> None:
        for parameter in step.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(1 + 0.1 * self.drawn[-1] + 0.1 * self.drawn[-3])

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": list(self.drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = list(state["drawn"])


def method_learner(name: str) -> Callable[[nn.Module], Learner]:
    def make(model: nn.Module) -> Learner:
        settings = methods.get(name).for_task("digits", "vgg6")
        batches = DIGITS.train("all", batch=64, seed=9, device="cpu", limit=256)
        task = Task(train_epoch=batches.epoch, samples=lambda n: DIGITS.samples(n, split="all", device="cpu"), seed=0)
        learner = settings.learner(model, Graph(model, DIGITS.input_shape), task)
        assert learner is not None
        return learner

    return make


LEARNERS: dict[str, Callable[[nn.Module], Learner]] = {
    "plain": lambda model: Learner(),
    "slimming": method_learner("slimming"),
    "dsp": method_learner("dsp"),
    "all generators": lambda model: AllGenerators(),
}


def trainer(learner: str = "plain", schedule: Schedule = SCHEDULE, *, seed: int = 0, judged: bool = False) -> Trainer:
    """Make a trainer from the seed, for a process that starts anew."""
    seed_everything(seed)
    model = models.build("vgg6", DIGITS.classes)
    batches = DIGITS.train("all", batch=schedule.batch, seed=seed, device="cpu", limit=schedule.epoch_images)
    judge = (lambda: top1_pct(model, DIGITS.validation(250, "cpu"))) if judged else None
    return Trainer(model, batches, schedule, learner=LEARNERS[learner](model), judge=judge)


def run(trained: Trainer, folder: Path, watch: Watch | None = None) -> Trainer:
    fit(trained, folder / "train.pt", watch or StopAfter(), seed=0, doing="training")
    return trained


def same(one: Trainer, other: Trainer) -> bool:
    """All that the two leave is equal, bit for bit."""

    def flat(value: Any) -> Any:
        if isinstance(value, dict):
            return [(key, flat(v)) for key, v in value.items()]
        if isinstance(value, list | tuple):
            return [flat(v) for v in value]
        return value.numpy().tobytes() if isinstance(value, Tensor) else value

    states = [{k: v for k, v in t.state_dict().items() if k != "seconds"} for t in (one, other)]
    return flat(states[0]) == flat(states[1])


@pytest.mark.parametrize("learner", LEARNERS)
def test_stopped_after_every_step_it_ends_with_the_same_bits(tmp_path: Path, learner: str) -> None:
    whole = run(trainer(learner), tmp_path / "whole")
    stops = 0
    while True:
        # What another process left in the generators must not matter.
        resumed = trainer(learner)
        seed_everything(1000 + stops)
        try:
            run(resumed, tmp_path / "stopped", StopAfter(1))
            break
        except Interrupted:
            stops += 1
    assert stops == 2 * STEPS - 1
    assert same(whole, resumed)


@pytest.mark.parametrize(
    ("steps", "said"), [(STEPS - 1, "in epoch 1"), (STEPS, "after epoch 1"), (STEPS + 1, "in epoch 2")]
)
def test_stopped_once_it_ends_with_the_same_bits(tmp_path: Path, steps: int, said: str) -> None:
    whole = run(trainer("dsp"), tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"stopped {said} of 2"):
        run(trainer("dsp"), tmp_path / "stopped", StopAfter(steps))
    assert same(whole, run(trainer("dsp"), tmp_path / "stopped"))


@pytest.mark.parametrize("by_signal", [True, False])
def test_a_signal_to_another_task_is_one_to_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_signal: bool
) -> None:
    """Its time limit is no signal: a job that is over time is not put back into the queue."""
    other = Watch(max_minutes=0)
    if by_signal:
        other.signalled.set()
    says = itertools.cycle([other.must_stop, by_signal])
    monkeypatch.setattr("suite.distributed.any_task", lambda value: value or next(says))
    watch = Watch()
    with pytest.raises(Interrupted):
        run(trainer(), tmp_path, watch)
    assert watch.signalled.is_set() is by_signal


def test_told_to_stop_at_the_very_end_it_is_done(tmp_path: Path) -> None:
    assert len(run(trainer(), tmp_path, StopAfter(2 * STEPS)).history) == 2


def test_a_checkpoint_of_an_epochs_end_is_enough(tmp_path: Path) -> None:
    """A kill leaves no mid-epoch checkpoint: the epoch is done again."""
    whole = run(trainer("dsp"), tmp_path / "whole")

    class Killed(StopAfter):
        def report(self, doing: str, **numbers: Any) -> None:
            super().report(doing)
            if self.must_stop:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(trainer("dsp"), tmp_path / "killed", Killed(STEPS + 2))
    state = load_checkpoint(tmp_path / "killed" / "train.pt")
    assert state is not None
    assert state["step"] == STEPS
    assert same(whole, run(trainer("dsp"), tmp_path / "killed"))


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    whole = run(trainer("dsp"), tmp_path)
    watch = StopAfter()
    again = run(trainer("dsp"), tmp_path, watch)
    assert watch.left == math.inf
    assert same(whole, again)


def test_same_seed_same_bits_other_seed_other_bits(tmp_path: Path) -> None:
    one, two, other = (run(trainer(seed=seed), tmp_path / str(i)) for i, seed in enumerate((0, 0, 1)))
    assert same(one, two)
    assert not same(one, other)


def test_history_has_one_entry_an_epoch(tmp_path: Path) -> None:
    schedule = Schedule(epochs=3, lr=0.05, weight_decay=5e-4, batch=64, epoch_images=256)
    history = run(trainer("slimming", schedule), tmp_path).history
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    for entry in history:
        assert 0 <= entry["train_top1_pct"] <= 100
        assert math.isfinite(entry["loss"])
        assert "penalty" in entry, "the learner's metrics"
    assert history[2]["loss"] < history[0]["loss"]
    assert history[0]["lr"] == pytest.approx(schedule.lr_at(3, 4))


def test_no_epochs_change_nothing(tmp_path: Path) -> None:
    still = trainer(schedule=Schedule(epochs=0, lr=0.1, weight_decay=0.0))
    before = {name: tensor.clone() for name, tensor in still.model.state_dict().items()}
    assert run(still, tmp_path).history == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in still.model.state_dict().items())


def test_a_loss_that_is_not_finite_is_diverged(tmp_path: Path) -> None:
    wild = Schedule(epochs=2, lr=1e30, weight_decay=0.0, batch=64, epoch_images=256)
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) in epoch 1"):
        run(trainer(schedule=wild), tmp_path)
    assert not (tmp_path / "train.pt").exists(), "a checkpoint after that would be worth nothing"


def test_the_best_epoch_is_kept_and_survives_a_stop(tmp_path: Path) -> None:
    schedule = Schedule(epochs=4, lr=0.2, weight_decay=0.0, batch=64, epoch_images=256, shape="steps", keep="best_test")
    whole = run(trainer("dsp", schedule, judged=True), tmp_path / "whole")
    judged = [entry["held_out_top1_pct"] for entry in whole.history]
    assert whole.best["top1_pct"] == max(judged)
    assert top1_pct(whole.model, DIGITS.validation(250, "cpu")) == max(judged)
    while True:
        try:
            resumed = run(trainer("dsp", schedule, judged=True), tmp_path / "stopped", StopAfter(3))
            break
        except Interrupted:
            pass
    assert same(whole, resumed)


def test_the_epoch_that_is_kept_follows_the_judge(tmp_path: Path) -> None:
    accuracies = iter([90.0, 10.0, 50.0, 30.0])
    schedule = Schedule(epochs=4, lr=0.05, weight_decay=0.0, batch=64, epoch_images=256, keep="best_test", keep_after=1)
    judged = trainer(schedule=schedule)
    seen: list[Tensor] = []

    def judge() -> float:
        seen.append(next(judged.model.parameters()).detach().clone())
        return next(accuracies)

    judged.judge = judge
    run(judged, tmp_path)
    assert torch.equal(next(judged.model.parameters()), seen[2]), "the third: the first is not looked at"


@pytest.mark.parametrize("damage", ["empty", "half", "text", "flipped"])
def test_a_damaged_checkpoint_is_set_aside_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    whole = run(trainer(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(trainer(), tmp_path, StopAfter(STEPS + 1))
    path = tmp_path / "train.pt"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    path.write_bytes(
        {"empty": b"", "half": content[: len(content) // 2], "text": b"hello", "flipped": bytes(flipped)}[damage]
    )
    with caplog.at_level(logging.WARNING):
        again = run(trainer(), tmp_path)
    assert (tmp_path / "train.pt.damaged").exists()
    assert "train.pt cannot be read" in caplog.text
    assert "set aside as train.pt.damaged" in caplog.text
    assert same(whole, again)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("io.open", OSError(errno.EIO, "Input/output error")),
        ("io.open", PermissionError(errno.EACCES, "Permission denied")),
        ("torch.load", MemoryError()),
    ],
)
def test_a_checkpoint_that_the_machine_cannot_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    """Set aside, a good checkpoint would cost hours of training."""
    path = tmp_path / "train.pt"
    save_checkpoint(path, {"step": 3})

    def broken(*arguments: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, broken)
        with pytest.raises(type(error)) as raised:
            load_checkpoint(path)
    assert getattr(raised.value, "filename", str(path)) == str(path), "so that the failure counts as one of the storage"
    assert load_checkpoint(path) == {"step": 3}


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    """Files are read with `weights_only`, whatever a generator's state is made of."""
    run(trainer("all generators"), tmp_path)
    assert load_checkpoint(tmp_path / "train.pt") is not None
    assert not (tmp_path / "train.pt.damaged").exists()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "train.pt") is None
    save_checkpoint(tmp_path / "train.pt", {"step": 3})
    assert load_checkpoint(tmp_path / "train.pt") == {"step": 3}


def test_names_of_skipped_images_survive_a_stop(tmp_path: Path) -> None:
    skipped = {"b/2.png"}, {"a/1.png"}
    for names in skipped:
        fit(trainer(), tmp_path / "train.pt", StopAfter(), seed=0, doing="training", skipped=names)
    assert skipped[1] == {"a/1.png", "b/2.png"}


def test_equal_states_give_equal_files(tmp_path: Path) -> None:
    """Also when one holds one text twice and the other two equal texts, as after a load."""
    name, again = "features.5", "".join(["features", ".5"])
    assert name is not again
    for file, second in (("one", name), ("two", again)):
        save_checkpoint(tmp_path / file, {"logits": {name: 1.0}, "groups": [{second: 2}, (second,)]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


class Echo(nn.Module):
    """The logits of an image are its pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_top1_is_of_the_images_not_of_the_batches() -> None:
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    batches = [
        (torch.stack([right, right, wrong]), torch.zeros(3, dtype=torch.int64)),
        (wrong[None], torch.zeros(1, dtype=torch.int64)),
    ]
    assert top1_pct(Echo(), batches) == 50.0
    assert top1_pct(Echo(), batches[:1]) == pytest.approx(200 / 3)


def test_top1_leaves_mode_and_statistics_as_they_were() -> None:
    model = trainer().model
    for training in (True, False):
        model.train(training)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        top1_pct(model, DIGITS.test(250, "cpu"))
        assert model.training is training
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
