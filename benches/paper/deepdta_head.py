"""The linear layers of a DeepDTA, compressed while its convolutions stay as they are.

::

    features of all drugs and proteins, once
    Pr       magnitude pruning, sparser and sparser, trained after each step          # per layer, or all
    CWS, …   shared values of the dense layers, trained                               # layers together
    Pr + …   likewise of pruned ones
    units    the hidden units that score most, trained; pruned further and further, and with values
             that are learnt while the weights move between them

Hidden units left out are zeros in the file. A row's occupancy is that of the four weights in a file
for size, codebooks counted as float32, over their bytes as dense float32.
"""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from affinity import Affinities, Pairs
from cache import Cache
from deepdta_training import SEED, Head, features, measures
from networks import DeepDTA
from torch import Tensor, nn

import tersenet
from tersenet.parametrization import unparametrize
from tersenet.plan import Plan
from tersenet.pruning import prune, taylor_scores
from tersenet.pruning.stages import Progress
from tersenet.quantization import prepare_qat, quantize
from tersenet.training import fit

FULL = (1024, 1024, 512)  # hidden units
SCOPES = {"per layer": "layer", "unified": "kind"}
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
QUANTIZERS = ("cws", "pws", "uq", "ecsq")
KS = {0.0: (2, 8, 16, 32, 64, 128, 256), 0.6: (2, 8, 32), 0.9: (2, 8, 32), 0.97: (2, 8, 32)}

WIDTHS = (256, 256, 128)
KEPT = (0.03, 0.02, 0.01, 0.007, 0.005, 0.003, 0.002)  # of all weights of the full layers
LEARNT_KS = (16, 8, 4)

STEPS = {"pruning": 80, "sharing": 30, "units": 800, "rung": 800, "learning": 400}
LR = {"pruning": 1e-3, "sharing": 3e-4, "units": 1e-3, "rung": 1e-3, "learning": 5e-4}

_BATCH_SIZE = 512
_SCORED = 8  # batches

Row = dict[str, Any]


@dataclass(frozen=True)
class PairBatches:
    """Some batches of shuffled pairs, with the features of all drugs and proteins in each."""

    read: tuple[Tensor, Tensor]
    pairs: Pairs
    steps: int
    seed: int

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Iterate over ((drugs, proteins, drug of each pair, protein of each pair), affinities)."""
        generator = torch.Generator().manual_seed(self.seed)
        left: list[Tensor] = []
        for _ in range(self.steps):
            if not left:
                order = torch.randperm(len(self.pairs), generator=generator)
                left = list(order.split(_BATCH_SIZE))
            chosen = left.pop()
            places = self.pairs.drugs[chosen], self.pairs.proteins[chosen]
            yield (*self.read, *places), self.pairs.affinities[chosen]


def layers_of(widths: tuple[int, int, int], inputs: int = 192) -> nn.Sequential:
    """Return the linear layers of a DeepDTA of other widths."""
    first, second, third = widths
    return nn.Sequential(
        *(nn.Linear(inputs, first), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(first, second), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(second, third), nn.ReLU(), nn.Linear(third, 1)),
    )


def linears(fc: nn.Sequential) -> dict[str, nn.Linear]:
    """Return the linear layers by their names in the sequence."""
    return {name: layer for name, layer in fc.named_children() if isinstance(layer, nn.Linear)}


def with_units(
    fc: nn.Sequential, units: list[Tensor], widths: tuple[int, int, int]
) -> nn.Sequential:
    """Return these hidden units of each layer, in this order; what is wider than they are is zeros."""
    old = linears(fc).values()
    inputs = fc[0].in_features
    found = layers_of(widths, inputs)
    parts = zip(
        old,
        linears(found).values(),
        [*units, torch.arange(1)],
        [torch.arange(inputs), *units],
        strict=True,
    )
    with torch.no_grad():
        for before, after, rows, columns in parts:
            after.weight.zero_()[: len(rows), : len(columns)] = before.weight[rows][:, columns]
            after.bias.zero_()[: len(rows)] = before.bias[rows]
    return found


def widened(fc: nn.Sequential) -> nn.Sequential:
    """Return plain layers of full width that compute the same, the units with most weights first."""
    hidden = list(linears(fc).values())[:-1]
    units = [
        layer.weight.count_nonzero(1).argsort(descending=True, stable=True) for layer in hidden
    ]
    return with_units(fc, units, FULL)


def nbytes_of(path: Path, names: list[str]) -> int:
    """Return the bytes of some weights of a file, codebooks as float32."""
    total = 0
    with tersenet.open(path) as file:
        for name in names:
            entry = file.info(name)
            total += entry["nbytes"]
            if entry["kind"] == "matrix":
                total += file.get(name).codebook.nbytes
    return total


def fc_nbytes(fc: nn.Sequential) -> int:
    """Return the bytes of the four weights in a file for size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fc.terse")
        tersenet.export(fc, torch.zeros(2, fc[0].in_features), path, goal="size")
        return nbytes_of(path, [f"{name}.weight" for name in linears(fc)])


def dense_nbytes(fc: nn.Sequential) -> int:
    """Return the bytes of the weights as dense float32."""
    return 4 * sum(layer.weight.numel() for layer in linears(fc).values())


