"""The linear layers of a trained network, compressed while what feeds them stays as it is.

::

    Pr       magnitude pruning, sparser and sparser, trained after each step          # per layer, or all
    CWS, …   shared values of the dense layers, trained                               # layers together
    Pr + …   likewise of pruned ones
    units    the hidden units that score most, trained; pruned further and further, and with values
             that are learnt while the weights move between them

Hidden units left out are zeros in the file. A row's occupancy is that of the weights in a file for
size, codebooks counted as float32, over their bytes as dense float32.
"""

from __future__ import annotations

import abc
import copy
import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import stepwise
import torch
from cache import Cache
from devices import CPU
from torch import Tensor, nn

import tersenet
from tersenet.files import Level
from tersenet.parametrization import unparametrize
from tersenet.plan import Plan
from tersenet.pruning import prune, taylor_scores
from tersenet.pruning.stages import Progress
from tersenet.quantization import prepare_qat, quantize
from tersenet.training import Loss, TensorBatches

SEED = 0
SCOPES = {"per layer": "layer", "unified": "kind"}
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
QUANTIZERS = ("cws", "pws", "uq", "ecsq")
KS = {0.0: (2, 8, 16, 32, 64, 128, 256), 0.6: (32,), 0.9: (2, 8, 32), 0.97: (8, 32)}
LEARNT_KS = (16, 8)

_SCORED = 8  # batches

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What differs from one network's linear layers to another's."""

    widths: tuple[int, ...]  # of the hidden layers that are made narrower
    kept: tuple[float, ...]  # of all weights of the full layers, fewer and fewer
    steps: Mapping[str, int]  # of pruning, sharing, units, rung and learning
    lr: Mapping[str, float]
    loss: Loss


def linears(fc: nn.Sequential) -> dict[str, nn.Linear]:
    """Return the linear layers by their names in the sequence."""
    return {name: layer for name, layer in fc.named_children() if isinstance(layer, nn.Linear)}


def with_units(fc: nn.Sequential, units: list[Tensor], into: nn.Sequential) -> nn.Sequential:
    """Put these hidden units of each layer, in this order, into layers whose other units are zeros."""
    first, *_, last = linears(fc).values()
    parts = zip(
        linears(fc).values(),
        linears(into).values(),
        [*units, torch.arange(last.out_features)],
        [torch.arange(first.in_features), *units],
        strict=True,
    )
    with torch.no_grad():
        for before, after, rows, columns in parts:
            after.weight.zero_()[: len(rows), : len(columns)] = before.weight[rows][:, columns]
            after.bias.zero_()[: len(rows)] = before.bias[rows]
    return into


def widened(fc: nn.Sequential, full: nn.Sequential) -> nn.Sequential:
    """Make full layers compute what narrower ones do, the units with most weights first."""
    hidden = list(linears(fc).values())[:-1]
    units = [
        layer.weight.count_nonzero(1).argsort(descending=True, stable=True) for layer in hidden
    ]
    return with_units(fc, units, full)


def nbytes_of(path: Path, names: list[str]) -> int:
    """Return the bytes of some weights of a file, codebooks as float32."""
    total = 0
    with tersenet.open(path) as file:
        for name in names:
            entry = file.info(name)
            total += entry["nbytes"]
            total += 4 * entry.get("k", 0)
    return total


def fc_nbytes(fc: nn.Sequential, level: Level) -> int:
    """Return the bytes of the weights in a file for size, with archives of a level."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fc.terse")
        inputs = torch.zeros(2, next(iter(linears(fc).values())).in_features)
        tersenet.export(fc, inputs, path, goal="size", level=level)
        return nbytes_of(path, [f"{name}.weight" for name in linears(fc)])


def dense_nbytes(fc: nn.Sequential) -> int:
    """Return the bytes of the weights as dense float32."""
    return 4 * sum(layer.weight.numel() for layer in linears(fc).values())


