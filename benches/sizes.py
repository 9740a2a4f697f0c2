"""Bytes of pruned, weight-shared layers and networks in every form, beside others' and entropy.

Each layer and each network is a row for each form: bytes with everything counted that a reader
needs, % of dense float32, seconds to encode and to decode, of all cores together. Everything is read
back and compared bit by bit before it is counted. A network's bytes are those of its linear and
convolutional weights with a codebook for each.

    csr … archive      ours, layer by layer: codebook, sections, parameters; without names
    order-0 entropy    of positions and symbols, each layer by itself, and 4 k bytes a codebook
    xz, zstd, DeepCABAC    the symbols of each layer, row by row or column by column, whichever is
                       smaller (of DeepCABAC also in its better settings), and 4 k bytes a codebook
    zipnn              the float32 bytes of each layer
    .terse             a file of all layers, with names, shapes and checksums, and
    NNCodec            a bitstream of all layers, and 4 k bytes a codebook: its counterpart
    payload            of the .terse file: weights and codebooks

xz and zstd take a byte for each symbol, two where there are over 255; DeepCABAC and NNCodec the rank
of each value among the layer's, zero's being 0. Of networks the whole file for size is written too,
biases and norms included, and itemized.

    TERSENET_DATA=… python benches/sizes.py [name…]    writes benches/record/sizes.json and .svg
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import compressors
import file_parts
import numpy as np
import pruned
import sizes_plot
import timing
import trained
from torch import nn

import tersenet
from tersenet import CompressedMatrix, bounds, console
from tersenet.files import Typed

OURS = (
    ("csr", "csr", "size", "coded"),
    ("cser", "cser", "size", "coded"),
    ("hac as published", "hac", "size", "raw"),
    ("shac as published", "shac", "size", "raw"),
    ("packed", "packed", "size", "coded"),
    ("coded", "coded", "size", "coded"),
    ("archive", "archive", "size", "coded"),
    ("archive, fast", "archive", "speed", "coded"),
)
# What the record says of each layer of a network.
RECORDED = ("order-0 entropy", "DeepCABAC", "archive")

_CALLS = 5  # that are timed,
_SECONDS = 1.0  # unless fewer take so long
Row = dict[str, float]


@dataclass(frozen=True)
class Layer:
    """A weight of few values, float32 in its logical shape, and what coders of symbols take."""

    values: np.ndarray

    @cached_property
    def rows(self) -> np.ndarray:
        """The weight as [out, in], a convolution's with its taps side by side."""
        return self.values.reshape(self.values.shape[0], -1)

    @property
    def taps(self) -> int:
        """The positions of a convolution's kernel."""
        return prod(self.values.shape[2:])

    @cached_property
    def codebook(self) -> np.ndarray:
        """The distinct kept values, ascending."""
        return np.unique(self.values[self.values != 0])

    @property
    def codebook_nbytes(self) -> int:
        """The codebook as plain float32."""
        return self.codebook.nbytes

    @cached_property
    def symbols(self) -> np.ndarray:
        """The number of each value in the codebook from 1, 0 where pruned: [out, in]."""
        found = np.where(self.rows == 0, 0, 1 + np.searchsorted(self.codebook, self.rows))
        return found.astype(np.uint8 if self.codebook.size < 256 else np.uint16)

    @cached_property
    def levels(self) -> np.ndarray:
        """The rank of each value among all, less that of zero: int32 [out, in]."""
        with_zero = np.unique(np.append(self.codebook, np.float32(0)))
        zero = np.searchsorted(with_zero, 0)
        return (np.searchsorted(with_zero, self.rows) - zero).astype(np.int32)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds of all cores that it takes: the median of some calls."""
    times: list[float] = []
    while len(times) < _CALLS and sum(times) < _SECONDS:
        start = time.process_time()
        result = call()
        times.append(max(time.process_time() - start, 1e-9))
    return result, statistics.median(times)


def coded(coder: compressors.Coder, data: Any, beside: int = 0) -> Row:
    """A coder's row: what it makes of data that it must give back, and the bytes beside."""
    stored, encode = timed(lambda: coder[0](data))
    again, decode = timed(lambda: coder[1](stored))
    if not _is_same(again, data):
        raise AssertionError("a coder is not lossless")
    nbytes = len(stored[0] if isinstance(stored, tuple) else stored)
    return {"nbytes": nbytes + beside, "encode_s": encode, "decode_s": decode}