class Heads:
    """The rows of one data set's linear layers."""

    def __init__(self, net: DeepDTA, data: Affinities, cache: Cache, advance: Progress) -> None:
        """Read all drugs and proteins by the trained network."""
        self.net, self.data, self.cache, self.advance = net, data, cache, advance
        self.read = features(net, data)

    def train(self, head: nn.Module, what: str) -> None:
        """Train a head for the steps of a stage."""
        optimizer = torch.optim.Adam(head.parameters(), lr=LR[what], fused=True)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LR[what], total_steps=STEPS[what], pct_start=0.1
        )
        fit(
            head,
            PairBatches(self.read, self.data.train, STEPS[what], SEED),
            epochs=1,
            optimizer=optimizer,
            loss=F.mse_loss,
            scheduler=scheduler,
            scheduler_unit="step",
            seed=SEED,
        )

    def row(self, head: Head, method: str, scope: str | None, k: int | None) -> Row:
        """Measure a head: its errors, and its bytes at full width."""
        plain = copy.deepcopy(head).eval()
        unparametrize(plain)
        if plain.fc[0].out_features < FULL[0]:
            plain.fc = widened(plain.fc).eval()
        dense = dense_nbytes(plain.fc)
        kept = sum(int(layer.weight.count_nonzero()) for layer in linears(plain.fc).values())
        nbytes = dense if method == "dense" else fc_nbytes(plain.fc)
        return {
            "method": method,
            "scope": scope,
            "sparsity": 1 - 4 * kept / dense,
            "k": k,
            "nbytes": nbytes,
            "occupancy": nbytes / dense,
            **measures(plain, self.read, self.data),
        }

    def pruned(self, scope: str, sparsity: float) -> Head:
        """Return the head of a sparsity, pruned from the one before it and trained."""
        head = Head(copy.deepcopy(self.net))
        for step in [each for each in SPARSITIES if each <= sparsity]:
            self.cache.stage(
                f"pruned-{scope}-{step:g}", head, lambda step=step: self._prune(head, scope, step)
            )
        return head

    def _prune(self, head: Head, scope: str, sparsity: float) -> None:
        together = "global" if scope == "unified" else "layer"
        prune(head, Plan.of(sparsity=sparsity, pruning_scope=together))
        self.train(head, "pruning")

    def shared(self, sparsity: float, quantizer: str, k: int, scope: str) -> Row:
        """Return the row of shared values, of layers that are pruned alike or dense."""
        head = self.pruned("per layer", sparsity)
        quantize(head, Plan.of(quantizer=quantizer, k=k, seed=SEED, codebook_scope=SCOPES[scope]))
        self.train(head, "sharing")
        name = quantizer.upper()
        return self.row(head, f"Pr + {name}" if sparsity else name, scope, k)

    @functools.cached_property
    def narrow(self) -> Head:
        """The head of the hidden units that score most, trained."""
        head = Head(copy.deepcopy(self.net))
        batches = PairBatches(self.read, self.data.train, _SCORED, SEED)
        scores = taylor_scores(head, batches, F.mse_loss)
        units = [
            torch.from_numpy(np.sort(np.argsort(-scores[f"fc.{name}"].sum(1))[:width]))
            for name, width in zip(linears(head.fc), WIDTHS, strict=False)
        ]
        head.fc = with_units(head.fc, units, WIDTHS)
        self.cache.stage("units", head, lambda: self.train(head, "units"))
        return head

    def rung(self, kept: float) -> Head:
        """Return the narrow head that keeps this part of the full layers' weights."""
        head = copy.deepcopy(self.narrow)
        whole, narrow = dense_nbytes(self.net.fc), dense_nbytes(head.fc)
        for step in [each for each in KEPT if each >= kept]:

            def work(step: float = step) -> None:
                sparsity = 1 - step * whole / narrow
                prune(head, Plan.of(sparsity=sparsity, pruning_scope="global"))
                self.train(head, "rung")

            self.cache.stage(f"rung-{step:g}", head, work)
        return head

    def learnt(self, kept: float, k: int) -> Head:
        """Return a narrow head with values that were learnt while weights moved between them."""
        head = self.rung(kept)
        prepare_qat(head, Plan.of(quantizer="cws", k=k, seed=SEED))
        self.cache.stage(f"learnt-{kept:g}-{k}", head, lambda: self.train(head, "learning"))
        return head

    def works(self) -> dict[str, Callable[[], Row]]:
        """Return what gives each row, by a name for it."""
        found: dict[str, Callable[[], Row]] = {
            "dense": lambda: self.row(Head(self.net), "dense", None, None)
        }
        for scope, sparsity in itertools.product(SCOPES, SPARSITIES):
            found[f"pr-{scope}-{sparsity:g}"] = lambda scope=scope, sparsity=sparsity: self.row(
                self.pruned(scope, sparsity), "Pr", scope, None
            )
        for kept in KEPT:
            found[f"units-{kept:g}"] = lambda kept=kept: self.row(
                self.rung(kept), "units + Pr", "unified", None
            )
        for kept, k in itertools.product(KEPT, LEARNT_KS):
            found[f"units-{kept:g}-{k}"] = lambda kept=kept, k=k: self.row(
                self.learnt(kept, k), "units + Pr + learnt CWS", "per layer", k
            )
        for sparsity, ks in KS.items():
            for k, quantizer, scope in itertools.product(ks, QUANTIZERS, SCOPES):
                found[f"{quantizer}-{scope}-{sparsity:g}-{k}"] = functools.partial(
                    self.shared, sparsity, quantizer, k, scope
                )
        return found

    def rows(self) -> list[Row]:
        """Return all rows, those that are not there yet worked out."""
        works = self.works()
        rows = []
        for number, (name, work) in enumerate(works.items(), 1):
            rows += self.cache.rows(f"row-{name}", lambda work=work: [work()])
            self.advance(name, number, len(works))
        return rows
