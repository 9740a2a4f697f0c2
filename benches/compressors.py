"""Compressors of others that weights are stored with, each a pair of encode and decode.

xz and zstd take any bytes, ZipNN the bytes of floats, NNCodec (ISO/IEC 15938-17) and DeepCABAC, the
entropy coder in it, arrays of integers. What is not installed is left out, with a line that says so.

    pip install '.[bench]'
    pip install nncodec        its NumPy is below 2: a virtual environment of its own, or --no-deps
"""

from __future__ import annotations

import contextlib
import importlib
import io
import lzma
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

Coder = tuple[Callable[[Any], Any], Callable[[Any], Any]]
Levels = Mapping[str, np.ndarray]
Stream = tuple[bytes, tuple[int, ...], tuple[int, int]]
# Row skipping on and off, and how many comparisons DeepCABAC makes before it goes on in powers of
# two. Its block scans and its codebooks (which hold no float32) took more on every network tried.
NNCODEC_SETTINGS = tuple(
    {"row_skipping": skips, "cabac_unary_length_minus1": length}
    for skips in (True, False)
    for length in (10, 30)
)


@cache
def installed(name: str) -> ModuleType | None:
    """Return a module, or None with a message, said once, where it or what it needs is absent."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(f"{name} is left out: {error.name} is not installed", file=sys.stderr)
        return None


def versions() -> dict[str, str]:
    """Return the versions of what is installed."""
    found = {}
    for name in ("nncodec", "zipnn", "zstandard"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def xz() -> dict[str, Coder]:
    """Return xz at its best, for bytes."""
    preset = 9 | lzma.PRESET_EXTREME
    return {"xz -9e": (lambda data: lzma.compress(data, preset=preset), lzma.decompress)}


def zstd() -> dict[str, Coder]:
    """Return zstd at its usual best, for bytes."""
    if (module := installed("zstandard")) is None:
        return {}
    encoder, decoder = module.ZstdCompressor(level=19), module.ZstdDecompressor()
    return {"zstd -19": (encoder.compress, decoder.decompress)}


def zipnn(dtype: str) -> dict[str, Coder]:
    """Return ZipNN for the bytes of floats of a type; it changes what it is given."""
    if (module := installed("zipnn")) is None:
        return {}
    codec = module.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
    return {
        "zipnn": (
            lambda data: bytes(codec.compress(bytearray(data))),
            lambda stored: bytes(codec.decompress(bytearray(stored))),
        )
    }


def nncodec() -> Iterator[Coder]:
    """Yield NNCodec in each of its settings, for int32 arrays by name.

    Integers are not quantized, whatever it is told of quantizing. A bitstream has headers, and the
    names and shapes.
    """
    if (module := installed("nncodec.nnc")) is None:
        return

    def decode(stored: bytes) -> Levels:
        with contextlib.redirect_stdout(io.StringIO()):
            return module.decompress(bytearray(stored))

    for settings in NNCODEC_SETTINGS:

        def encode(levels: Levels, settings: dict[str, Any] = settings) -> bytes:
            with contextlib.redirect_stdout(io.StringIO()):
                return module.compress(
                    dict(levels),
                    bitstream_path=None,
                    return_bitstream=True,
                    use_dq=False,
                    **settings,
                )

        yield encode, decode


def deepcabac() -> Iterator[Coder]:
    """Yield DeepCABAC alone in each of its settings, for one int32 array [nrows, ncols].

    A stream holds neither its shape nor the least and the greatest level, which it makes use of.
    """
    if (module := installed("nncodec.extensions.deepCABAC")) is None:
        return
    always = 0, 0, 1, 0  # no dependent quantization, row by row, edition 2, no update of a model
    no_history = module.HdspMode.AlwaysOff, np.zeros(2, np.int8)
    for settings in NNCODEC_SETTINGS:
        skips, length = settings["row_skipping"], settings["cabac_unary_length_minus1"] + 1

        def encode(levels: np.ndarray, skips: bool = skips, length: int = length) -> Stream:
            encoder = module.Encoder()
            encoder.initCtxModels(length, 1)
            empty = (~levels.any(axis=1)).astype(np.int32)
            below, count = -int(levels.min()), int(np.ptp(levels)) + 1
            encoder.encodeLayer(levels, *always, int(skips), empty, *no_history, count, below)
            return encoder.finish().tobytes(), levels.shape, (count, below)

        def decode(stored: Stream, length: int = length) -> np.ndarray:
            data, shape, known = stored
            levels = np.zeros(shape, np.int32)
            decoder = module.Decoder()
            decoder.setStream(np.frombuffer(data, np.uint8))
            decoder.initCtxModels(length)
            decoder.decodeLayer(levels, *always, *no_history, *known)
            decoder.finish()
            return levels

        yield encode, decode
