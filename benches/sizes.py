"""Bytes of pruned, weight-shared layers in every form, beside entropy and general compressors.

Each real layer is a row for each form: bytes with everything counted that a reader needs (shape,
tables, codebook), % of dense float32, seconds to encode and to decode, of all cores together. Ours
are read back and compared bit by bit before they are counted. The general compressors take the
matrix of symbols (a byte each, two where there are over 255), row by row or column by column,
whichever is smaller, and pay for the codebook. The order-0 entropy is that of positions and symbols,
with the codebook.

    TERSENET_DATA=… python benches/sizes.py [name…]    writes benches/record/sizes.json
"""

from __future__ import annotations

import lzma
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timing

from tersenet import CompressedMatrix, bounds

OURS = (
    ("csr", "csr", "size", "coded"),
    ("cser", "cser", "size", "coded"),
    ("hac as published", "hac", "size", "raw"),
    ("shac as published", "shac", "size", "raw"),
    ("packed", "packed", "size", "coded"),
    ("coded", "coded", "size", "coded"),
    ("archive", "archive", "size", "coded"),
    ("archive of rows", "archive", "speed", "coded"),
)
Codec = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]


def layers(names: list[str]) -> dict[str, np.ndarray]:
    """The authors' layers as [out, in]: those whose name holds one of `names`, or all."""
    folder = os.environ.get("TERSENET_DATA")
    if not folder:
        sys.exit("TERSENET_DATA is not set, expected the folder that holds sham_layers")
    found = {}
    for path in sorted(Path(folder, "sham_layers").glob("*.npz")):
        if not names or any(name in path.stem for name in names):
            with np.load(path) as stored:
                found[path.stem] = np.ascontiguousarray(stored["codebook"][stored["indices"]].T)
    return found


def compressors() -> dict[str, Codec]:
    """General compressors at their best; what is not installed is left out."""
    found: dict[str, Codec] = {
        "xz -9e": (
            lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
            lzma.decompress,
        )
    }
    try:
        import zstandard
    except ModuleNotFoundError:
        print("zstandard is not installed: left out", file=sys.stderr)
        return found
    encoder, decoder = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    return found | {"zstd -19": (encoder.compress, decoder.decompress)}


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds of all cores that it took."""
    start = time.process_time()
    result = call()
    return result, max(time.process_time() - start, 1e-9)


def ours(weights: np.ndarray, layout: str, goal: str, columns: str) -> dict[str, float]:
    """One of our layouts: bytes, and the times to make it and to read it back as dense numbers."""
    matrix, encode = timed(
        lambda: CompressedMatrix.compress(weights, layout, goal=goal, columns=columns)
    )
    stored = matrix.to_bytes()
    dense, decode = timed(lambda: CompressedMatrix.from_bytes(stored).decompress(threads=1))
    if not np.array_equal(dense.view(np.uint32), weights.view(np.uint32)):
        raise AssertionError(f"{layout} is not lossless")
    return {"nbytes": matrix.nbytes, "encode_s": encode, "decode_s": decode}


def general(symbols: np.ndarray, k: int, codec: Codec) -> dict[str, float]:
    """A general compressor on the symbols, in the better of both orders."""
    compress, decompress = codec
    best: dict[str, float] = {}
    for order in (symbols, symbols.T):
        data = np.ascontiguousarray(order).tobytes()
        stored, encode = timed(lambda data=data: compress(data))
        again, decode = timed(lambda stored=stored: decompress(stored))
        if again != data:
            raise AssertionError("a general compressor is not lossless")
        nbytes = len(stored) + 4 * k
        if not best or nbytes < best["nbytes"]:
            best = {"nbytes": nbytes, "encode_s": encode, "decode_s": decode}
    return best


def measure(name: str, weights: np.ndarray) -> dict[str, Any]:
    """One layer in every form."""
    codebook = np.unique(weights[weights != 0])
    k = codebook.size
    symbols = np.where(weights == 0, 0, 1 + np.searchsorted(codebook, weights))
    symbols = symbols.astype(np.uint8 if k < 256 else np.uint16)
    rows: dict[str, dict[str, float]] = {"raw": {"nbytes": weights.nbytes}}
    for label, *how in OURS:
        rows[label] = ours(weights, *how)
    rows["order-0 entropy"] = {"nbytes": bounds.entropy_bits(weights) / 8 + 4 * k}
    for label, codec in compressors().items():
        rows[label] = general(symbols, k, codec)
    for row in rows.values():
        row["percent_of_dense"] = 100 * row["nbytes"] / weights.nbytes
    density = float((weights != 0).mean())
    return {"name": name, "shape": weights.shape, "density": density, "k": k, "forms": rows}


def show(layer: dict[str, Any]) -> None:
    """Print one layer's table."""
    print(f"\n{layer['name']}: {layer['shape']}, {layer['density']:.1%} kept, k = {layer['k']}")
    entries = layer["shape"][0] * layer["shape"][1] / 1e6
    for label, row in layer["forms"].items():
        line = f"  {label:20} {row['nbytes']:>12,.0f}  {row['percent_of_dense']:9.4f} %"
        if "encode_s" in row:
            line += f"  encode {entries / row['encode_s']:8.2f} M weights/s"
            line += f"  decode {entries / row['decode_s']:8.2f} M weights/s"
        print(line, flush=True)


def main() -> None:
    """Measure everything, print a table, write the record."""
    measured = []
    for name, weights in layers(sys.argv[1:]).items():
        measured.append(measure(name, weights))
        show(measured[-1])
    if not sys.argv[1:]:
        timing.write("sizes", timing.environment() | {"layers": measured})


if __name__ == "__main__":
    main()