def _is_same(again: Any, data: Any) -> bool:
    if isinstance(data, Mapping):
        return again.keys() == data.keys() and all(_is_same(again[n], data[n]) for n in data)
    if isinstance(data, np.ndarray):
        return again.dtype == data.dtype and np.array_equal(again, data)
    return bool(again == data)


def smallest(rows: Iterable[Row]) -> Row | None:
    """The row of the fewest bytes, None of none."""
    return min(rows, key=lambda row: row["nbytes"], default=None)


def both_orders(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix row by row and column by column."""
    return array, np.ascontiguousarray(array.T)


def ours(layer: Layer, layout: str, goal: str, columns: str) -> Row:
    """One of our layouts: bytes, and the times to make it and to read it back as dense numbers."""
    taps = layer.taps
    matrix, encode = timed(
        lambda: CompressedMatrix.compress(layer.rows, layout, goal=goal, columns=columns, taps=taps)
    )
    stored = matrix.to_bytes()
    dense, decode = timed(lambda: CompressedMatrix.from_bytes(stored).decompress(threads=1))
    if not np.array_equal(dense.view(np.uint32), layer.rows.view(np.uint32)):
        raise AssertionError(f"{layout} is not lossless")
    return {"nbytes": matrix.nbytes, "encode_s": encode, "decode_s": decode}


def of_layer(layer: Layer) -> dict[str, Row]:
    """One layer in every form that it has by itself."""
    beside = layer.codebook_nbytes
    forms: dict[str, Row | None] = {"raw": {"nbytes": layer.values.nbytes}}
    for label, *how in OURS:
        forms[label] = ours(layer, *how)
    forms["order-0 entropy"] = {"nbytes": bounds.entropy_bits(layer.values) / 8 + beside}
    for label, coder in (compressors.xz() | compressors.zstd()).items():
        orders = both_orders(layer.symbols)
        forms[label] = smallest(coded(coder, order.tobytes(), beside) for order in orders)
    for label, coder in compressors.zipnn("float32").items():
        forms[label] = coded(coder, layer.values.tobytes())
    forms["DeepCABAC"] = smallest(
        coded(coder, order, beside)
        for coder in compressors.deepcabac()
        for order in both_orders(layer.levels)
    )
    return {label: row for label, row in forms.items() if row is not None}


def nncodec(layers: Mapping[str, Layer]) -> Row | None:
    """NNCodec on all layers at once, in its best settings and the better order."""
    beside = sum(layer.codebook_nbytes for layer in layers.values())
    return smallest(
        coded(coder, {n: both_orders(layer.levels)[order] for n, layer in layers.items()}, beside)
        for coder in compressors.nncodec()
        for order in range(2)
    )


def terse(layers: Mapping[str, Layer], folder: Path) -> Row:
    """A file of all layers, for size."""
    path = folder / "layers.terse"
    matrices = {
        name: Typed(CompressedMatrix.compress(layer.rows), "float32", layer.values.shape, name)
        for name, layer in layers.items()
    }
    _, encode = timed(lambda: tersenet.save(matrices, path, goal="size"))
    found, decode = timed(
        lambda: {name: matrix.decompress(1) for name, matrix in tersenet.load(path).items()}
    )
    for name, layer in layers.items():
        if not np.array_equal(found[name].view(np.uint32), layer.rows.view(np.uint32)):
            raise AssertionError(f"the file is not lossless: {name}")
    parts = file_parts.parts(path)
    return {
        "nbytes": path.stat().st_size,
        "payload_nbytes": parts["streams"] + parts["codebooks"],
        "encode_s": encode,
        "decode_s": decode,
    }


def measure(name: str, weights: Mapping[str, np.ndarray], folder: Path) -> dict[str, Any]:
    """A layer or a network in every form, and its layers in the forms that they have alone."""
    layers = {n: Layer(values) for n, values in weights.items()}
    alone = {n: of_layer(layer) for n, layer in layers.items()}
    forms: dict[str, Row | None] = {}
    for label in next(iter(alone.values())):
        rows = [of[label] for of in alone.values()]
        forms[label] = {key: sum(row[key] for row in rows) for key in rows[0]}
    forms |= {"NNCodec": nncodec(layers), ".terse": terse(layers, folder)}
    dense = sum(values.nbytes for values in weights.values())
    return {
        "name": name,
        "weights": dense // 4,
        "density": sum(np.count_nonzero(values) for values in weights.values()) / (dense / 4),
        "forms": {
            label: row | {"percent_of_dense": 100 * row["nbytes"] / dense}
            for label, row in forms.items()
            if row is not None
        },
        "layers": {
            n: {
                "shape": layers[n].values.shape,
                "nnz": int(np.count_nonzero(layers[n].values)),
                "k": layers[n].codebook.size,
                "nbytes": {label: of[label]["nbytes"] for label in RECORDED if label in of},
            }
            for n, of in alone.items()
        },
    }


def whole(name: str, model: nn.Module, folder: Path) -> dict[str, Any]:
    """A network's whole file for size, its parts, and what else is to be said of it."""
    path = folder / "network.terse"
    tersenet.save(model, path, goal="size")
    plain = [*tersenet.decompress(model).state_dict().values()]
    answer: dict[str, Any] = {"file": file_parts.parts(path)}
    answer["plain_nbytes"] = sum(t.nbytes for t in plain) - sum(
        values.nbytes for values in pruned.weights(model).values()
    )
    if name in pruned.PUBLISHED_NBYTES:
        answer["published_nbytes"] = pruned.PUBLISHED_NBYTES[name]
    return answer


def show(found: dict[str, Any]) -> None:
    """Print the table of one layer or network, and the parts of a network's whole file."""
    entries = found["weights"] / 1e6
    title = f"{found['name']}: {found['weights']:,} weights, {found['density']:.1%} kept"
    table = console.table(title, "bytes", "% of dense", "encode, M/s", "decode, M/s")
    for label, row in found["forms"].items():
        speeds = [f"{entries / row[key]:.2f}" for key in ("encode_s", "decode_s") if key in row]
        share = f"{row['percent_of_dense']:.4f}"
        table.add_row(label, f"{row['nbytes']:,.0f}", share, *speeds)
    console.show(table)
    if "file" in found:
        parts = ", ".join(f"{part} {nbytes:,}" for part, nbytes in found["file"].items())
        console.say(f"  whole file {sum(found['file'].values()):,} bytes: {parts}")
        console.say(f"  plain tensors uncoded {found['plain_nbytes']:,} bytes")
        if "published_nbytes" in found:
            console.say(f"  its authors' file {found['published_nbytes']:,} bytes")


def summarize(measured: list[dict[str, Any]]) -> None:
    """Print archive beside what it is compared with, a line for each layer or network."""
    peers = ("order-0 entropy", "xz -9e", "zstd -19", "DeepCABAC", "NNCodec")
    table = console.table("payload (and file), % less than", "bytes", *peers, "file: NNCodec")
    for found in measured:
        forms = {label: row["nbytes"] for label, row in found["forms"].items()}
        forms["payload"] = found["forms"][".terse"]["payload_nbytes"]
        pairs = [("payload", peer) for peer in peers] + [(".terse", "NNCodec")]
        cells = [
            f"{100 - 100 * forms[own] / forms[peer]:.2f}" if peer in forms else ""
            for own, peer in pairs
        ]
        table.add_row(found["name"], f"{forms['payload']:,}", *cells)
    console.show(table)


def main() -> None:
    """Measure everything, print tables, write the record and its plot."""
    names = sys.argv[1:]
    if not trained.data().is_dir():
        sys.exit("TERSENET_DATA names no folder, expected the one that holds sham_layers")
    measured = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, values in pruned.sham_layers(names).items():
            measured.append(measure(name, {"weight": values}, folder))
            show(measured[-1])
        for name, make in pruned.networks(names).items():
            model = make()
            found = measure(name, pruned.weights(model), folder)
            measured.append(found | whole(name, model, folder))
            show(measured[-1])
    summarize(measured)
    if not names:
        peers = {"peers": compressors.versions()}
        timing.write("sizes", timing.environment() | peers | {"measured": measured})
        sizes_plot.draw(measured, timing.HERE / "record" / "sizes.svg")


if __name__ == "__main__":
    main()
