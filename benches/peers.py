"""Dense runtimes that whole networks are compared with, each on a chosen number of threads.

torch in both memory formats; ONNX Runtime and OpenVINO in float32 and in int8 (quantized statically
by ONNX Runtime, one scale an output channel, calibrated on the bench's own input). What is not
installed is left out, with a line that says so.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Run = Callable[[np.ndarray], Any]


def torch_runs(model: nn.Module, x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return calls of torch in both memory formats on a copy of x."""
    plain = torch.from_numpy(x.copy())
    calls: dict[str, Callable[[], Any]] = {"torch": lambda: model(plain)}
    if plain.dim() == 4:
        import copy

        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        by_last = plain.contiguous(memory_format=torch.channels_last)
        calls["torch channels last"] = lambda: last(by_last)
    return calls


def onnx_runs(model: nn.Module, x: np.ndarray, threads: int) -> dict[str, Callable[[], Any]]:
    """Return calls of ONNX Runtime and OpenVINO, float32 and int8, on x."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        print("onnxruntime is not installed: left out", file=sys.stderr)
        return {}
    calls: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, quantized = folder / "plain.onnx", folder / "int8.onnx"
        _to_onnx(model, x, plain)
        _quantize(plain, quantized, x)
        for label, path in (("f32", plain), ("int8", quantized)):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            providers = ["CPUExecutionProvider"]
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
            feed = {session.get_inputs()[0].name: x}
            calls[f"onnxruntime {label}"] = lambda s=session, f=feed: s.run(None, f)[0]
            run = _openvino(path, threads, label)
            if run is not None:
                calls[f"openvino {label}"] = lambda run=run: run(x)
    return calls


def _to_onnx(model: nn.Module, x: np.ndarray, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1)
    example = torch.from_numpy(x if len(x) > 1 else np.concatenate([x, x]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (example,), str(path), dynamic_shapes=({0: batch},), verbose=False, dynamo=True
        )


def _quantize(plain: Path, quantized: Path, x: np.ndarray) -> None:
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    session = onnxruntime.InferenceSession(str(plain), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, np.ndarray]] = iter([{name: x}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    prepared = plain.with_name("prepared.onnx")
    logging.disable(logging.WARNING)
    quant_pre_process(str(plain), str(prepared))
    quantization.quantize_static(
        str(prepared),
        str(quantized),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    logging.disable(logging.NOTSET)


def _openvino(path: Path, threads: int, label: str) -> Run | None:
    try:
        import openvino
    except ModuleNotFoundError:
        print("openvino is not installed: left out", file=sys.stderr)
        return None
    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if label == "f32":
        # Else it computes with 16 bits where the CPU multiplies these faster.
        config["INFERENCE_PRECISION_HINT"] = "f32"
    request = core.compile_model(core.read_model(str(path)), "CPU", config).create_infer_request()
    return lambda x: request.infer({0: x})[0]
