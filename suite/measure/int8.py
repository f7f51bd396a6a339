"""Latency of both networks in int8 by ONNX Runtime.

Weights (per filter) and activations are quantized statically, as QuantizeLinear and DequantizeLinear pairs. The ranges of the
activations are those of the random images that are timed: the leg has times and no accuracy. It is never the reference.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suite import pack as packing
from suite.measure import latency, machine
from suite.measure.protocol import Protocol
from suite.pack.runtimes import compiled_onnx, session, to_onnx, why_not
from suite.plan import Runtime, Timing

RUNTIME: Runtime = "onnxruntime"
CALIBRATION = "random images: times only"


def columns(
    networks: Mapping[str, packing.PackedNetwork],
    choices: Mapping[str, packing.Choice],
    images: Tensor,
    timing: Timing,
    protocol: Protocol,
) -> dict[str, Any]:
    """Return times, ratio, null test and verdict in int8, or {"missing": reason}.

    networks   "dense" and "packed" -> the network
    choices    the same -> executions of its layers in ONNX Runtime in fp32; a missing one is chosen here

    `dense_error` and `packed_error` are the largest differences of logits from fp32, as shares of the largest logit.
    """
    if reason := why_not(RUNTIME, timing.device, timing.precision):
        return {"missing": f"{RUNTIME} {reason}"}
    if timing.runtime not in ("torch", RUNTIME):
        return {"missing": f"the timing is of {timing.runtime}"}
    runs, errors = {}, {}
    for name, packed in networks.items():
        try:
            runs[name], errors[f"{name}_error"] = prepared(packed, images, choice=choices.get(name))
        except ValueError as error:
            return {"missing": f"the {name} network has {error}"}
    with machine.watched(timing.device) as conditions:
        measured = latency.alternate(runs["dense"], runs["packed"], timing.device, protocol)
    measured = dataclasses.replace(measured, flags=machine.flags([conditions], timing.device))
    every = measured.columns()
    return {
        **{name: value for name, value in every.items() if "_ms_" not in name},
        "flags": measured.flags,
        "calibration": CALIBRATION,
        **errors,
    }


def prepared(
    packed: packing.PackedNetwork,
    images: Tensor,
    *,
    choice: packing.Choice | None = None,
    execution: str | None = None,
) -> tuple[Callable[[], Tensor], float]:
    """Return a run of the network in int8 and the largest error of its logits.

    The error is a share of the largest logit.

    choice, execution   executions of the layers, as for `suite.pack.tuned_for`; neither: the fastest ones in fp32
    Raises ValueError if ONNX Runtime cannot quantize or run the network.
    """
    try:
        form, _ = packing.tuned_for(packed, images, RUNTIME, choice=choice, execution=execution)
        run = _quantized(to_onnx(form, [images.contiguous()]), images.contiguous())
        actual = run()
    except Exception as error:  # onnxruntime and its quantization raise errors of many classes
        raise ValueError(f"no int8 form here: {' '.join(str(error).split())[:120]}") from error
    with torch.no_grad():
        expected = form(images)
    return run, float((actual - expected).abs().max() / expected.abs().max())


def _quantized(content: bytes, images: Tensor) -> Callable[[], Tensor]:
    """Return a run of an ONNX network in int8, calibrated on its images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.batches = iter([{name: images.numpy()}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(content)
        logging.root.addFilter(_is_no_advice)
        try:
            quantize_static(
                source,
                target,
                Images(session(content).get_inputs()[0].name),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.root.removeFilter(_is_no_advice)
        return compiled_onnx(target.read_bytes(), [images]).run


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Return False for the advice to pre-process, which changes no operator of these networks."""
    return "pre-processing" not in record.getMessage()
