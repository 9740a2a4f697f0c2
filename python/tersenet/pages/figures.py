"""Figures as plotly's plain JSON: bars and dots by layer, a front, a histogram, seconds.

Nothing of plotly is needed to make them. Names and settings come in as they are, and are escaped here.
Colours are the CSS variables of page.css.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tersenet.pages.document import Figure
from tersenet.pages.texts import in_plot, lines, percent, real

_ROW = 22  # pixels that a layer takes
_NAME = 22  # characters of a name beside an axis; all of it pops up
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'
_ONLY_DETAILS = "%{customdata}<extra></extra>"


@dataclass(frozen=True)
class Bits:
    """A layer's stored bits a weight, its entropy if it has one, and lines that pop up."""

    name: str
    bits: float
    entropy_bits: float | None
    details: Sequence[str] = ()


@dataclass(frozen=True)
class Times:
    """A layer's median times in milliseconds."""

    name: str
    decode_ms: float
    product_ms: float


@dataclass(frozen=True)
class Point:
    """A trial: its bytes, accuracy and seconds, and lines that pop up."""

    number: int
    nbytes: int
    accuracy: float
    seconds: float
    details: Sequence[str] = ()


@dataclass(frozen=True)
class Histogram:
    """Kept weights in bins, and the values of the codebook if they are few.

    `edges` has one number more than `counts`; `values` and `value_counts` are as long as each other.
    """

    edges: Sequence[float]
    counts: Sequence[int]
    values: Sequence[float] = ()
    value_counts: Sequence[int] = ()


def base_layout(height: int) -> dict[str, Any]:
    """Return what all figures have in common."""
    return {
        "height": height,
        "margin": {"l": 8, "r": 16, "t": 84, "b": 8},  # a legend has two lines on a phone
        "font": {"family": _FONT, "size": 12, "color": "var(--text)"},
        "paper_bgcolor": "var(--card)",
        "plot_bgcolor": "var(--card)",
        "hoverlabel": {
            "align": "left",
            "bgcolor": "var(--page)",
            "bordercolor": "var(--muted)",
            "font": {"family": _FONT, "color": "var(--text)"},
        },
        "modebar": {
            "bgcolor": "var(--card)",
            "color": "var(--quiet)",
            "activecolor": "var(--accent)",
        },
    }


def bits_figure(layers: Sequence[Bits]) -> Figure:
    """Return a bar of stored bits a weight for each layer, and a mark at its entropy."""
    bars = {
        "type": "bar",
        "orientation": "h",
        "name": "stored",
        "x": [layer.bits for layer in layers],
        "y": list(range(len(layers))),
        "customdata": [_bits_details(layer) for layer in layers],
        "hovertemplate": _ONLY_DETAILS,
        "marker": {"color": "var(--accent)"},
    }
    with_entropy = [n for n, layer in enumerate(layers) if layer.entropy_bits is not None]
    marks = {
        "type": "scatter",
        "mode": "markers",
        "name": "order-0 entropy",
        "x": [layers[n].entropy_bits for n in with_entropy],
        "y": with_entropy,
        "customdata": [_bits_details(layers[n]) for n in with_entropy],
        "hovertemplate": _ONLY_DETAILS,
        "marker": {
            "symbol": "diamond",
            "size": 9,
            "color": "var(--second)",
            "line": {"width": 1, "color": "var(--card)"},
        },
    }
    axis = _axis("bits a weight") | {"rangemode": "tozero"}
    layout = _by_layer([layer.name for layer in layers], axis) | {"bargap": 0.35}
    return {"data": [bars, marks], "layout": layout}


def times_figure(layers: Sequence[Times]) -> Figure:
    """Return two dots for each layer on a logarithmic axis: to decode it, and one product."""
    data = []
    for name, colour, symbol, ms in (
        ("decode", "var(--accent)", "circle", [layer.decode_ms for layer in layers]),
        ("product", "var(--second)", "diamond", [layer.product_ms for layer in layers]),
    ):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": ms,
                "y": list(range(len(layers))),
                "customdata": [_times_details(layer) for layer in layers],
                "hovertemplate": _ONLY_DETAILS,
                "marker": {"color": colour, "size": 9, "symbol": symbol},
            }
        )
    axis = _axis("milliseconds") | {"type": "log", "dtick": 1, "tickformat": ".4~g"}
    return {"data": data, "layout": _by_layer([layer.name for layer in layers], axis)}


def accuracy_figure(
    points: Sequence[Point], front: Sequence[Point], dense_accuracy: float, first: int
) -> Figure:
    """Return all trials by bytes and accuracy, the front, the dense model, and the trial `first`."""
    on_front = {point.number for point in front}
    others = [point for point in points if point.number not in on_front]
    chosen = [point for point in points if point.number == first]
    sizes = [point.nbytes for point in points]
    axis = _axis("bytes of the file") | {"tickformat": "~s", "ticksuffix": "B", "nticks": 6}
    if min(sizes) > 0 and max(sizes) > 10 * min(sizes):
        axis |= {"type": "log", "tickformat": ".1~s"}
    dense = {
        "type": "scatter",
        "mode": "lines",
        "name": "dense model",
        "x": [min(sizes), max(sizes)],
        "y": [dense_accuracy, dense_accuracy],
        "hovertemplate": f"dense model: accuracy {real(dense_accuracy)}<extra></extra>",
        "line": {"color": "var(--quiet)", "dash": "dash", "width": 1.5},
    }
    data = [
        dense,
        _points("trials", others, "var(--muted)", 7),
        _points("Pareto front", front, "var(--accent)", 9)
        | {"mode": "lines+markers", "line": {"shape": "hv", "width": 2, "color": "var(--accent)"}},
        _points("shown below", chosen, "var(--second)", 15) | {"meta": "chosen"},
    ]
    data[-1]["marker"] |= {"symbol": "circle-open", "line": {"width": 2.5}}
    layout = base_layout(440) | _legend()
    layout |= {"xaxis": axis, "yaxis": _axis("accuracy"), "hovermode": "closest"}
    return {"data": data, "layout": layout}


