"""The page about a `.terse` file: bits and entropies, histograms, bytes, times, costs, what it says.

Tensors under other names are there once. Figures by layer are of the largest weights, where there are
many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from tersenet._core import SIMD
from tersenet.files import File
from tersenet.hardware import prices
from tersenet.pages.document import Choice, Drawing, Page, Section, Table, Variant
from tersenet.pages.figures import (
    Bits,
    Histogram,
    Times,
    bits_figure,
    histogram_figure,
    times_figure,
)
from tersenet.pages.texts import counted, joules, nbytes, percent, real, shape, shown
from tersenet.pages.treemaps import Leaf, treemap_figure
from tersenet.pages.weights import Tensor, Weights, measured, weights_of
from tersenet.reporting import Report

_WEIGHTS = 80  # tensors whose weights are drawn
_TABLE_ROWS = 300
_METADATA_ROWS = 100


def page(
    file: File,
    times: bool,
    progress: Callable[[str, int, int], None],
    costs: Report | None = None,
) -> Page:
    """Return the page about an open file; `times` says whether to measure, `costs` are a network's.

    Raises:
        FormatError: if what is drawn is damaged.
    """
    infos = {name: file.info(name) for name in file}
    tensors = [Tensor.of(name, info) for name, info in infos.items() if "alias_of" not in info]
    weights = _largest([tensor for tensor in tensors if tensor.is_weight])
    found = _read(file, weights, progress)
    all_weights = sum(tensor.is_weight for tensor in tensors)
    largest = (
        ""
        if len(weights) == all_weights
        else f" Drawn are the {len(weights)} largest of {all_weights:,}."
    )
    sections = []
    if found:
        sections.append(_bits_section(found, largest))
    sections.append(_bytes_section(file, tensors))
    if any(each.histogram for each in found):
        sections.append(_weights_section(found, largest))
    matrices = [tensor.name for tensor in weights if tensor.nnz is not None]
    if times and matrices:
        sections.append(_times_section(measured(file, matrices, progress), largest))
    if costs is not None:
        sections.append(_costs_section(costs))
    sections.append(_tensors_section(tensors, len(infos)))
    if metadata := file.metadata():
        sections.append(_metadata_section(metadata))
    name = os.path.basename(file.path)
    about = f"What the file {name} holds."
    facts = _facts(file, tensors, infos)
    if costs is not None and costs.multiply_adds is not None:
        facts.append(("Multiply-adds", f"{costs.multiply_adds:,}", "for one example"))
        facts.append(("Energy", joules(costs.energy_pj or 0), "of the weights, by a table"))
    return Page(name, about, facts, sections)


def _largest(weights: Sequence[Tensor]) -> list[Tensor]:
    largest = sorted(weights, key=lambda tensor: tensor.size, reverse=True)[:_WEIGHTS]
    kept = {tensor.name for tensor in largest}
    return [tensor for tensor in weights if tensor.name in kept]


def _read(
    file: File, weights: Sequence[Tensor], progress: Callable[[str, int, int], None]
) -> list[Weights]:
    """Read matrices side by side, which stay small, and plain tensors one at a time."""
    matrices = file.values([tensor.name for tensor in weights if tensor.nnz is not None])
    found = []
    for done, tensor in enumerate(weights):
        progress("counting", done, len(weights))
        value = matrices[tensor.name] if tensor.nnz is not None else file.get(tensor.name)
        counted_weights = weights_of(tensor, value)
        if counted_weights is not None:
            found.append(counted_weights)
    progress("counting", len(weights), len(weights))
    return found


def _facts(
    file: File, tensors: Sequence[Tensor], infos: dict[str, dict[str, object]]
) -> list[tuple[str, str, str]]:
    dense = sum(tensor.dense_nbytes for tensor in tensors)
    weights = [tensor for tensor in tensors if tensor.is_weight]
    size = sum(tensor.size for tensor in weights)
    stored = sum(tensor.nbytes for tensor in weights)
    matrices = [tensor for tensor in tensors if tensor.nnz is not None]
    kept = sum(tensor.nnz or 0 for tensor in matrices)
    others = len(infos) - len(tensors)
    facts = [
        ("File", nbytes(file.nbytes), f"{file.nbytes:,} bytes"),
        ("Of dense", percent(file.nbytes / max(dense, 1)), f"of {nbytes(dense)}"),
        (
            "Tensors",
            f"{len(tensors):,}",
            f"{len(matrices):,} compressed" + (f", {counted(others, 'alias')}" if others else ""),
        ),
        ("Weights", f"{real(8 * stored / max(size, 1))} bits", f"each, of {size:,}"),
    ]
    if matrices:
        total = max(sum(tensor.size for tensor in matrices), 1)
        facts.append(("Kept", percent(kept / total), f"{kept:,} of compressed weights"))
    if file.has_network:
        facts.append(("Network", "yes", "tersenet run takes it"))
    return facts


def _details(tensor: Tensor) -> list[str]:
    density = [] if tensor.nnz is None else [f"{percent(tensor.nnz / max(tensor.size, 1))} kept"]
    return [f"{tensor.dtype}, {shape(tensor.shape)}", *density, _stored(tensor)]


def _stored(tensor: Tensor) -> str:
    return tensor.layout + ("" if tensor.coder in (None, "fixed") else f", {tensor.coder}")


def _bits_section(found: Sequence[Weights], largest: str) -> Section:
    bars = []
    for each in found:
        k = [] if each.k is None else [f"k = {each.k:,}"]
        tensor = each.tensor
        bars.append(Bits(tensor.name, tensor.bits, each.entropy_bits, [*_details(tensor), *k]))
    return Section(
        "Bits a weight",
        "What each tensor of weights takes in the file, without header and codebook, and its order-0 "
        "entropy, which a coder that knows no context cannot go below." + largest,
        [Drawing("bits", "Bits a weight and order-0 entropy, by tensor", bits_figure(bars))],
    )


def _bytes_section(file: File, tensors: Sequence[Tensor]) -> Section:
    before, after = [], []
    for tensor in tensors:
        stored = (tensor.nbytes, tensor.size, _details(tensor))
        before.append(Leaf(tensor.name, tensor.dense_nbytes, *stored))
        after.append(Leaf(tensor.name, tensor.nbytes, *stored))
    rest = file.nbytes - sum(tensor.nbytes for tensor in tensors)
    after.append(Leaf("header, codebooks and checksums", rest, 0, 0, whole=True))
    dense = sum(tensor.dense_nbytes for tensor in tensors)
    return Section(
        "Where the bytes are",
        "Each rectangle is a tensor within its modules, by bytes. Both figures have the same area, "
        "whatever their bytes, and a tensor has the same colour in both.",
        [
            Drawing("before", "Before: dense", treemap_figure(before, f"dense: {nbytes(dense)}")),
            Drawing(
                "after",
                "After: the file",
                treemap_figure(after, f"the file: {nbytes(file.nbytes)}"),
            ),
        ],
    )


def _weights_section(found: Sequence[Weights], largest: str) -> Section:
    shown_first = sorted(found, key=lambda each: each.tensor.size, reverse=True)
    drawn = [each for each in shown_first if each.histogram is not None]
    variants = {}
    for number, each in enumerate(drawn):
        assert each.histogram is not None
        figure = histogram_figure(each.histogram)
        variants[str(number)] = Variant(_note(each, each.histogram), {"histogram": figure})
    options = [(str(n), f"{w.tensor.name}, {w.tensor.size:,}") for n, w in enumerate(drawn)]
    return Section(
        "Weights",
        "Bars count the kept weights in bins of equal width, dots each value of the codebook. Pruned "
        "weights, which are +0.0, are told apart and not drawn." + largest,
        [Drawing("histogram", "Kept weights by value")],
        Choice("weight", "Tensor", options, variants),
    )


def _note(each: Weights, histogram: Histogram) -> str:
    tensor = each.tensor
    share = percent(each.pruned / max(tensor.size, 1))
    parts = [
        f"{tensor.name}: {shape(tensor.shape)}, {counted(tensor.size, 'weight')}",
        f"{each.pruned:,} pruned ({share}), not drawn",
        f"{sum(histogram.counts):,} drawn",
    ]
    if each.infinite:
        parts.append(f"{each.infinite:,} infinite or not a number, not drawn")
    if each.k is not None:
        undrawn = "" if histogram.values else " (too many for a dot each)"
        parts.append(f"codebook of {counted(each.k, 'value')}{undrawn}")
    parts.append(f"{tensor.nbytes:,} bytes as {_stored(tensor)}")
    return shown("; ".join(parts), 1000)


def _times_section(times: dict[str, tuple[float, float]], largest: str) -> Section:
    dots = [Times(name, decode, product) for name, (decode, product) in times.items()]
    return Section(
        "Times",
        f"Measured when this page was made, on one thread of that machine ({SIMD}), medians of five. "
        "Decode: a matrix alone from its stored bytes to dense float32, checks included. Product: with "
        "one vector, in the layout that loading holds for it." + largest,
        [Drawing("times", "Milliseconds by tensor", times_figure(dots))],
    )


def _costs_section(costs: Report) -> Section:
    columns = [
        *("tensor", "used by", "kept", "multiply-adds", "bits", "multiply-add bits"),
        *("arithmetic", "memory", "energy"),
    ]
    rows = [
        [
            shown(row.name),
            row.kind,
            percent(row.density),
            "" if row.multiply_adds is None else f"{row.multiply_adds:,}",
            f"{row.bits}",
            "" if row.multiply_add_bits is None else f"{row.multiply_add_bits:,}",
            "" if row.arithmetic_pj is None else joules(row.arithmetic_pj),
            joules(row.memory_pj),
            joules(row.energy_pj),
        ]
        for row in costs[:_TABLE_ROWS]
    ]
    operation, word = prices(costs.arithmetic, costs.memory)
    place = costs.memory if isinstance(costs.memory, str) else "memory"
    total = "Nothing in it is known to be multiplied."
    if costs.multiply_adds is not None:
        total = (
            f"In all {costs.multiply_adds:,} multiply-adds and {costs.multiply_add_bits:,} "
            f"multiply-add bits; arithmetic {joules(costs.arithmetic_pj or 0)} and memory "
            f"{joules(costs.memory_pj)} make {joules(costs.energy_pj or 0)}."
        )
    text = (
        "What the weights cost on hardware of its own, for one example: multiply-adds of kept weights "
        "times the bits that tell one value from the others, and energy by Horowitz's table (45 nm), "
        f"where a multiply-add in {costs.arithmetic} takes {operation:.4g} pJ, 32 bits from {place} "
        f"{word:.4g} pJ. Each weight is read once, as it is in the file; decoding, activations and "
        f"control are not in it. {total}"
    )
    if len(costs) > len(rows):
        text += f" The first {len(rows)}, of {len(costs):,}."
    return Section("Costs", text, table=Table(columns, rows, columns[2:]))


def _tensors_section(tensors: Sequence[Tensor], names: int) -> Section:
    columns = ["tensor", "type", "shape", "stored as", "kept", "bytes", "of dense", "bits each"]
    rows = [
        [
            shown(tensor.name),
            tensor.dtype,
            shape(tensor.shape),
            _stored(tensor),
            "" if tensor.nnz is None else percent(tensor.nnz / max(tensor.size, 1)),
            f"{tensor.nbytes:,}",
            percent(tensor.nbytes / tensor.dense_nbytes) if tensor.dense_nbytes else "",
            f"{tensor.bits:.3f}",
        ]
        for tensor in tensors[:_TABLE_ROWS]
    ]
    more = len(tensors) - len(rows)
    text = f"In the order of the file; {names - len(tensors):,} more names are aliases of these."
    if names == len(tensors):
        text = "In the order of the file."
    if more:
        text += f" The first {len(rows)}, of {len(tensors):,}."
    return Section("Tensors", text, table=Table(columns, rows, columns[4:]))


def _metadata_section(metadata: dict[str, str]) -> Section:
    rows = [[shown(key), shown(value)] for key, value in sorted(metadata.items())[:_METADATA_ROWS]]
    more = len(metadata) - len(rows)
    text = f"The first {len(rows)}, of {len(metadata):,}." if more else ""
    return Section("Metadata", text, table=Table(["name", "value"], rows))
