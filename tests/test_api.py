"""Pruning of networks of one's own from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.transforms import Normalize

import suite
from suite import api
from suite.contract import Learner, Step
from suite.schedule import Schedule

SHORT = Schedule(epochs=1, lr=0.01, weight_decay=1e-4)


class Own(nn.Module):
    """A network that no file of the suite has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn_1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.bn_0 = nn.Conv2d(8, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.branch, self.bn_2 = nn.Conv2d(32, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last, self.bn_3 = nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn_1(self.stem(x)))
        x = torch.relu(self.bn_2(self.branch(torch.relu(self.bn_0(self.inner(x))))) + x)
        x = torch.relu(self.bn_3(self.last(x)))
        return self.head(torch.flatten(self.pool(x), 1))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Own()


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(32) % 4), batch_size=8)


EXAMPLE = torch.zeros(1, 3, 8, 8)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches whose number is unknown."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([])


def test_a_method_without_training_prunes_in_one_line(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = suite.prune(model, EXAMPLE, method="l1_filter", budget=0.4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert result.report.macs_cut_pct >= 40
    assert result.report.macs < result.report.dense_macs == suite.count(model, EXAMPLE).macs
    assert result.report.params == sum(p.numel() for p in result.network.parameters())
    assert result.network(torch.randn(2, 3, 8, 8)).shape == (2, 4)
    assert "last: " in str(result.report)


def test_a_method_that_learns_takes_a_loader_and_gives_the_same_plan_again(model: nn.Module) -> None:
    results = [
        suite.prune(model, EXAMPLE, method="dsp", train=loader(), learning=SHORT, finetune=SHORT, groups=2)
        for _ in range(2)
    ]
    assert results[0].plan == results[1].plan
    assert results[0].report.macs_cut_pct >= 50
    weights = [torch.cat([p.flatten() for p in result.network.parameters()]) for result in results]
    assert torch.equal(*weights)


def test_a_training_loop_of_ones_own_is_called_with_the_hooks(model: nn.Module) -> None:
    calls: list[type[Learner]] = []

    def train(network: nn.Module, learner: Learner) -> None:
        calls.append(type(learner))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        for index, (images, labels) in enumerate(loader()):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images), labels)
            penalty = learner.penalty()
            (loss if penalty is None else loss + penalty).backward()
            step = Step(network, optimizer, images, labels, 0.01, index, 4)
            learner.before_step(step)
            optimizer.step()
            learner.after_step(step)
        learner.after_epoch(network)

    result = suite.prune(model, EXAMPLE, method="slimming", learning=train)
    assert len(calls) == 1
    assert result.report.macs_cut_pct >= 50


def test_ignored_layers_keep_their_filters_and_channels(model: nn.Module) -> None:
    for ignored in (["inner", "stem", "head"], [model.get_submodule("inner"), model.get_submodule("stem")]):
        result = suite.prune(model, EXAMPLE, method="l1_filter", budget=0.01, ignored_layers=ignored)
        assert result.report.layers["inner"] == (32, 32, 8, 8, 1)
        assert result.report.layers["branch"][0] == 8, "tied to the stem by the sum"
        assert result.report.layers["last"][0] < 16
    with pytest.raises(
        ValueError, match="there is no layer 'brunch' to ignore; choose from: stem, inner, branch, last"
    ):
        suite.prune(model, EXAMPLE, method="l1_filter", ignored_layers=["brunch"])


def test_one_ignored_layer_needs_no_list(model: nn.Module) -> None:
    for ignored in ("inner", model.get_submodule("inner")):
        result = suite.prune(model, EXAMPLE, method="l1_filter", budget=0.01, ignored_layers=ignored)
        assert result.report.layers["inner"][0] == 32


@pytest.mark.parametrize("method", ["dsp", "one_by_n", "l1_filter"])
def test_an_ignored_layer_keeps_its_shape_under_every_granularity(model: nn.Module, method: str) -> None:
    settings: dict[str, Any] = {"learning": SHORT} if method == "dsp" else {}
    result = suite.prune(model, EXAMPLE, method=method, budget=0.02, train=loader(), ignored_layers="inner", **settings)
    assert result.report.layers["inner"][:4] == (32, 32, 8, 8)
    assert result.report.macs_cut_pct >= 2