def seconds_figure(points: Sequence[Point], front: Sequence[Point]) -> Figure:
    """Return a bar of seconds for each trial, those of the front in another colour."""
    on_front = {point.number for point in front}
    data = []
    for name, colour, group in (
        ("trials", "var(--muted)", [p for p in points if p.number not in on_front]),
        ("on the front", "var(--accent)", [p for p in points if p.number in on_front]),
    ):
        data.append(
            {
                "type": "bar",
                "name": name,
                "x": [point.number for point in group],
                "y": [point.seconds for point in group],
                "ids": [str(point.number) for point in group],
                "hovertemplate": "trial %{x}: %{y:.4~g} s<extra></extra>",
                "marker": {"color": colour},
            }
        )
    layout = base_layout(320) | _legend() | {"barmode": "overlay", "hovermode": "closest"}
    layout |= {"xaxis": _axis("trial"), "yaxis": _axis("seconds") | {"rangemode": "tozero"}}
    return {"data": data, "layout": layout}


def histogram_figure(histogram: Histogram) -> Figure:
    """Return bars of the kept weights by value, and a dot for each value of the codebook."""
    edges, counts = histogram.edges, histogram.counts
    total = max(sum(counts), 1)
    between = list(zip(edges[:-1], edges[1:], counts, strict=True))
    bars = {
        "type": "bar",
        "name": "kept weights",
        "x": [(low + high) / 2 for low, high, _ in between],
        "y": list(counts),
        "width": [high - low for low, high, _ in between],
        "customdata": [
            f"{real(low)} … {real(high)}<br>{count:,} weights, {percent(count / total)} of the kept"
            for low, high, count in between
        ],
        "hovertemplate": _ONLY_DETAILS,
        "marker": {"color": "var(--muted)", "line": {"width": 0}},
    }
    values = zip(histogram.values, histogram.value_counts, strict=True)
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": "codebook",
        "x": list(histogram.values),
        "y": list(histogram.value_counts),
        "customdata": [
            f"value {real(value)}<br>{count:,} weights, {percent(count / total)} of the kept"
            for value, count in values
        ],
        "hovertemplate": _ONLY_DETAILS,
        "marker": {"color": "var(--second)", "size": 8, "line": {"width": 0}},
        "error_y": {  # a stem from the axis to the dot
            "type": "data",
            "symmetric": False,
            "array": [0] * len(histogram.values),
            "arrayminus": list(histogram.value_counts),
            "color": "var(--second)",
            "thickness": 1.5,
            "width": 0,
        },
    }
    data = [bars, dots] if histogram.values else [bars]
    layout = base_layout(380) | _legend() | {"showlegend": True, "hovermode": "closest"}
    layout |= {"xaxis": _axis("value of a weight") | {"nticks": 7}}
    layout |= {"yaxis": _axis("weights") | {"rangemode": "tozero"}}
    return {"data": data, "layout": layout}


def _points(name: str, points: Sequence[Point], colour: str, size: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point.nbytes for point in points],
        "y": [point.accuracy for point in points],
        "ids": [str(point.number) for point in points],
        "customdata": [lines(*map(in_plot, point.details)) for point in points],
        "hovertemplate": _ONLY_DETAILS,
        "marker": {"color": colour, "size": size},
    }


def _by_layer(names: Sequence[str], axis: dict[str, Any]) -> dict[str, Any]:
    """Return a layout whose rows are layers, from the top; names may be equal."""
    return (
        base_layout(_ROW * len(names) + 146)
        | _legend()
        | {
            "hovermode": "closest",
            "xaxis": axis,
            "yaxis": {
                "automargin": True,
                "tickvals": list(range(len(names))),
                "ticktext": [in_plot(name, _NAME) for name in names],
                "range": [len(names) - 0.4, -0.6],
                "showgrid": False,
                "zeroline": False,
                "fixedrange": True,
                "tickfont": {"size": 11},
                "ticklabelstandoff": 4,
            },
        }
    )


def _axis(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "gridcolor": "var(--line)",
        "zerolinecolor": "var(--line)",
    }


def _legend() -> dict[str, Any]:
    return {"legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}}


def _bits_details(layer: Bits) -> str:
    entropy = "" if layer.entropy_bits is None else f"order-0 entropy {real(layer.entropy_bits)}"
    stored = f"stored {real(layer.bits)} bits a weight"
    return lines(f"<b>{in_plot(layer.name)}</b>", stored, entropy, *map(in_plot, layer.details))


def _times_details(layer: Times) -> str:
    return lines(
        f"<b>{in_plot(layer.name)}</b>",
        f"decode {real(layer.decode_ms)} ms",
        f"product {real(layer.product_ms)} ms",
    )
