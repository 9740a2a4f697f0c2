"""The linear layers of a DeepDTA, compressed while its convolutions stay as they are.

::

    features of all drugs and proteins, once; everything trains on affinities that are half the known
    ones and half the dense network's, and on what that says of mixtures
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stepwise
import torch
import torch.nn.functional as F
from affinity import Affinities, Pairs
from cache import Cache
from deepdta_training import SEED, Head, head_of, measures, predict
from networks import DeepDTA
from torch import Tensor, nn

import tersenet
from tersenet.files import Level
from tersenet.parametrization import unparametrize
from tersenet.plan import Plan
from tersenet.pruning import prune, taylor_scores
from tersenet.pruning.stages import Progress
from tersenet.quantization import prepare_qat, quantize
from tersenet.training import TensorBatches
from tersenet.training.loop import in_mode

FULL = (1024, 1024, 512)  # hidden units
SCOPES = {"per layer": "layer", "unified": "kind"}
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
QUANTIZERS = ("cws", "pws", "uq", "ecsq")
KS = {0.0: (2, 8, 16, 32, 64, 128, 256), 0.6: (32,), 0.9: (2, 8, 32), 0.97: (8, 32)}

WIDTHS = (384, 384, 192)
KEPT = (0.1, 0.06, 0.04, 0.025, 0.015, 0.01)  # of all weights of the full layers
LEARNT_KS = (16, 8)

STEPS = {"pruning": 60, "sharing": 20, "units": 600, "rung": 600, "learning": 300}
LR = {"pruning": 1e-3, "sharing": 3e-4, "units": 1e-3, "rung": 1e-3, "learning": 5e-4}
LONGER = {"units", "rung", "learning"}  # as many times these steps as there are pairs of DAVIS

_BATCH_SIZE = 256
_DAVIS = 20_037  # pairs
_LABELS = 0.5  # of an answer
_SCORED = 8  # batches

Row = dict[str, Any]


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


def fc_nbytes(fc: nn.Sequential, level: Level) -> int:
    """Return the bytes of the four weights in a file for size, with archives of a level."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fc.terse")
        tersenet.export(fc, torch.zeros(2, fc[0].in_features), path, goal="size", level=level)
        return nbytes_of(path, [f"{name}.weight" for name in linears(fc)])


def dense_nbytes(fc: nn.Sequential) -> int:
    """Return the bytes of the weights as dense float32."""
    return 4 * sum(layer.weight.numel() for layer in linears(fc).values())


@torch.no_grad()
def taught(teacher: Head, pairs: Pairs) -> Pairs:
    """Return pairs whose affinities are half the known ones and half the teacher's answers."""
    known = torch.lerp(predict(teacher, pairs), pairs.affinities, _LABELS)
    return Pairs(pairs.places, known)


@torch.no_grad()
def with_mixtures(teacher: Head, pairs: Pairs) -> TensorBatches:
    """Return batches of features [pairs, 192] and of answers [pairs, 1] that a head is to give.

    They are of the pairs, and of as many mixtures of two drugs with mixtures of two proteins, which
    no network has learnt by heart: there the answer is the teacher's.
    """
    generator = torch.Generator().manual_seed(SEED)

    def mixed(read: Tensor) -> Tensor:
        two = torch.randint(len(read), (2, len(pairs)), generator=generator)
        return torch.lerp(*read[two], torch.rand(len(pairs), 1, generator=generator))

    drug, protein = pairs.places.unbind(1)
    read = torch.cat([teacher.drugs[drug], teacher.proteins[protein]], 1)
    mixtures = torch.cat([mixed(teacher.drugs), mixed(teacher.proteins)], 1)
    with in_mode(teacher, training=False):
        answers = torch.cat([teacher.fc(part) for part in mixtures.split(1024)])
    return TensorBatches(
        torch.cat([read, mixtures]),
        torch.cat([pairs.affinities[:, None], answers]),
        batch_size=_BATCH_SIZE,
        seed=SEED,
    )


class Heads:
    """The rows of one data set's linear layers."""

    def __init__(self, net: DeepDTA, data: Affinities, cache: Cache, advance: Progress) -> None:
        """Read all drugs and proteins by the trained network."""
        self.data, self.cache, self.advance = data, cache, advance
        self.head = head_of(net, data)
        self.pairs = taught(self.head, data.train)

    @functools.cached_property
    def batches(self) -> TensorBatches:
        """Features [pairs, 192] and what to answer, training pairs and as many mixtures."""
        return with_mixtures(self.head, self.pairs)

    def train(self, head: Head, what: str) -> None:
        """Train a head for the steps of a stage."""
        stepwise.train(
            head.fc,
            self.batches,
            steps=STEPS[what] * (len(self.pairs) // _DAVIS if what in LONGER else 1),
            optimizer=torch.optim.Adam(head.fc.parameters(), fused=True),
            lr=LR[what],
            loss=F.mse_loss,
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
        level: Level = "best" if "units" in method else "fast"
        nbytes = dense if method == "dense" else fc_nbytes(plain.fc, level)
        return {
            "method": method,
            "scope": scope,
            "sparsity": 1 - 4 * kept / dense,
            "k": k,
            "nbytes": nbytes,
            "occupancy": nbytes / dense,
            **measures(plain, self.data),
        }

    def pruned(self, scope: str, sparsity: float) -> Head:
        """Return the head of a sparsity, pruned from the one before it and trained."""
        head = copy.deepcopy(self.head)
        for step in [each for each in SPARSITIES if each <= sparsity]:
            self.cache.stage(
                f"pruned-{scope}-{step:g}", head, lambda step=step: self._prune(head, scope, step)
            )
        return head

    def _prune(self, head: Head, scope: str, sparsity: float) -> None:
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
    def narrow(self) -> Head:
        """The head of the hidden units that score most, trained."""
        head = copy.deepcopy(self.head)
        scores = taylor_scores(head.fc, itertools.islice(self.batches, _SCORED), F.mse_loss)
        units = [
            torch.from_numpy(np.sort(np.argsort(-scores[name].sum(1))[:width]))
            for name, width in zip(linears(head.fc), WIDTHS, strict=False)
        ]
        head.fc = with_units(head.fc, units, WIDTHS)
        self.cache.stage("units", head, lambda: self.train(head, "units"))
        return head

    def rung(self, kept: float) -> Head:
        """Return the narrow head that keeps this part of the full layers' weights."""
        head = copy.deepcopy(self.narrow)
        whole, narrow = dense_nbytes(self.head.fc), dense_nbytes(head.fc)
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
        unparametrize(head)

        def work() -> None:
            prepare_qat(head, Plan.of(quantizer="cws", k=k, seed=SEED))
            self.train(head, "learning")
            unparametrize(head)

        self.cache.stage(f"learnt-{kept:g}-{k}", head, work)
        return head

    def works(self) -> dict[str, Callable[[], Row]]:
        """Return what gives each row, by a name for it."""
        found: dict[str, Callable[[], Row]] = {
            "dense": lambda: self.row(self.head, "dense", None, None)
        }
        for kept in KEPT:
            found[f"units-{kept:g}"] = functools.partial(self._units, kept, None)
        for kept, k in itertools.product(KEPT, LEARNT_KS):
            found[f"units-{kept:g}-{k}"] = functools.partial(self._units, kept, k)
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