class Heads(abc.ABC):
    """The rows of one network's linear layers: `head.fc`, whose parameters are all of the head's."""

    def __init__(
        self, head: nn.Module, settings: Settings, cache: Cache, advance: Progress
    ) -> None:
        """Keep the dense layers that all rows begin with."""
        self.head, self.settings, self.cache, self.advance = head, settings, cache, advance

    @property
    @abc.abstractmethod
    def batches(self) -> TensorBatches:
        """Features and what to answer."""

    @abc.abstractmethod
    def layers(self, widths: tuple[int, ...] | None = None) -> nn.Sequential:
        """Return new layers of these hidden widths, or of the full ones."""

    @abc.abstractmethod
    def measure(self, head: nn.Module) -> Row:
        """Return what a head is worth: "validation", and what is reported."""

    def train(self, head: nn.Module, what: str) -> None:
        """Train a head for the steps of a stage."""
        stepwise.train(
            head.fc,
            self.batches,
            steps=self.settings.steps[what],
            optimizer=torch.optim.Adam(head.fc.parameters(), fused=True),
            lr=self.settings.lr[what],
            loss=self.settings.loss,
            seed=SEED,
        )

    def full(self, fc: nn.Sequential) -> nn.Sequential:
        """Return layers of full width that compute the same, for evaluation."""
        is_full = dense_nbytes(fc) == dense_nbytes(self.head.fc)
        return (fc if is_full else widened(fc, self.layers())).eval()

    def row(self, head: nn.Module, method: str, scope: str | None, k: int | None) -> Row:
        """Measure a head: its errors, and its bytes at full width."""
        plain = copy.deepcopy(head).eval()
        unparametrize(plain)
        plain.fc = self.full(plain.fc)
        dense = dense_nbytes(plain.fc)
        kept = sum(int(layer.weight.count_nonzero()) for layer in linears(plain.fc).values())
        measured = self.measure(plain)
        level: Level = "best" if "units" in method else "fast"
        nbytes = dense if method == "dense" else fc_nbytes(plain.fc.to(CPU), level)
        return {
            "method": method,
            "scope": scope,
            "sparsity": 1 - 4 * kept / dense,
            "k": k,
            "nbytes": nbytes,
            "occupancy": nbytes / dense,
            **measured,
        }

    def pruned(self, scope: str, sparsity: float) -> nn.Module:
        """Return the head of a sparsity, pruned from the one before it and trained."""
        head = copy.deepcopy(self.head)
        for step in [each for each in SPARSITIES if each <= sparsity]:
            self.cache.stage(
                f"pruned-{scope}-{step:g}", head, lambda step=step: self._prune(head, scope, step)
            )
        return head

    def _prune(self, head: nn.Module, scope: str, sparsity: float) -> None:
        together = "global" if scope == "unified" else "layer"
        prune(head, Plan.of(sparsity=sparsity, pruning_scope=together))
        self.train(head, "pruning")

    def _shared(self, sparsity: float, quantizer: str, k: int, scope: str) -> Row:
        head = self.pruned("per layer", sparsity)
        quantize(head, Plan.of(quantizer=quantizer, k=k, seed=SEED, codebook_scope=SCOPES[scope]))
        self.train(head, "sharing")
        name = quantizer.upper()
        return self.row(head, f"Pr + {name}" if sparsity else name, scope, k)

    @functools.cached_property
    def narrow(self) -> nn.Module:
        """The head of the hidden units that score most, trained."""
        head = copy.deepcopy(self.head)
        widths = self.settings.widths
        scores = taylor_scores(head.fc, itertools.islice(self.batches, _SCORED), self.settings.loss)
        units = [
            torch.from_numpy(np.sort(np.argsort(-scores[name].sum(1))[:width]))
            for name, width in zip(linears(head.fc), widths, strict=False)
        ]
        head.fc = with_units(head.fc, units, self.layers(widths))
        self.cache.stage("units", head, lambda: self.train(head, "units"))
        return head

    def rung(self, kept: float) -> nn.Module:
        """Return the narrow head that keeps this part of the full layers' weights."""
        head = copy.deepcopy(self.narrow)
        whole, narrow = dense_nbytes(self.head.fc), dense_nbytes(head.fc)
        for step in [each for each in self.settings.kept if each >= kept]:

            def work(step: float = step) -> None:
                sparsity = 1 - step * whole / narrow
                prune(head, Plan.of(sparsity=sparsity, pruning_scope="global"))
                self.train(head, "rung")

            self.cache.stage(f"rung-{step:g}", head, work)
        return head

    def learnt(self, kept: float, k: int) -> nn.Module:
        """Return a narrow head with values that were learnt while weights moved between them."""
        head = self.rung(kept)
        unparametrize(head)

        def work() -> None:
            prepare_qat(head, Plan.of(quantizer="cws", k=k, seed=SEED))
            self.train(head, "learning")
            unparametrize(head)

        self.cache.stage(f"learnt-{kept:g}-{k}", head, work)
        return head

    def learnt_rows(self) -> list[tuple[float, int]]:
        """Return what is kept and how many values there are, of each row with learnt values."""
        return list(itertools.product(self.settings.kept, LEARNT_KS))

    def works(self) -> dict[str, Callable[[], Row]]:
        """Return what gives each row, by a name for it."""
        found: dict[str, Callable[[], Row]] = {
            "dense": lambda: self.row(self.head, "dense", None, None)
        }
        for kept in self.settings.kept:
            found[f"units-{kept:g}"] = functools.partial(self._units, kept, None)
        for kept, k in self.learnt_rows():
            found[learnt_name(kept, k)] = functools.partial(self._units, kept, k)
        for scope, sparsity in itertools.product(SCOPES, SPARSITIES):
            found[f"pr-{scope}-{sparsity:g}"] = lambda scope=scope, sparsity=sparsity: self.row(
                self.pruned(scope, sparsity), "Pr", scope, None
            )
        for sparsity, ks in KS.items():
            for k, quantizer, scope in itertools.product(ks, QUANTIZERS, SCOPES):
                found[f"{quantizer}-{scope}-{sparsity:g}-{k}"] = functools.partial(
                    self._shared, sparsity, quantizer, k, scope
                )
        return found

    def _units(self, kept: float, k: int | None) -> Row:
        if k is None:
            return self.row(self.rung(kept), "units + Pr", "unified", None)
        return self.row(self.learnt(kept, k), "units + Pr + learnt CWS", "per layer", k)

    def rows(self) -> dict[str, Row]:
        """Return all rows by name, those that are not there yet worked out."""
        works = self.works()
        rows = {}
        for number, (name, work) in enumerate(works.items(), 1):
            (rows[name],) = self.cache.rows(f"row-{name}", lambda work=work: [work()])
            self.advance(name, number, len(works))
        return rows

    @functools.cached_property
    def finished(self) -> dict[str, Row]:
        """The rows by name that are there when this is asked for first."""
        names = [name for name in self.works() if self.cache.has_rows(f"row-{name}")]
        return {name: self.cache.rows(f"row-{name}", list)[0] for name in names}


def learnt_name(kept: float, k: int) -> str:
    """Return the name of a row with learnt values."""
    return f"units-{kept:g}-{k}"
