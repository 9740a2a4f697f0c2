"""Whole DeepDTAs, compressed as `wholes` says; the letters' values are learnt, too."""

from __future__ import annotations

import stepwise
import torch
from affinity import Blocks
from deepdta_head import AffinityHeads
from deepdta_training import GROUPS, Paired, head_of, measures
from heads import Row
from networks import DeepDTA
from torch import Tensor, nn
from wholes import Wholes

SPARSITIES = (0.3, 0.6, 0.85)  # of convolutions
# What the linear layers keep, and a sparsity of convolutions.
ROWS = {
    "davis": ((0.1, 0.3), (0.1, 0.6), (0.06, 0.85)),
    "kiba": ((0.3, 0.3), (0.2, 0.3), (0.2, 0.6)),
}
EPOCHS = {"davis": 6, "kiba": 2}  # after each step
LR = 3e-4


class AffinityWholes(Wholes):
    """The rows of one data set's whole networks."""

    learnt_layers = ("*", "embedding:*")

    def __init__(self, net: DeepDTA, heads: AffinityHeads, name: str) -> None:
        """Begin with the trained network and its pruned heads."""
        super().__init__(net, heads, SPARSITIES, ROWS[name])
        self.data, self.pairs, self.name = heads.data, heads.pairs, name

    def model(self, net: nn.Module) -> nn.Module:
        """Return a network that takes the drugs and proteins of a batch, and which are paired."""
        return Paired(net)

    def net_of(self, model: nn.Module) -> nn.Module:
        """Return the network of what was trained."""
        return model.net

    def train(self, model: nn.Module, what: str, seed: int) -> None:
        """Train all of a network for the epochs of a step, whatever it is."""
        blocks = Blocks(
            self.data.drugs, self.data.proteins, self.pairs, groups=GROUPS[self.name], seed=seed
        )
        stepwise.train(
            model,
            blocks,
            steps=EPOCHS[self.name] * len(blocks),
            optimizer=torch.optim.Adam(model.parameters(), fused=True),
            lr=LR,
            loss=blocks.loss,
            seed=seed,
        )

    def examples(self, count: int) -> tuple[Tensor, ...]:
        """Return the drugs and the proteins of the first test pairs."""
        drug, protein = self.data.test.places[:count].unbind(1)
        return self.data.drugs[drug], self.data.proteins[protein]

    def measure(self, net: nn.Module) -> Row:
        """Return the errors of a network, and its concordance."""
        return measures(head_of(net, self.data), self.data)