@pytest.mark.parametrize(
    ("method", "message"),
    [("dsp", "dsp learns before it prunes: give train=LOADER"), ("nothing", "unknown method 'nothing'")],
)
def test_missing_training_and_unknown_methods_are_refused(model: nn.Module, method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite.prune(model, EXAMPLE, method=method)


def test_finetuning_without_batches_is_refused_before_anything_is_learned(model: nn.Module) -> None:
    def learn(*_: object) -> None:
        raise AssertionError("finetune is checked first")

    with pytest.raises(ValueError, match="finetune needs train: batches of training images"):
        suite.prune(model, EXAMPLE, method="slimming", learning=learn, finetune=SHORT)


def test_a_criterion_that_reads_images_names_what_is_missing(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="hrank reads training images: give train=LOADER"):
        suite.prune(model, EXAMPLE, method="hrank")
    assert suite.prune(model, EXAMPLE, method="hrank", train=loader()).report.macs_cut_pct >= 50


def test_a_network_of_several_groups_has_the_macs_of_its_report(model: nn.Module) -> None:
    result = suite.prune(model, EXAMPLE, method="equal_gkp", budget=0.4)
    assert any(groups > 1 for *_, groups in result.report.layers.values())
    assert suite.count(result.network, EXAMPLE).macs == result.report.macs


def test_latency_is_compared_beside_the_dense_network(model: nn.Module) -> None:
    result = suite.prune(model, EXAMPLE, method="l1_filter")
    comparison = suite.compare(model.eval(), result.network, torch.randn(4, 3, 8, 8))
    ratio = comparison.columns()["speedup_x"]
    assert ratio > 0
    assert f"{ratio:.2f} [" in str(comparison)
    assert f"times as fast: {comparison.verdict}" in str(comparison)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The timing of each comparison, then both networks as they are read from their files."""
    made: list[Any] = []

    def compare(dense: Path, other: Path, timing: Any, **_: Any) -> None:
        made.extend([timing, *(torch.jit.load(str(path)) for path in (dense, other))])

    monkeypatch.setattr(api, "compare_files", compare)
    return made


def operations(network: torch.jit.ScriptModule) -> list[str]:
    """The operators of a traced network, without constants and reads of attributes."""
    kinds = [node.kind() for node in network.inlined_graph.nodes()]
    return [kind for kind in kinds if kind.startswith("aten::")]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*is deprecated", "ignore::UserWarning")
def test_a_packed_network_and_the_dense_one_fold_alike(model: nn.Module, compared: list[Any]) -> None:
    uncut = suite.prune(model, EXAMPLE, method="l1_filter", budget=0.0).network
    suite.compare(model, uncut, EXAMPLE)
    dense, packed = map(operations, compared[1:])
    assert dense == packed
    assert "aten::batch_norm" not in dense

    class Counting(Own):
        """A network that cannot be packed."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() < 1e9 else x

    compared.clear()
    suite.compare(Counting(), uncut, EXAMPLE)
    dense, packed = map(operations, compared[1:])
    assert dense.count("aten::batch_norm") == packed.count("aten::batch_norm") == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*is deprecated")
def test_latency_is_measured_in_type_and_layout_of_the_images(model: nn.Module, compared: list[Any]) -> None:
    images = torch.randn(2, 3, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    suite.compare(model, suite.prune(model, EXAMPLE, method="l1_filter").network, images)
    timing, *both = compared
    assert (timing.precision, timing.layout, timing.batch) == ("bf16", "channels_last", 2)
    assert {parameter.dtype for network in both for parameter in network.parameters()} == {torch.bfloat16}
    suite.compare(model, model, EXAMPLE)
    assert (compared[3].precision, compared[3].layout) == ("fp32", "contiguous")
    assert next(model.parameters()).dtype == torch.float32
    reason = "latency is measured on images of torch.float32, torch.float16, torch.bfloat16, got torch.float64: convert"
    with pytest.raises(ValueError, match=f"^{reason}"):
        suite.compare(model, model, EXAMPLE.double())


def test_importing_the_suite_is_light(tmp_path: Path) -> None:
    code = "import sys, suite; assert 'torch' not in sys.modules; suite.prune; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'prone'"):
        suite.prone  # noqa: B018


def test_a_packed_network_of_any_class_is_saved_loaded_and_exported(model: nn.Module, tmp_path: Path) -> None:
    result = suite.prune(model, EXAMPLE, method="dsp", train=loader(), learning=SHORT, groups=2)
    file = tmp_path / "own.safetensors"
    result.save(file, mean=[0.5] * 3, std=[0.25] * 3, labels=["a", "b", "c", "d"])
    images = torch.randn(2, 3, 8, 8)
    loaded = suite.load(file, model=Own())
    assert torch.equal(loaded(images), result.network(images))
    assert loaded.plan == result.plan
    with pytest.raises(ValueError, match=r"is a pruned Own: load it by suite\.load\(.*, model=Own\(\.\.\.\)\)"):
        suite.load(file)
    with pytest.raises(ValueError, match="does not fit Sequential"):
        suite.load(file, model=nn.Sequential(nn.Conv2d(3, 4, 3)))
    for to in ("pt2", "torchscript"):
        result.export(tmp_path / f"own.{to}", to=to)
    result.export(tmp_path / "own.onnx", mean=[0.5] * 3, std=[0.25] * 3, labels=["a", "b", "c", "d"])
    network = onnx.load(tmp_path / "own.onnx")
    metadata = {entry.key: json.loads(entry.value) for entry in network.metadata_props}
    assert metadata == {"mean": [0.5] * 3, "std": [0.25] * 3, "labels": ["a", "b", "c", "d"]}
    (images_in,), (logits,) = network.graph.input, network.graph.output
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in (images_in, logits)] == ["batch", "batch"]


