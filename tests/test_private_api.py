"""Private functions of libraries: each is there in the installed version, and the way on without it gives the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_pack import images
from test_pack_executions import packed_of
from torch import nn
from torch.nn import functional

from suite import private_api
from suite.measure.memory import peak_bytes
from suite.pack import tuned


def test_submitits_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    present = private_api.sbatch_parameters()
    assert {"time", "gpus_per_node", "signal_delay_s", "additional_parameters"} <= present
    monkeypatch.delattr("submitit.slurm.slurm._make_sbatch_string")
    assert private_api.sbatch_parameters() == present


@pytest.fixture
def without_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An operator with another name, as in another version of torch."""
    monkeypatch.setattr(private_api, "onednn_weight", lambda *_: torch.ops.mkldnn._renamed)
    private_api.has_onednn.cache_clear()
    yield
    monkeypatch.undo()
    private_api.has_onednn.cache_clear()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_onednn_computes_the_convolution(relu: bool, groups: int) -> None:
    assert private_api.has_onednn()
    x, weight, bias = torch.randn(2, 4, 7, 6), torch.randn(6, 4 // groups, 3, 3), torch.randn(6)
    window = ([1, 1], [2, 2], [1, 1], groups)
    blocked = private_api.onednn_weight(weight, window, [*x.shape])
    expected = functional.conv2d(x, weight, bias, [2, 2], [1, 1], [1, 1], groups)
    addend = torch.randn_like(expected)
    activated = (lambda y: y.relu()) if relu else (lambda y: y)
    output = private_api.onednn_convolution(x, blocked, bias, window, relu=relu)
    torch.testing.assert_close(output, activated(expected))
    for in_place in (False, True):
        sum_of = addend.clone()
        output = private_api.onednn_convolution_add(x, sum_of, blocked, bias, window, relu=relu, in_place=in_place)
        torch.testing.assert_close(output, activated(expected + addend))
        assert (output.data_ptr() == sum_of.data_ptr()) == in_place


@torch.no_grad()
def test_networks_run_without_onednn(without_onednn: None, caplog: pytest.LogCaptureFixture) -> None:
    packed, x = packed_of("resnet8", 2, 0.5), images(2).float()
    network, _ = tuned(packed, x, execution="padded", layout="channels_last")
    assert "oneDNN's fused operators do not work" in caplog.text
    torch.testing.assert_close(network(x), packed.float()(x), rtol=1e-3, atol=1e-3)


def test_networks_run_without_fused_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    assert private_api.has_cudnn()
    monkeypatch.delattr(torch, "cudnn_convolution_relu")
    assert not private_api.has_cudnn()


def test_memory_without_the_profilers_events_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 4, 4)
    assert peak_bytes(conv, x) >= 4 * (8 * 3 + 8 + 8 * 16)
    monkeypatch.setattr("torch.autograd.profiler.profile.kineto_results", None, raising=False)
    with pytest.raises(ValueError, match="keeps no memory events"):
        private_api.memory_changes(torch.profiler.profile())


def test_errors_of_torch_compile_are_runtime_errors() -> None:
    """`suite.measure` catches these, so that the private class is not named."""
    exceptions = pytest.importorskip("torch._dynamo.exc")
    assert issubclass(exceptions.TorchDynamoException, RuntimeError)
