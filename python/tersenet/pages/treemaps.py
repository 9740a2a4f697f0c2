"""Treemaps of bytes: a rectangle for each tensor, within those of the modules its name says.

::

    down.0.weight, down.0.bias, logits.weight   ─▶   down.0 ( weight  bias )   logits.weight

A module with one child is one rectangle with it. Of many tensors the smallest are one rectangle
together, so a page stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tersenet.pages.document import Figure
from tersenet.pages.figures import base_layout
from tersenet.pages.texts import counted, in_plot, lines, nbytes, percent

_LEAVES = 250  # rectangles
_DEPTH = 6  # modules within modules
_LARGEST_BITS = 8  # of the colours; biases of 32 have the last one, too
_LABEL = 40
_SUMMED = ("nbytes", "stored_nbytes", "size")


@dataclass(frozen=True)
class Leaf:
    """A tensor: its name, its bytes, what of it is coloured, and lines that pop up.

    `stored_nbytes` and `size`, the number of its numbers, say the bits a number, in the colours of
    before and after alike; 0 for what is no tensor. `whole` keeps a name with dots from being one of
    modules.
    """

    name: str
    nbytes: int
    stored_nbytes: int
    size: int
    details: Sequence[str] = ()
    whole: bool = False


@dataclass
class _Node:
    label: str
    leaf: Leaf | None = None
    children: dict[str, _Node] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def leaves(self) -> list[Leaf]:
        if self.leaf is not None:
            return [self.leaf]
        return [leaf for child in self.children.values() for leaf in child.leaves]

    @property
    def bits(self) -> float:
        """Stored bits a number of all that is within."""
        size = sum(leaf.size for leaf in self.leaves)
        return 8 * sum(leaf.stored_nbytes for leaf in self.leaves) / max(size, 1)


def treemap_figure(leaves: Sequence[Leaf], whole: str) -> Figure:
    """Return a treemap of tensors' bytes, coloured by stored bits; `whole` names all of them."""
    root = _tree([leaf for leaf in leaves if leaf.nbytes > 0], whole)
    trace: dict[str, Any] = {
        "type": "treemap",
        "branchvalues": "total",
        "ids": [],
        "parents": [],
        "labels": [],
        "values": [],
        "customdata": [],
        "hovertemplate": "%{customdata[0]}<extra></extra>",
        "texttemplate": "%{label}<br>%{customdata[1]}",
        "marker": {
            "colors": [],
            "cmin": 0,
            "cmax": _LARGEST_BITS,
            "colorscale": [[0, "var(--scale-0)"], [0.4, "var(--scale-1)"], [1, "var(--scale-2)"]],
            "showscale": True,
            "colorbar": {
                "orientation": "h",
                "thickness": 8,
                "len": 0.6,
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yanchor": "top",
                "outlinewidth": 0,
                "tickvals": [0, 2, 4, 6, 8],
                "ticktext": ["0", "2", "4", "6", "8 and more"],
                "tickangle": 0,
                "title": {"text": "stored bits a number", "side": "top", "font": {"size": 11}},
            },
            "line": {"width": 1, "color": "var(--card)"},
        },
        "tiling": {"pad": 2},
        "root": {"color": "var(--card)"},
        "pathbar": {"visible": True, "thickness": 18, "side": "top"},
    }
    _add(root, "", "0", max(root.nbytes, 1), trace)
    layout = base_layout(420)
    layout["margin"] = {"l": 0, "r": 0, "t": 34, "b": 52}
    return {"data": [trace], "layout": layout}


def _tree(leaves: Sequence[Leaf], whole: str) -> _Node:
    root = _Node(whole)
    tensors = [leaf for leaf in leaves if not leaf.whole]
    tensors.sort(key=lambda leaf: leaf.nbytes, reverse=True)
    others = tensors[_LEAVES:]
    left_out = set(map(id, others))
    kept = [leaf for leaf in leaves if id(leaf) not in left_out]
    if others:
        sums = {of: sum(getattr(leaf, of) for leaf in others) for of in _SUMMED}
        kept.append(Leaf(counted(len(others), "smaller tensor"), whole=True, **sums))
    for number, leaf in enumerate(kept):
        *path, last = [leaf.name] if leaf.whole else leaf.name.split(".", _DEPTH)
        node = root
        for part in path:
            node = node.children.setdefault(f"module {part}", _Node(part))
        node.children[f"tensor {number}"] = _Node(last, leaf)
    return root


def _add(node: _Node, parent: str, key: str, total: int, trace: dict[str, Any]) -> None:
    """Add a node and what is within; a module with one child is named together with it."""
    label = node.label
    while parent and len(node.children) == 1:
        (node,) = node.children.values()
        label = f"{label}.{node.label}"
    leaf = node.leaf
    name = label if leaf is None else leaf.name
    trace["ids"].append(key)
    trace["parents"].append(parent)
    trace["labels"].append(in_plot(label, _LABEL))
    trace["values"].append(node.nbytes)
    trace["marker"]["colors"].append(node.bits)
    details = lines(
        f"<b>{in_plot(name)}</b>",
        f"{node.nbytes:,} bytes, {percent(node.nbytes / total)} of all",
        *([] if leaf is None else map(in_plot, leaf.details)),
    )
    trace["customdata"].append([details, nbytes(node.nbytes)])
    for number, child in enumerate(node.children.values()):
        _add(child, key, f"{key}-{number}", total, trace)
