"""The zoo: names, restoring by checksum, and the check of a member."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from suite import grids, jsonfile, pack, records, zoo
from suite.contract import Budget
from suite.report.figures import learning
from suite.run import Context, execute
from suite.run.folder import is_done
from suite.schedule import Schedule
from suite.stages import Base, Pruned, in_order

SHORT = Schedule(epochs=1, lr=0.05, weight_decay=5e-4, epoch_images=64, batch=32)


@pytest.fixture(scope="module")
def run() -> Pruned:
    base = Base(data="digits", model="resnet8", schedule=SHORT, seed=0)
    return grids.cross(
        bases=[base], method="dsp", budgets=[Budget(share=0.5)], finetune=SHORT, learning=SHORT, groups=3
    )[0]


@pytest.fixture(scope="module")
def filled(run: Pruned, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Context]:
    """The zoo of one run with all that it needs, and the results that it was made from."""
    folder = tmp_path_factory.mktemp("zoo")
    context = Context(results=folder / "results", threads=1)
    for stage in in_order([run]):
        assert execute(stage, context) == "done"
    new = zoo.add(in_order([run]), context, folder / "networks")
    assert new == ["resnet8/base", "resnet8/dsp_g3_learned", "resnet8/dsp_g3_50"]
    assert zoo.add(in_order([run]), context, folder / "networks") == []
    return folder / "networks", context


def test_members_load_as_the_networks_of_their_stages(filled: tuple[Path, Context], run: Pruned) -> None:
    folder, context = filled
    packed = zoo.load("resnet8/dsp_g3_50", folder)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(packed(images), pack.load(context.folder(run) / "packed.safetensors").eval()(images))
    assert zoo.load("resnet8/base", folder)(images).shape == zoo.load("resnet8/dsp_g3_learned", folder)(images).shape
    with pytest.raises(ValueError, match=r"has no 'resnet8/dsp_g9'; it has resnet8/dsp_g3"):
        zoo.load("resnet8/dsp_g9", folder)
    assert (folder / run.key / "structure.png").is_file()
    assert "| `resnet8/dsp_g3_50` |" in (folder / "README.md").read_text()


def test_logs_of_members_are_drawn_as_those_of_a_work_folder(filled: tuple[Path, Context], run: Pruned) -> None:
    folder, context = filled
    assert run.learned is not None
    drawn = learning.of_stage(run.learned.key, folder.parent)
    pd.testing.assert_frame_equal(drawn, learning.of_stage(run.learned.key, context.results))
    assert len(drawn) == 1


def test_a_launch_starts_from_members(filled: tuple[Path, Context], run: Pruned, tmp_path: Path) -> None:
    folder, _ = filled
    fresh = Context(results=tmp_path)
    stages = in_order([run])
    assert zoo.available(stages, fresh, folder) == stages
    busy = Context(results=tmp_path / "busy")
    busy.folder(run).mkdir(parents=True)
    (busy.folder(run) / ".lease").write_text("{}")
    assert zoo.available(stages, busy, folder) == stages[:-1]
    assert zoo.restore(stages, fresh, folder) == 3
    assert all(is_done(stage, fresh) for stage in stages)
    assert zoo.restore(stages, fresh, folder) == 0


def test_damaged_and_foreign_members_are_left_out(
    filled: tuple[Path, Context], run: Pruned, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, context = filled
    copy = tmp_path / "networks"
    zoo.add(in_order([run]), context, copy)
    weights = copy / run.base.key / "final.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    learned = copy / str(run.learned and run.learned.key) / "done.json"
    done = json.loads(learned.read_text())
    done["code"]["own"]["dsp/method.py"] = "0" * 16
    learned.write_text(json.dumps(done))
    fresh = Context(results=tmp_path / "results")
    assert zoo.restore(in_order([run]), fresh, copy) == 1
    assert not is_done(run.base, fresh)
    assert "is damaged" in caplog.text
    assert "other code of dsp/method.py" in caplog.text


def test_what_was_made_from_other_bytes_than_a_members_is_left_out(
    filled: tuple[Path, Context], run: Pruned, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, context = filled
    assert zoo.add([run.base], context, tmp_path) == ["resnet8/base"]
    about = tmp_path / run.base.key / "done.json"
    done = json.loads(about.read_text())
    done["files"]["final.safetensors"]["sha256"] = "0" * 64
    about.write_text(json.dumps(done))
    assert zoo.add(in_order([run]), context, tmp_path) == []
    assert caplog.text.count("the zoo has another one") == 3


def test_large_files_stay_out(
    filled: tuple[Path, Context], run: Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(zoo, "FILE_MB", 0.001)
        assert zoo.add(in_order([run]), filled[1], tmp_path) == []
    (filled[1].folder(run) / "train.pt.damaged").write_bytes(bytes(2_000_000))
    assert len(zoo.add(in_order([run]), filled[1], tmp_path)) == len(in_order([run])), (
        "what is not copied is not judged"
    )


def test_a_member_is_made_again_with_the_same_bits(filled: tuple[Path, Context], run: Pruned, tmp_path: Path) -> None:
    folder, context = filled
    equal, text = zoo.check([run], context, folder, seed=0)
    assert equal, text
    assert "equal in every bit" in text
    zoo.add(in_order([run]), context, tmp_path)
    done = jsonfile.loads((tmp_path / run.key / "done.json").read_bytes())
    done["row"]["weights_sha256"] = "0" * 64
    (tmp_path / run.key / "done.json").write_text(json.dumps(done))
    equal, text = zoo.check([run], context, tmp_path, seed=0)
    assert not equal
    done["row"]["provenance"]["device"] = "another"
    (tmp_path / run.key / "done.json").write_text(json.dumps(done))
    with pytest.raises(ValueError, match="nothing can be compared"):
        zoo.check([run], context, tmp_path)
    with pytest.raises(ValueError, match="no run of the grid is in the zoo"):
        zoo.check([dataclasses.replace(run, seed=7)], context, folder)


def test_accuracies_of_another_device_are_compared_by_interval() -> None:
    assert zoo._within(90.1, [90.0, 90.2, 90.4], "a")[0]
    assert not zoo._within(80.0, [90.0, 90.2, 90.4], "a")[0]


def test_a_row_names_the_device_that_learned_if_it_is_another(
    filled: tuple[Path, Context], run: Pruned, tmp_path: Path
) -> None:
    zoo.add(in_order([run]), filled[1], tmp_path / "networks")
    learned = tmp_path / "networks" / str(run.learned and run.learned.key) / "done.json"
    done = json.loads(learned.read_text())
    done["result"]["provenance"] |= {"device": "another", "emulated": []}
    learned.write_text(json.dumps(done))
    fresh = Context(results=tmp_path, threads=1)
    assert zoo.restore(run.needs, fresh, tmp_path / "networks") == 2
    assert execute(run, fresh) == "done"
    row = records.read_all(tmp_path, [run.key])[0]
    assert row.provenance["learned_device"] == "another"
    own = records.read_all(filled[1].results, [run.key])[0]
    assert "learned_device" not in own.provenance
