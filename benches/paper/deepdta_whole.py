"""A whole DeepDTA compressed: its pruned hidden units, and then its convolutions and letters.

::

    network with a pruned head of `deepdta_head`
    for each sparsity: convolutions pruned by magnitude, all that is left trained
    values of all layers, letters too, learnt while the weights move between them
    export, with hidden units that were left out as zeros

A row's bytes are those of the whole file. Its errors are those of the torch network; what the file
computes is compared with that before it counts.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import numpy as np
import stepwise
import timing
import torch
from affinity import Affinities, Blocks
from deepdta_head import Heads, Row, dense_nbytes, linears, nbytes_of, widened
from deepdta_training import GROUPS, SEED, Paired, head_of, measures
from networks import DeepDTA
from torch import Tensor, nn

import tersenet
from tersenet.parametrization import unparametrize
from tersenet.plan import Plan, Rule
from tersenet.pruning import prune
from tersenet.quantization import prepare_qat

SPARSITIES = (0.3, 0.6, 0.85)  # of convolutions
K = 16
ROWS = (
    (0.1, 0.3),
    (0.1, 0.6),
    (0.06, 0.85),
)  # what the linear layers keep, and a sparsity of convolutions
EPOCHS = {"davis": 6, "kiba": 2}  # after each step
LR = 3e-4
BATCHES = (1, 32)

_CHECKED = 64  # pairs
_TOLERANCE = 1e-3


def whole_nbytes(net: nn.Module) -> int:
    """Return the bytes of all parameters as float32."""
    return 4 * sum(parameter.numel() for parameter in net.parameters())


def plain(net: DeepDTA) -> DeepDTA:
    """Return a copy with plain weights and all hidden units, for export."""
    found = copy.deepcopy(net).eval()
    unparametrize(found)
    found.fc = widened(found.fc)
    return found.eval()


def texts_of(data: Affinities, count: int) -> tuple[Tensor, Tensor]:
    """Return the drugs and the proteins of the first test pairs, as the network takes them."""
    drug, protein = data.test.places[:count].unbind(1)
    return data.drugs[drug], data.proteins[protein]


def export(net: DeepDTA, data: Affinities, path: Path) -> int:
    """Export a plain network, and check what its file computes; return the bytes.

    Raises:
        RuntimeError: if the file computes something else.
    """
    nbytes = tersenet.export(net, (data.drugs[:2], data.proteins[:2]), path, goal="size")
    texts = texts_of(data, _CHECKED)
    with torch.no_grad():
        expected = net(*texts).numpy()
    found = tersenet.Network.load(path).run(*(part.numpy() for part in texts))
    away = float(np.abs(found - expected).max())
    if not away < _TOLERANCE:
        raise RuntimeError(f"{path} is {away:.2g} away from torch, expected {_TOLERANCE:g} at most")
    return nbytes


class Wholes:
    """The rows of one data set's whole networks."""

    def __init__(self, net: DeepDTA, heads: Heads, name: str) -> None:
        """Begin with the trained network and its pruned heads."""
        self.net, self.heads, self.name = net, heads, name
        self.data, self.cache = heads.data, heads.cache

    def train(self, model: Paired) -> None:
        """Train all of a network for the epochs of a step."""
        blocks = Blocks(
            self.data.drugs,
            self.data.proteins,
            self.heads.pairs,
            groups=GROUPS[self.name],
            seed=SEED,
        )
        stepwise.train(
            model,
            blocks,
            steps=EPOCHS[self.name] * len(blocks),
            optimizer=torch.optim.Adam(model.parameters(), fused=True),
            lr=LR,
            loss=blocks.loss,
            seed=SEED,
        )

    def pruned(self, kept: float, sparsity: float) -> Paired:
        """Return the network with a head that keeps so much, and convolutions of a sparsity."""
        model = Paired(copy.deepcopy(self.net))
        model.net.fc = self.heads.rung(kept).fc
        for step in [each for each in SPARSITIES if each <= sparsity]:

            def work(step: float = step) -> None:
                prune(model, Plan({"conv:*": Rule(sparsity=step)}))
                self.train(model)

            self.cache.stage(f"whole-{kept:g}-{step:g}", model, work)
        return model

    def learnt(self, kept: float, sparsity: float) -> DeepDTA:
        """Return the plain network with values that were learnt for all layers."""
        model = self.pruned(kept, sparsity)
        unparametrize(model)

        def work() -> None:
            rule = Rule(quantizer="cws", k=K)
            prepare_qat(model, Plan({"*": rule, "embedding:*": rule}, seed=SEED))
            self.train(model)
            unparametrize(model)

        self.cache.stage(f"whole-{kept:g}-{sparsity:g}-{K}", model, work)
        return plain(model.net)

    def row(self, kept: float, sparsity: float) -> Row:
        """Measure a whole network and its file."""
        net = self.learnt(kept, sparsity)
        path = self.cache.folder / f"whole-{kept:g}-{sparsity:g}.terse"
        nbytes = export(net, self.data, path)
        names = [f"fc.{name}" for name in linears(net.fc)]
        fc = dense_nbytes(net.fc)
        return {
            "method": "units + Pr + learnt CWS, whole network",
            "scope": "per layer",
            "sparsity": 1 - kept,
            "conv_sparsity": sparsity,
            "k": K,
            "nbytes": nbytes,
            "occupancy": nbytes / whole_nbytes(net),
            "fc_occupancy": nbytes_of(path, [f"{name}.weight" for name in names]) / fc,
            **measures(head_of(net, self.data), self.data),
        }

    def rows(self) -> dict[tuple[float, float], Row]:
        """Return all rows by what they keep, those that are not there yet worked out."""
        rows = {}
        for number, which in enumerate(ROWS, 1):
            name = _row_name(which)
            (rows[which],) = self.cache.rows(name, lambda which=which: [self.row(*which)])
            self.heads.advance(name, number, len(ROWS))
        return rows

    @functools.cached_property
    def finished(self) -> dict[tuple[float, float], Row]:
        """The rows by what they keep that are there when this is asked for first."""
        there = [which for which in ROWS if self.cache.has_rows(_row_name(which))]
        return {which: self.cache.rows(_row_name(which), list)[0] for which in there}


def _row_name(which: tuple[float, float]) -> str:
    return "row-whole-" + "-".join(f"{part:g}" for part in which)


def speeds(net: DeepDTA, path: Path, data: Affinities) -> dict[str, dict[str, float]]:
    """Return milliseconds of the file and of its dense torch form, by what it is and the batch."""
    network = tersenet.Network.load(path, "cached")
    found = {}
    for batch in BATCHES:
        texts = texts_of(data, batch)
        arrays = [part.numpy() for part in texts]

        def dense(texts: tuple[Tensor, Tensor] = texts) -> None:
            with torch.no_grad():
                net(*texts)

        times = timing.interleaved(
            {
                "torch": dense,
                "Network": lambda arrays=arrays: network.run(*arrays, threads=1),
            }
        )
        found |= {f"{what}, batch {batch}": values for what, values in times.items()}
    return found