class Normalised(Own):
    """A network that makes constants: its normalisation, and zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize, self.scale = Normalize([0.5] * 3, [0.2] * 3), torch.full((8, 1, 1), 0.5)
        self.bn_0 = self.bn_2 = self.bn_3 = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_1(self.stem(self.normalize(x) - torch.tensor([0.1, 0.2, 0.3], device=x.device).view(1, 3, 1, 1)))
        x = self.branch(self.inner(x * self.scale))
        zeros = torch.zeros(len(x), 2, *x.shape[2:], device=x.device)
        return self.head(self.last(torch.cat([zeros, x[:, 2:]], 1)).mean((2, 3)))


def test_constants_of_a_network_are_pruned_saved_loaded_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = suite.prune(Normalised(), EXAMPLE, method="l1_filter", budget=0.4)
    assert result.report.macs_cut_pct >= 40
    result.save(tmp_path / "own.safetensors")
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(suite.load(tmp_path / "own.safetensors", model=Normalised())(images), result.network(images))
    for to in ("onnx", "pt2", "torchscript"):
        result.export(tmp_path / f"own.{to}", to=to)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_and_masks_are_refused_before_the_copy(model: nn.Module) -> None:
    torch.nn.utils.prune.l1_unstructured(model.get_submodule("inner"), "weight", 0.5)
    with pytest.raises(ValueError, match=r"inner of Own has a mask of torch\.nn\.utils\.prune"):
        suite.prune(model, EXAMPLE, method="l1_filter")
    other = Own()
    torch.nn.utils.weight_norm(other.inner)
    with pytest.raises(ValueError, match="inner of Own has WeightNorm"):
        suite.prune(other, EXAMPLE, method="l1_filter")


def test_a_bad_network_or_seed_is_refused_in_one_line(model: nn.Module) -> None:
    wrong, no_network = torch.zeros(1, 5, 8, 8), 3
    for use, reason in (
        (lambda: suite.count(no_network, EXAMPLE), "the network is a torch.nn.Module, got int"),  # type: ignore[arg-type]
        (lambda: suite.compare(model, no_network, EXAMPLE), "the network is a torch.nn.Module, got int"),  # type: ignore[arg-type]
        (lambda: suite.count(model, wrong), r"Own takes no images of shape \[5, 8, 8\]"),
        (lambda: suite.compare(model, model, wrong), r"Own takes no images of shape \[5, 8, 8\]"),
        (lambda: suite.prune(model, EXAMPLE, method="l1_filter", seed="x"), "seed is a whole number, got 'x'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=reason) as raised:
            use()
        assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_quantized_network_is_refused_in_one_line(model: nn.Module) -> None:
    quantized: Any = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    fused: Any = nn.Sequential(torch.ao.nn.intrinsic.quantized.ConvReLU2d(3, 4, 3))
    for network, words in (
        (quantized, "head of Own is quantized .Linear."),
        (fused, "0 of Sequential .* .ConvReLU2d."),
    ):
        for use in (
            lambda network: suite.count(network, EXAMPLE),
            lambda network: suite.compare(model, network, EXAMPLE),
            lambda network: suite.prune(network, EXAMPLE, method="l1_filter"),
        ):
            with pytest.raises(ValueError, match=f"{words}.* before torch.ao.quantization.convert") as raised:
                use(network)
            assert "\n" not in str(raised.value)


def test_a_float_network_with_operators_of_quantization_is_counted() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.sum = nn.Conv2d(3, 3, 1), torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x: Tensor) -> Tensor:
            return self.sum.add(self.conv(x), x)

    assert suite.count(Summed(), EXAMPLE).macs == 9 * EXAMPLE[0, 0].numel()


def test_a_forward_method_without_a_message_is_named() -> None:
    class Absent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"Absent takes no images of shape \[3, .*\]: NotImplementedError"):
        suite.count(Absent(), EXAMPLE)


class Frozen(Own):
    """A network whose result has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Inferring(Own):
    """A network that computes in inference mode."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", [Frozen, Inferring])
def test_a_network_without_gradient_is_pruned_but_never_trained(kind: type[Own]) -> None:
    def fail() -> Any:
        raise AssertionError("the network is refused before a batch is read")
        yield

    class Unread(list[Any]):
        __iter__ = staticmethod(fail)

    assert suite.prune(kind(), EXAMPLE, method="l1_filter").report.macs_cut_pct >= 50
    for settings in ({"method": "slimming", "learning": SHORT}, {"method": "l1_filter", "finetune": SHORT}):
        with pytest.raises(ValueError, match=f"the result of {kind.__name__} has no gradient.*inference_mode"):
            suite.prune(kind(), EXAMPLE, train=Unread([0]), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [torch.zeros(3, 32, 32), [1, 2]])
def test_images_without_a_batch_are_refused(images: Any) -> None:
    for use in (
        lambda: suite.prune(nn.Identity(), images, method="l1_filter"),
        lambda: suite.count(nn.Identity(), images),
        lambda: suite.compare(nn.Identity(), nn.Identity(), images),
    ):
        with pytest.raises(ValueError, match=r"images are a tensor \[B, C, H, W\], got (shape \[3, 32, 32\]|list)"):
            use()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget": "0.5"}, r"budget '0.5' is outside \[0, 1\)"),
        ({"method": nn.Conv2d}, "a method is given by its name, got .*--plugins FOLDER"),
        ({"method": "mine"}, "unknown method 'mine'; choose from: .*; files of your own are found by --plugins FOLDER"),
        ({"model": len}, "the network is a torch.nn.Module, got builtin_function_or_method"),
        ({"train": []}, "train has no batches or no length .list.: give a list, or a DataLoader with a length"),
        (
            {"train": iter([])},
            "train has no batches or no length .list_iterator.: give a list, or a DataLoader with a length",
        ),
        (
            {"train": DataLoader(Stream())},
            "train has no batches or no length .DataLoader.: give a list, or a DataLoader with a length",
        ),
        ({"train": [EXAMPLE]}, "a batch of train is .images, labels., got Tensor"),
        (
            {"train": [(torch.zeros(4, 8, 8, 3), torch.zeros(4).long())]},
            r"images of train are \[B, 3, H, W\] of torch.float32, .*, got \[4, 8, 8, 3\] of torch.float32",
        ),
        ({"train": [(torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long())]}, r"got \[4, 3, 8, 8\] of torch.uint8"),
        (
            {"train": [(torch.zeros(4, 3, 8, 8), torch.eye(4))]},
            r"labels of train are class numbers, int64 \[B\], got torch.float32 \[4, 4\]: give labels.argmax\(1\)",
        ),
        (
            {"train": [(torch.zeros(4, 3, 8, 8), torch.zeros(4).int())]},
            r"got torch.int32 \[4\]: .*, labels.long\(\) for",
        ),
        ({"train": [([1.0], torch.zeros(1).long())]}, "images and labels of train are tensors, got list and Tensor"),
        ({"ignored_layers": ["stem", "inner", "branch", "last"], "method": "l1_filter"}, "take a smaller budget"),
        ({"ignored_layers": "stem", "method": "fpgm"}, "fpgm chooses its filters while it learns"),
        ({"learning": Schedule(epochs=2, cycles=2, lr=0.1, weight_decay=0.0, batch=8)}, "take cycles=1"),
    ],
)
def test_bad_input_is_refused_in_one_line(model: nn.Module, changes: dict[str, Any], reason: str) -> None:
    arguments = {"model": model, "method": "dsp", "learning": SHORT, "example": EXAMPLE, "train": loader(), **changes}
    with pytest.raises(ValueError, match=reason) as raised:
        suite.prune(arguments.pop("model"), arguments.pop("example"), **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [{"method": "dsp", "learning": SHORT}, {"method": "l1_filter", "finetune": SHORT}, {"method": "taylor_once"}],
)
def test_a_label_that_is_no_class_is_named_if_it_is_read(model: nn.Module, changes: dict[str, Any]) -> None:
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4 + first) for first in (0, 1)]
    reason = "a label of train is 4, but there are 4 classes, 0 to 3: number the labels from 0, or raise the number of classes"
    with pytest.raises(ValueError, match=f"^{reason}$"):
        suite.prune(model, EXAMPLE, train=batches, **changes)
    assert suite.prune(model, EXAMPLE, train=batches, method="hrank").report.macs_cut_pct >= 50


def test_a_weight_that_is_not_finite_is_named(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("inner.weight")[0] = float("nan")
    with pytest.raises(ValueError, match=r"inner\.weight of Own has values that are not finite"):
        suite.prune(model, EXAMPLE, method="l1_filter")


def test_an_unknown_format_of_an_export_is_refused_with_the_known_ones(model: nn.Module, tmp_path: Path) -> None:
    result = suite.prune(model, EXAMPLE, method="l1_filter")
    with pytest.raises(ValueError, match="the format 'tflite' is unknown; choose from: onnx, pt2, torchscript"):
        result.export(tmp_path / "x", to="tflite")
