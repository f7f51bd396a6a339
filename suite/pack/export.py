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
from torch import Tensor, fx, nn

from suite import cli
from suite.files import replacing
from suite.pack import onnx_writer
from suite.pack.checkpoint import header, load
from suite.pack.choice import PRECISIONS
from suite.pack.fold import per_group
from suite.pack.network import PackedNetwork
from suite.pack.portable import tuned_for
from suite.pack.runtimes import COMPILERS, session

TOLERANCE = 1e-4
"""Largest error of the logits, as a share of the largest logit."""
CHECKED_BATCH = 3
"""Differs from the traced batch, so that the check fails for an export with a constant batch."""

log = logging.getLogger(__name__)
METADATA = ("mean", "std", "labels")
"""Entries of a packed network's header that an ONNX file carries."""

Runner = Callable[[Tensor], Tensor]


class OnnxModule(nn.Module):
    """An ONNX network, run by ONNX Runtime on the CPU with torch's number of threads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = session(path)
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(f"{path} takes {len(inputs)} inputs; a network to measure takes one batch of images")
        self.input = inputs[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a float32 batch."""
        values = np.ascontiguousarray(images.numpy())
        return torch.from_numpy(self.session.run(None, {self.input.name: values})[0])


def export(
    packed: PackedNetwork,
    shape: tuple[int, ...],
    to: str,
    path: Path,
    about: Mapping[str, Any] = MappingProxyType({}),
    *,
    form: nn.Module | None = None,
) -> float:
    """Write the network for batches of images [C, H, W]; return its largest error.

    The error is a share of the largest logit of the eager network on random images. Batch norm is folded.
    about  mean and std of a channel of pixels in [0, 1], and labels: metadata of an ONNX file, as JSON
    form   the network to write, of `tuned_for`; None: one convolution a filter group
    Raises ValueError, and writes nothing, if the export disagrees or does not run, or if a package is missing.
    """
    if to not in WRITERS:
        raise ValueError(f"the format {to!r} is unknown; choose from: {', '.join(WRITERS)}")
    expected = per_group(packed).cpu().float()
    network = expected if form is None else form.cpu().float()
    images = torch.randn(CHECKED_BATCH, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with replacing(path) as part, torch.no_grad():
            if to == "onnx":
                metadata = {name: json.dumps(about[name]) for name in METADATA if name in about}
                return _check(write_onnx(network, images[:2], part, metadata), expected, images, to)
            return _check(WRITERS[to](network, images[:2], part), expected, images, to)
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
    """Write an ONNX network with its weights and metadata; return it in ONNX Runtime.

    A network of `tuned_for` is written as it was timed, if its operators are those of `onnx_writer`.
    """
    if isinstance(network, fx.GraphModule):
        try:
            model = onnx_writer.write(network, [images])
        except onnx_writer.Unsupported as reason:
            log.info("torch exports the network: %s is not written here", reason)
        else:
            for name, value in metadata.items():
                model.metadata_props.add(key=name, value=value)
            path.write_bytes(model.SerializeToString())
            return OnnxModule(path)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # a warning per constant that is not folded
    program = torch.onnx.export(
        _program(network, images),
        dynamo=True,
        input_names=["images"],
        output_names=[onnx_writer.OUTPUT],
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
        prog=cli.program("suite.export"),
        description="Write a packed network in a format that needs nothing of this suite. The file is run and compared with "
        "the packed network; one that disagrees is not written.",
    )
    cli.add_plugins_option(result)
    result.add_argument("packed", type=Path, metavar="PACKED", help="packed.safetensors of a finished run")
    result.add_argument("--to", required=True, choices=tuple(WRITERS), help="the format")
    runtime = "write each layer in the execution that is fastest in this runtime, by measuring here (torch: in plain operators)"
    result.add_argument("--runtime", choices=tuple(COMPILERS), help=runtime)
    result.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images of a batch in that measurement (default: 1)"
    )
    result.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="precision of that measurement"
    )
    result.add_argument("--threads", type=int, metavar="N", help="CPU threads of it (default: all cores)")
    result.add_argument("--out", type=Path, metavar="FILE", help="default: beside PACKED, with the format's suffix")
    return result


def _form(packed: PackedNetwork, shape: tuple[int, ...], arguments: argparse.Namespace) -> nn.Module | None:
    """Return the network in the fastest executions in the runtime; None without a runtime."""
    if arguments.runtime is None:
        if (arguments.batch, arguments.precision, arguments.threads) != (1, "fp32", None):
            raise ValueError("--batch, --precision and --threads are of the measurement for a runtime: add --runtime")
        return None
    if arguments.batch < 1:
        raise ValueError(f"--batch {arguments.batch}: it takes 1 or more")
    if arguments.runtime in ("onnxruntime", "openvino") and arguments.to != "onnx":
        raise ValueError(f"--runtime {arguments.runtime} reads ONNX: add --to onnx")
    torch.set_num_threads(cli.threads_of(arguments.threads) or cli.cores())
    device = "cuda" if arguments.runtime == "tensorrt" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--runtime tensorrt needs a CUDA device, and torch finds none here")
    dtype = next(dtype for dtype, name in PRECISIONS.items() if name == arguments.precision)
    images = torch.randn(arguments.batch, *shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    network, choice = tuned_for(packed, images, arguments.runtime)
    counts = ", ".join(f"{count} layers {name}" for name, count in choice.columns()["executions"].items())
    Console(stderr=True).print(
        f"fastest in {arguments.runtime}: {counts}", markup=False, highlight=False, soft_wrap=True
    )
    return network


def main() -> int:
    """Export a network. Return 0, or 2 for bad arguments and a network that disagrees."""
    arguments = parser().parse_args()
    cli.configure_logging()
    out = arguments.out or arguments.packed.with_suffix(SUFFIX[arguments.to])
    try:
        packed, about = load(arguments.packed), header(arguments.packed)
        form = _form(packed, tuple(about["input_shape"]), arguments)
        error = export(packed, tuple(about["input_shape"]), arguments.to, out, about, form=form)
    except (ValueError, OSError) as problem:
        sys.stderr.write(f"suite.export: {problem}\n")
        return 2
    Console().print(
        f"{out} (largest error {error:.1e} of the largest logit)", markup=False, highlight=False, soft_wrap=True
    )
    return 0
