"""Models for several tests; one with every kind of layer, in this and in another process."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tersenet.compression import compress
from tersenet.plan import Plan, Rule


class Tied(nn.Module):
    """An embedding and a head that are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.emb(ids))


class SmallNet(nn.Module):
    """Embedding, convolutions, norm, linear layers, and a head tied to the embedding."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(60, 24)
        self.conv1 = nn.Conv1d(24, 24, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm1d(24)
        self.conv2 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.body = nn.Sequential(nn.Linear(24 * 32, 48), nn.ReLU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, 60)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.conv1(self.embedding(ids).movedim(-1, 1)))
        x = self.conv2(x.unsqueeze(1)).amax(-1).flatten(1)
        return self.head(self.body(x))

    @staticmethod
    def example() -> Tensor:
        return torch.arange(28).reshape(4, 7) * 7 % 60


def small_net() -> nn.Module:
    """The model pruned, quantized and compressed, in evaluation mode."""
    plan = Plan({"*": Rule(sparsity=0.9, quantizer="cws", k=8)})
    return compress(SmallNet().eval(), plan)


def copies(model: nn.Module) -> Iterator[nn.Module]:
    """The model deep-copied, pickled, and through torch.save."""
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))
    yield torch.load(stream, weights_only=False)
