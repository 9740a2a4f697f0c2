"""Bytes and speeds of plain tensors coded by planes, beside raw, zstd -19 and ZipNN.

Each checkpoint is one row for each type: all its float tensors of two dimensions or more, each coded
by itself as in a file, as float32, rounded to bfloat16 and to float16, and pruned to 90 % of zeros.
Speeds are those of one tensor repeated to 4 MiB, a layer's size, in processor time of one thread.
Every coder gives the bytes back before anything is timed.

    TERSENET_DATA=… python benches/floats.py          writes benches/record/floats.json
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from compressors import Coder, zipnn, zstd

from tersenet import dtypes
from tersenet._core import CodedArray
from tersenet.checkpoint import open_checkpoint

CHECKPOINTS = (
    "lenet5_mnist/lenet5_caffe",
    "resnet_cifar10/resnet56",
    "kws_hello_edge/dnn_l",
    "stories260k/stories260k",
)
SPEED_NBYTES = 4 << 20
ROUNDS = 30


def trained(name: str) -> list[np.ndarray]:
    """Return the weights of a checkpoint, an array a tensor."""
    checkpoint = open_checkpoint(Path(os.environ["TERSENET_DATA"], f"{name}.safetensors"))
    return [
        checkpoint.get(tensor).ravel()
        for tensor, entry in checkpoint.entries.items()
        if entry.dtype == "float32" and len(entry.shape) > 1
    ]


def variants(weights: np.ndarray) -> dict[str, tuple[str, bytes]]:
    """Return the weights in each type, and pruned: the type and the bytes."""
    cutoff = np.quantile(np.abs(weights), 0.9)
    pruned = np.where(np.abs(weights) > cutoff, weights, np.float32(0))
    return {
        "float32": ("float32", dtypes.to_bytes(weights)),
        "bfloat16": ("bfloat16", dtypes.to_bytes(dtypes.narrowed(weights, "bfloat16"))),
        "float16": ("float16", dtypes.to_bytes(dtypes.narrowed(weights, "float16"))),
        "float32, 90 % zeros": ("float32", dtypes.to_bytes(pruned)),
    }


def timed_coders(dtype: str) -> dict[str, Coder]:
    """Return those that are fast enough to be timed; what is not installed is left out."""
    planes: Coder = (lambda data: CodedArray.encode(data, dtype)), (lambda coded: coded.decode())
    return {"planes": planes, **zipnn(dtype)}


def encoded(data: bytes, coder: Coder) -> tuple[Any, int]:
    """Return the coded form and its bytes; raise unless it comes back."""
    coded = coder[0](data)
    if coded is None:  # as it is, since that is no larger
        return data, len(data)
    if coder[1](coded) != data:
        raise AssertionError("not lossless")
    return coded, coded.nbytes if isinstance(coded, CodedArray) else len(coded)


def speeds(data: bytes, coder: Coder) -> dict[str, float]:
    """Return the best MB/s of the elements' bytes, encoded and decoded."""
    coded, nbytes = encoded(data, coder)
    best = {}
    for name, call in {"encode": lambda: coder[0](data), "decode": lambda: coder[1](coded)}.items():
        times = []
        for _ in range(ROUNDS):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        best[f"{name}_mb_s"] = len(data) / min(times) / 1e6
    return best | {"nbytes": nbytes}


def main() -> None:
    """Measure everything, print a table, write the record."""
    torch.set_num_threads(1)
    rows = []
    for name in CHECKPOINTS:
        tensors = [variants(weights) for weights in trained(name)]
        for kind, (dtype, _) in tensors[0].items():
            data = [tensor[kind][1] for tensor in tensors]
            raw = sum(map(len, data))
            sizes = {
                coder: sum(encoded(part, c)[1] for part in data)
                for coder, c in (timed_coders(dtype) | zstd()).items()
            }
            rows.append({"checkpoint": name, "kind": kind, "raw": raw, "nbytes": sizes})
            shares = "  ".join(f"{c} {n / raw:7.2%}" for c, n in sizes.items())
            print(f"{name:28} {kind:20} {raw:>10} bytes  {shares}")
    weights = max(trained(CHECKPOINTS[0]), key=np.size)
    timed = []
    for kind, (dtype, data) in variants(weights).items():
        long = (data * (SPEED_NBYTES // len(data) + 1))[:SPEED_NBYTES]
        for coder, codec in timed_coders(dtype).items():
            speed = speeds(long, codec)
            timed.append({"kind": kind, "coder": coder, "raw": len(long), **speed})
            print(
                f"{kind:20} {coder:8} encode {speed['encode_mb_s']:6.0f} MB/s"
                f"  decode {speed['decode_mb_s']:6.0f} MB/s",
                file=sys.stderr,
            )
    timing.write("floats", timing.environment() | {"sizes": rows, "speeds": timed})


if __name__ == "__main__":
    main()
