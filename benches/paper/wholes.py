"""A whole network compressed: its pruned hidden units, and then everything else.

::

    network with a pruned head of `heads`
    for each sparsity: convolutions pruned by magnitude, all that is left trained
    values of all layers learnt while the weights move between them, in cycles of the rate
    export, with hidden units that were left out as zeros

A row's bytes are those of the whole file. What it is worth is measured of the torch network; what the
file computes is compared with that before it counts.
"""

from __future__ import annotations

import abc
import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timing
import torch
from devices import CPU
from heads import SEED, Heads, Row, dense_nbytes, linears, nbytes_of
from torch import Tensor, nn

import tersenet
from tersenet.parametrization import unparametrize
from tersenet.plan import Plan, Rule
from tersenet.pruning import prune
from tersenet.quantization import prepare_qat

K = 16
BATCHES = (1, 32)
ROUNDS = 60  # of calls that are timed: what else a machine does comes and goes

_CHECKED = 64  # examples
_TOLERANCE = 1e-3  # of the largest output, or of 1

Which = tuple[float, float]


def whole_nbytes(net: nn.Module) -> int:
    """Return the bytes of all parameters as float32."""
    return 4 * sum(parameter.numel() for parameter in net.parameters())


class Wholes(abc.ABC):
    """The rows of one whole network: what the linear layers keep, and a sparsity of convolutions."""

    fc = "fc"  # what the network calls its linear layers
    learnt_layers: tuple[str, ...] = ("*",)  # whose values are learnt
    cycles = 1  # of learning them

    def __init__(
        self, net: nn.Module, heads: Heads, sparsities: Sequence[float], rows: Sequence[Which]
    ) -> None:
        """Begin with the trained network and its pruned heads."""
        self.net, self.heads, self.cache = net, heads, heads.cache
        self.sparsities, self._rows = sparsities, rows

    def model(self, net: nn.Module) -> nn.Module:
        """Return what is trained of a network."""
        return net

    def net_of(self, model: nn.Module) -> nn.Module:
        """Return the network of what was trained."""
        return model

    def plan(self, sparsity: float) -> Plan:
        """Return what prunes the convolutions."""
        return Plan({"conv:*": Rule(sparsity=sparsity)})

    @abc.abstractmethod
    def train(self, model: nn.Module, what: str, seed: int) -> None:
        """Train all of a network after a step of "pruning", or for a cycle of "learning" values."""

    @abc.abstractmethod
    def examples(self, count: int) -> tuple[Tensor, ...]:
        """Return inputs of the first test examples, on the processor."""

    @abc.abstractmethod
    def measure(self, net: nn.Module) -> Row:
        """Return what a plain network is worth: "validation", and what is reported."""

    def with_head(self, net: nn.Module, fc: nn.Sequential) -> nn.Module:
        """Put linear layers into a network, and return it."""
        setattr(net, self.fc, fc)
        return net

    def head_of(self, net: nn.Module) -> nn.Sequential:
        """Return the linear layers of a network."""
        return net.get_submodule(self.fc)

    def plain(self, net: nn.Module) -> nn.Module:
        """Return a copy with plain weights and all hidden units, for export."""
        found = copy.deepcopy(net).eval()
        unparametrize(found)
        return self.with_head(found, self.heads.full(self.head_of(found))).eval()

    def pruned(self, kept: float, sparsity: float) -> nn.Module:
        """Return the network with a head that keeps so much, and convolutions of a sparsity."""
        model = self.model(copy.deepcopy(self.net))
        self.with_head(self.net_of(model), self.heads.rung(kept).fc)
        for step in [each for each in self.sparsities if each <= sparsity]:

            def work(step: float = step) -> None:
                prune(model, self.plan(step))
                self.train(model, "pruning", SEED)

            self.cache.stage(f"whole-{kept:g}-{step:g}", model, work)
        return model

    def learnt(self, kept: float, sparsity: float) -> nn.Module:
        """Return the plain network with values that were learnt for all layers."""
        names = [f"whole-{kept:g}-{sparsity:g}-{K}"]
        names += [f"{names[0]}-{cycle}" for cycle in range(2, self.cycles + 1)]
        if self.cache.has_stage(names[-1]):
            model = self.model(copy.deepcopy(self.net))
            self.with_head(self.net_of(model), self.heads.rung(kept).fc)
            names = names[-1:]
        else:
            model = self.pruned(kept, sparsity)
        unparametrize(model)

        for cycle, name in enumerate(names):

            def work(cycle: int = cycle) -> None:
                rule = Rule(quantizer="cws", k=K)
                prepare_qat(model, Plan(dict.fromkeys(self.learnt_layers, rule), seed=SEED))
                self.train(model, "learning", SEED + cycle)
                unparametrize(model)

            self.cache.stage(name, model, work)
        return self.plain(self.net_of(model))

    def export(self, net: nn.Module, path: Path) -> int:
        """Export a plain network, and check what its file computes; return the bytes.

        Raises:
            RuntimeError: if the file computes something else.
        """
        nbytes = tersenet.export(net, self.examples(2), path, goal="size")
        inputs = self.examples(_CHECKED)
        with torch.no_grad():
            expected = net(*inputs).numpy()
        found = tersenet.Network.load(path).run(*(part.numpy() for part in inputs))
        away = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1))
        if not away < _TOLERANCE:
            raise RuntimeError(
                f"{path} is {away:.2g} away from torch, expected {_TOLERANCE:g} at most"
            )
        return nbytes

    def row(self, kept: float, sparsity: float) -> Row:
        """Measure a whole network and its file."""
        net = self.learnt(kept, sparsity)
        measured = self.measure(net)
        path = self.cache.folder / f"whole-{kept:g}-{sparsity:g}.terse"
        nbytes = self.export(net.to(CPU), path)
        fc = self.head_of(net)
        names = [f"{self.fc}.{name}.weight" for name in linears(fc)]
        return {
            "method": "units + Pr + learnt CWS, whole network",
            "scope": "per layer",
            "sparsity": 1 - kept,
            "conv_sparsity": sparsity,
            "k": K,
            "nbytes": nbytes,
            "occupancy": nbytes / whole_nbytes(net),
            "fc_occupancy": nbytes_of(path, names) / dense_nbytes(fc),
            **measured,
        }

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._rows)

    def rows(self) -> dict[Which, Row]:
        """Return all rows by what they keep, those that are not there yet worked out."""
        rows = {}
        for number, which in enumerate(self._rows, 1):
            name = _row_name(which)
            (rows[which],) = self.cache.rows(name, lambda which=which: [self.row(*which)])
            self.heads.advance(name, number, len(self))
        return rows

    @functools.cached_property
    def finished(self) -> dict[Which, Row]:
        """The rows by what they keep that are there when this is asked for first."""
        there = [which for which in self._rows if self.cache.has_rows(_row_name(which))]
        return {which: self.cache.rows(_row_name(which), list)[0] for which in there}

    def speeds(self, net: nn.Module, path: Path) -> dict[str, dict[str, float]]:
        """Return milliseconds of a file and of its dense torch form, by what it is and the batch."""
        network = tersenet.Network.load(path, "cached")
        found = {}
        for batch in BATCHES:
            inputs = self.examples(batch)
            arrays = [part.numpy() for part in inputs]

            def dense(inputs: tuple[Tensor, ...] = inputs) -> None:
                with torch.no_grad():
                    net(*inputs)

            times = timing.interleaved(
                {
                    "torch": dense,
                    "Network": lambda arrays=arrays: network.run(*arrays, threads=1),
                },
                ROUNDS,
            )
            found |= {f"{what}, batch {batch}": values for what, values in times.items()}
        return found


def _row_name(which: Which) -> str:
    return "row-whole-" + "-".join(f"{part:g}" for part in which)
