"""The page about a sweep: bytes against accuracy, the front, each trial's layers, and seconds.

Numbers are those of the file of results. Layers of at most 6,000 rows in all can be looked at: those of
the trial that is shown first, then of the front, then of the others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod

from tersenet.files import Path
from tersenet.pages.document import Choice, Drawing, Figure, Page, Section, Table, Variant
from tersenet.pages.figures import Bits, Point, accuracy_figure, bits_figure, seconds_figure
from tersenet.pages.texts import nbytes, percent, real, shape, shown
from tersenet.pages.treemaps import Leaf, treemap_figure
from tersenet.sweeping.results import Layer, Results, Trial

_LAYER_ROWS = 6_000  # of all trials together
_BARS = 80  # layers
_TABLE_ROWS = 200


def page(results: Results, source: Path, max_drop: float | None) -> Page:
    """Return the page about results.

    Raises:
        ValueError: if there is no finished trial, or none that loses as little as `max_drop`.
    """
    if not len(results):
        raise ValueError(f"{os.fspath(source)}: no finished trial, expected at least one")
    front = results.front()
    first: Trial = front[-1] if max_drop is None else results.choose(max_drop=max_drop)
    points = [_point(trial, results.varied) for trial in results]
    of_front = {trial.number for trial in front}
    front_points = [_point(trial, results.varied) for trial in front]
    why = (
        "the most accurate one, of equal ones the smallest"
        if max_drop is None
        else f"the smallest that loses at most {max_drop:g} of the dense model's accuracy"
    )
    trials = _selectable(results, front, first)
    selected = (
        "Every trial can be chosen, here or by a click on it above."
        if len(trials) == len(results)
        else f"{len(trials):,} of {len(results):,} trials can be chosen, those of the front first."
    )
    accuracy = Drawing(
        "accuracy",
        "Accuracy against bytes of the file",
        accuracy_figure(points, front_points, results.dense.accuracy, first.number),
        picks="trial",
    )
    sections = [
        Section(
            "Bytes against accuracy",
            "Each dot is a trial: a file that was saved, and the accuracy of what it holds on the "
            "validation data. No other trial has fewer bytes and more accuracy than one on the front.",
            [accuracy],
        ),
        Section(
            "Trials on the front",
            f"The marked trial is shown below first: {why}.",
            table=_table(front, first, results.varied),
        ),
        Section(
            "Layers of a trial",
            f"{selected} Bits and bytes are those stored in the trial's file; a coder that knows no "
            "context cannot go below the order-0 entropy. Both treemaps have the same area, whatever "
            "their bytes, and a layer has the same colour in both.",
            [
                Drawing("bits", "Bits a weight and order-0 entropy, by layer", is_wide=True),
                Drawing("before", "Before: dense float32"),
                Drawing("after", "After: the file"),
            ],
            Choice(
                "trial",
                "Trial",
                [(str(trial.number), _option(trial, of_front)) for trial in trials],
                {str(trial.number): _variant(trial, results) for trial in trials},
            ),
        ),
        Section(
            "Seconds",
            "What each trial took on the machine that ran it, on one thread: pruning, training, "
            "quantizing, saving and evaluating.",
            [
                Drawing(
                    "seconds",
                    "Seconds of each trial",
                    seconds_figure(points, front_points),
                    picks="trial",
                )
            ],
        ),
    ]
    name = os.path.basename(os.fspath(source))
    about = f"What a sweep by tersenet {shown(results.origin.version)} found, in the file {name}."
    return Page(f"Sweep: {name}", about, _facts(results, front, first), sections)


def _facts(results: Results, front: Results, first: Trial) -> list[tuple[str, str, str]]:
    dense = results.dense
    drop = first.accuracy - dense.accuracy
    seconds = sum(trial.seconds for trial in results)
    return [
        ("Trials", f"{len(results):,}", f"{len(front):,} on the front"),
        ("Dense model", f"{dense.accuracy:.4f}", f"accuracy, in {nbytes(dense.nbytes)}"),
        ("Shown first", f"{first.accuracy:.4f}", f"accuracy, {drop:+.4f}; trial {first.number}"),
        (
            "Its file",
            nbytes(first.nbytes),
            f"{percent(first.nbytes / max(dense.nbytes, 1))} of the dense file",
        ),
        (
            "Its weights",
            f"{real(first.bits_per_weight)} bits",
            f"each; {percent(first.density)} kept",
        ),
        ("All trials", f"{seconds:,.4g} s", "one after the other, on one thread"),
    ]


def _selectable(results: Results, front: Results, first: Trial) -> list[Trial]:
    """Return the first trial, those of the front and others while their layers are not too many."""
    order = {trial.number: trial for trial in [first, *front, *results]}
    chosen: list[Trial] = []
    rows = 0
    for trial in order.values():
        rows += len(trial.layers)
        if chosen and rows > _LAYER_ROWS:
            break
        chosen.append(trial)
    return chosen


def _settings(trial: Trial, names: Sequence[str]) -> list[tuple[str, str]]:
    found = ((name, trial.settings[name]) for name in names if name in trial.settings)
    return [(name, f"{v:g}" if isinstance(v, float) else str(v)) for name, v in found]


def _point(trial: Trial, varied: Sequence[str]) -> Point:
    details = [
        f"trial {trial.number}: {trial.nbytes:,} bytes, accuracy {trial.accuracy:.4f}",
        f"{real(trial.bits_per_weight)} bits a weight, {percent(trial.density)} kept",
        f"{real(trial.seconds)} s",
        *(f"{name} = {value}" for name, value in _settings(trial, varied)),
    ]
    return Point(trial.number, trial.nbytes, trial.accuracy, trial.seconds, details)


def _option(trial: Trial, of_front: set[int]) -> str:
    place = ", on the front" if trial.number in of_front else ""
    return f"{trial.number}: {nbytes(trial.nbytes)}, {trial.accuracy:.4f}{place}"


def _table(front: Results, first: Trial, varied: Sequence[str]) -> Table:
    shown_trials = front[:_TABLE_ROWS]
    own = ["trial", "bytes", "accuracy", "bits a weight", "kept", "seconds"]
    rows = [
        [
            str(trial.number),
            f"{trial.nbytes:,}",
            f"{trial.accuracy:.4f}",
            f"{trial.bits_per_weight:.3f}",
            percent(trial.density),
            real(trial.seconds),
            *(dict(_settings(trial, varied)).get(name, "") for name in varied),
        ]
        for trial in shown_trials
    ]
    marked = [n for n, trial in enumerate(shown_trials) if trial.number == first.number]
    return Table([*own, *varied], rows, own, marked)


def _variant(trial: Trial, results: Results) -> Variant:
    layers = [layer for layer in trial.layers if layer.layout != "tied"]
    settings = ", ".join(f"{name} = {value}" for name, value in _settings(trial, results.varied))
    note = (
        f"Trial {trial.number}: {trial.nbytes:,} bytes, accuracy {trial.accuracy:.4f}, "
        f"{real(trial.bits_per_weight)} bits a weight, {percent(trial.density)} kept, "
        f"{real(trial.seconds)} s. {settings}"
    )
    drawn = sorted(layers, key=lambda layer: prod(layer.shape), reverse=True)[:_BARS]
    if len(drawn) < len(layers):
        note += f" Bits are drawn of the {len(drawn)} largest of {len(layers):,} layers."
    kept = set(map(id, drawn))
    bits = bits_figure([_bits(layer) for layer in layers if id(layer) in kept])
    before, after = _treemaps(trial, layers, results.dense.nbytes)
    return Variant(shown(note, 1000), {"bits": bits, "before": before, "after": after})


def _bits(layer: Layer) -> Bits:
    return Bits(layer.name, layer.bits_per_weight, layer.entropy_bits, _details(layer))


def _details(layer: Layer) -> list[str]:
    coder = "" if layer.coder in (None, "fixed") else f", {layer.coder}"
    return [
        f"{layer.kind}, {shape(layer.shape)}",
        f"{percent(layer.density)} kept" + ("" if layer.k is None else f", k = {layer.k:,}"),
        f"{layout}{coder}" if (layout := layer.layout) else "",
        *([] if layer.reason is None else [layer.reason]),
    ]


def _treemaps(trial: Trial, layers: Sequence[Layer], dense_nbytes: int) -> tuple[Figure, Figure]:
    before, after = [], []
    for layer in layers:
        stored = (layer.nbytes, prod(layer.shape), _details(layer))
        before.append(Leaf(layer.name, 4 * prod(layer.shape), *stored))
        after.append(Leaf(layer.name, layer.nbytes, *stored))
    rest = "biases, norms, header and codebooks"
    for leaves, total in ((before, dense_nbytes), (after, trial.nbytes)):
        left = total - sum(leaf.nbytes for leaf in leaves)
        if left > 0:  # less where the dense model is not of float32
            leaves.append(Leaf(rest, left, 0, 0, whole=True))
    return tuple(  # type: ignore[return-value]
        treemap_figure(leaves, f"{what}: {nbytes(sum(leaf.nbytes for leaf in leaves))}")
        for what, leaves in (("dense float32", before), ("the file", after))
    )
