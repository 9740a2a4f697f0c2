"""What the tests of report pages read and look at: sources of known numbers, and a page taken apart."""

import json
from contextlib import closing
from html.parser import HTMLParser

import numpy as np
from arrays import sparse

from tersenet import CompressedMatrix, io
from tersenet.sweeping import Layer, Trial
from tersenet.sweeping.results import Dense, Origin
from tersenet.sweeping.storing import ResultsFile

DENSE = Dense(accuracy=0.875, nbytes=400_000)
HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 2'>",
    "\"' onmouseover=window.pwned=3 x='",
    "<!--<script>",
    "<a href='javascript:window.pwned = 4'>a</a>",
    "<b>bold</b>&lt;i&gt;",
    "%{x} ${title} $title {0}",
    "var(--accent)",
    "__proto__",
    "constructor.prototype",
    "a\u2028b\u202ec\x1bd",
    "long" * 2_000,
    "..",
]


class Parsed(HTMLParser):
    """A page taken apart: every element, the numbers within, and the cells of each table."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.styles, self.tables = [], [], [], []
        self._inside = None
        self.feed(text)
        self.close()
        (numbers,) = [t for kind, t in self.scripts if kind == "application/json"]
        self.numbers = json.loads(numbers)
        self.figures, self.choices = self.numbers["figures"], self.numbers["choices"]

    @classmethod
    def read(cls, path):
        return cls(path.read_text("utf-8"))

    @property
    def text(self):
        return " ".join(self._texts)

    def every_figure(self):
        for figure in self.figures.values():
            if figure is not None:
                yield figure
        for variants in self.choices.values():
            for variant in variants.values():
                yield from variant["figures"].values()

    def reset(self):
        super().reset()
        self._texts = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self._inside = (tag, attributes)
        if tag == "script":
            self.scripts.append([attributes.get("type"), ""])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag not in ("wbr",):
            self._inside = None

    def handle_data(self, data):
        tag = self._inside[0] if self._inside else None
        if tag == "script":
            self.scripts[-1][1] += data
        elif tag == "style":
            self.styles.append(data)
        else:
            self._texts.append(data)
            if tag in ("td", "th", "wbr"):
                self.tables[-1][-1][-1] += data


def trace(figure, name):
    (found,) = [trace for trace in figure["data"] if trace.get("name") == name]
    return found


def write_results(
    path, names=("conv1", "block.0.fc", "block.1.fc"), *, setting="*.sparsity", trials=40
):
    """Write results of random numbers, whose layers have these names; return the trials."""
    random = np.random.default_rng(5)
    written = []
    with closing(ResultsFile(path, create=True)) as file:
        file.describe(Origin(model="m", data="d", space="{}", version="0.1.0"), DENSE)
        for number in range(trials):
            layers = tuple(
                Layer(
                    name=name,
                    kind="CompressedLinear",
                    shape=(64, 32 * (place + 1)),
                    density=0.25,
                    k=16,
                    layout="coded",
                    coder="tans",
                    nbytes=int(random.integers(200, 900)),
                    bits_per_weight=float(random.uniform(0.5, 2)),
                    entropy_bits=None if place == 1 else float(random.uniform(0.5, 2)),
                    reason=None,
                )
                for place, name in enumerate(names)
            )
            written.append(
                Trial(
                    number=number,
                    settings={setting: 0.5 + number / 100, "goal": "size"},
                    nbytes=sum(layer.nbytes for layer in layers) + 123 + int(random.integers(9)),
                    accuracy=int(random.integers(0, 20)) / 20,
                    bits_per_weight=float(random.uniform(0.5, 2)),
                    density=0.25,
                    seconds=float(random.uniform(0, 3)),
                    layers=layers,
                )
            )
            file.add(written[-1])
    return written


def matrices():
    """Return dense weights with few values, by name."""
    w = sparse()
    return {
        "features.0.weight": w,
        "features.1.weight": np.sign(w[:20]).astype(np.float32),
        "head.weight": (w * 2)[:, :16].copy(),
    }


def write_terse(path, names=None):
    """Write the matrices and other tensors to a file; return the matrices by the names they have."""
    dense = matrices()
    if names is not None:
        dense = {name: w for name, w in zip(names, list(dense.values()) * len(names), strict=False)}
    plain = np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30).copy()
    plain[0, :4] = [0, -0.0, np.nan, np.inf]
    values = {name: CompressedMatrix.compress(w) for name, w in dense.items()}
    more = {"plain.weight": plain, "plain.bias": np.ones(20, np.float32), "steps": np.array(7)}
    io.save(
        values | more, path, metadata={"author": "somebody", names[0] if names else "about": "x"}
    )
    return dense | {"plain.weight": plain}
