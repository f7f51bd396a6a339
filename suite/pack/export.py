"""`python -m suite.export`: a packed network as ONNX, exported program or TorchScript."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from suite import cli
from suite.files import replacing
from suite.pack.checkpoint import header, load
from suite.pack.fold import per_group
from suite.pack.network import PackedNetwork

TOLERANCE = 1e-4
"""Largest error of the logits, as a share of the largest logit."""
CHECKED_BATCH = 3
"""Differs from the traced batch, so that the check fails for an export with a constant batch."""

METADATA = ("mean", "std", "labels")
"""Entries of a packed network's header that an ONNX file carries."""

Runner = Callable[[Tensor], Tensor]


class OnnxModule(nn.Module):
    """An ONNX network, run by ONNX Runtime on the CPU with torch's number of threads."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads slow what runs next
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(f"{path} takes {len(inputs)} inputs; a network to measure takes one batch of images")
        self.input = inputs[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a float32 batch."""
        values = np.ascontiguousarray(images.numpy())
        return torch.from_numpy(self.session.run(None, {self.input.name: values})[0])


def export(
    packed: PackedNetwork, shape: tuple[int, ...], to: str, path: Path, about: Mapping[str, Any] = MappingProxyType({})
) -> float:
    """Write the network for batches of images [C, H, W]; return its largest error.

    The error is a share of the largest logit of the eager network on random images. Batch norm is folded.
    about  mean and std of a channel of pixels in [0, 1], and labels: metadata of an ONNX file, as JSON
    Raises ValueError, and writes nothing, if the export disagrees or does not run, or if a package is missing.
    """
    network = per_group(packed).cpu()
    images = torch.randn(CHECKED_BATCH, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with replacing(path) as part, torch.no_grad():
            if to == "onnx":
                metadata = {name: json.dumps(about[name]) for name in METADATA if name in about}
                return _check(write_onnx(network, images[:2], part, metadata), network, images, to)
            return _check(WRITERS[to](network, images[:2], part), network, images, to)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--to {to} cannot write this network ({reason}); try another format") from error
    except ImportError as error:
        raise ValueError(
            f"--to {to} needs a package that is missing ({error}): pip install 'pruning-suite[export]'"
        ) from error


def _check(run: Runner, network: nn.Module, images: Tensor, to: str) -> float:
    expected = network(images)
    error = float((run(images) - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not error <= TOLERANCE:  # NaN fails too
        raise ValueError(
            f"the {to} network disagrees with the packed one: largest error {error:.2e} of the largest logit, {TOLERANCE:g} is "
            "allowed; nothing was written"
        )
    return error


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=65536)
    return torch.export.export(network, (images,), dynamic_shapes=({0: batch},))


def write_pt2(network: nn.Module, images: Tensor, path: Path) -> Runner:
    """Write an exported program; return it as read from the file."""
    with path.open("wb") as file:
        torch.export.save(_program(network, images), file)
    with path.open("rb") as file:
        return torch.export.load(file).module()


def write_onnx(
    network: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str] = MappingProxyType({})
) -> Runner:
    """Write an ONNX network with its weights and metadata; return it in ONNX Runtime."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # a warning per constant that is not folded
    program = torch.onnx.export(
        _program(network, images),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)
    return OnnxModule(path)


def write_torchscript(network: nn.Module, images: Tensor, path: Path) -> Runner:
    """Write a traced network; return it as read from the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network, images, check_trace=False)
        torch.jit.save(traced, str(path))
        return torch.jit.load(str(path))


WRITERS: Mapping[str, Callable[[nn.Module, Tensor, Path], Runner]] = {
    "onnx": write_onnx,
    "pt2": write_pt2,
    "torchscript": write_torchscript,
}
SUFFIX = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".ts"}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m suite.export",
        description="Write a packed network in a format that needs nothing of this suite. The file is run and compared with "
        "the packed network; one that disagrees is not written.",
    )
    cli.add_plugins_option(result)
    result.add_argument("packed", type=Path, metavar="PACKED", help="packed.safetensors of a finished run")
    result.add_argument("--to", required=True, choices=tuple(WRITERS), help="the format")
    result.add_argument("--out", type=Path, metavar="FILE", help="default: beside PACKED, with the format's suffix")
    return result


def main() -> int:
    """Export a network. Return 0, or 2 for bad arguments and a network that disagrees."""
    arguments = parser().parse_args()
    cli.configure_logging()
    out = arguments.out or arguments.packed.with_suffix(SUFFIX[arguments.to])
    try:
        packed, about = load(arguments.packed), header(arguments.packed)
        error = export(packed, tuple(about["input_shape"]), arguments.to, out, about)
    except (ValueError, OSError) as problem:
        sys.stderr.write(f"suite.export: {problem}\n")
        return 2
    Console().print(
        f"{out} (largest error {error:.1e} of the largest logit)", markup=False, highlight=False, soft_wrap=True
    )
    return 0
