"""Make the seeds of the target `network`: small files that hold networks of every operator.

    python tests/fuzz/networks.py

Run it when an operator was added; files that are there stay as they are. A test of the core checks
that every operator is in one of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tersenet

FOLDER = Path(__file__).parent / "corpus" / "network"


class Call(nn.Module):
    """A function as a model, with what weights it takes."""

    def __init__(self, function, **weights: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in weights.items():
            setattr(self, name, module)

    def forward(self, *inputs: Tensor):
        return self.function(self, *inputs)


def convolutions(self, x: Tensor) -> Tensor:
    x = F.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
    x = self.second(x)
    return self.head(F.avg_pool2d(x, 2).flatten(1))


def generator(self, x: Tensor) -> Tensor:
    x = torch.tanh(self.up(x))
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    x = F.interpolate(x, scale_factor=2, mode="bilinear")
    return torch.sigmoid(F.pad(x, (1, 0, 0, 1), value=0.5))


def attention(self, ids: Tensor) -> Tensor:
    x = self.embedding(ids) + torch.arange(8.0).reshape(1, 1, 8)
    q, k, v = (m(x).reshape(-1, 4, 2, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
    x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 4, 8)
    return F.log_softmax(self.norm(x)[:, -1], -1)


def shapes(self, x: Tensor, y: Tensor):
    z = torch.cat([x, y.expand(-1, 3, 4)], 1)
    z = z.permute(0, 2, 1) @ z
    z = torch.maximum(z * 2, z / 3) - y[:, :, :1]
    return z.softmax(-1), z.mean(1), z.amax(2), x[:, 1:, ::2]


def pools(self, x: Tensor):
    x = self.groups(x)
    return F.adaptive_avg_pool2d(x, (2, 3)), F.adaptive_max_pool2d(x, 2), F.gelu(x).sum((2, 3))


NETWORKS = {
    "convolutions": (
        Call(
            convolutions,
            first=nn.Conv2d(2, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            second=nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False),
            head=nn.Linear(6, 3),
        ),
        (torch.randn(2, 2, 10, 10),),
    ),
    "generator": (
        Call(generator, up=nn.ConvTranspose2d(3, 2, 3, stride=2)),
        (torch.randn(2, 3, 3, 2),),
    ),
    "attention": (
        Call(
            attention,
            embedding=nn.Embedding(7, 8),
            q=nn.Linear(8, 8),
            k=nn.Linear(8, 8),
            v=nn.Linear(8, 8, bias=False),
            norm=nn.LayerNorm(8),
        ),
        (torch.arange(8).reshape(2, 4) % 7,),
    ),
    "shapes": (Call(shapes), (torch.randn(2, 3, 4), torch.randn(2, 1, 4))),
    "pools": (Call(pools, groups=nn.GroupNorm(2, 4)), (torch.randn(2, 4, 5, 6),)),
    "affine": (
        Call(lambda self, x: self.norm(x) ** 2, norm=nn.BatchNorm1d(5)),
        (torch.randn(2, 5),),
    ),
    "text": (
        Call(
            lambda self, ids: self.conv(self.embedding(ids).mT).amax(-1),
            embedding=nn.Embedding(6, 4),
            conv=nn.Conv1d(4, 5, 3),
        ),
        (torch.arange(14).reshape(2, 7) % 6,),
    ),
    # Of a length that is loaded with decoded weights kept.
    "letters": (
        Call(
            lambda self, ids: torch.relu(self.conv(self.embedding(ids).mT)),
            embedding=nn.Embedding(4, 6),
            conv=nn.Conv1d(6, 3, 3, stride=2, padding=1),
        ),
        (torch.arange(18).reshape(2, 9) % 4,),
    ),
}


def quantized(model: nn.Module) -> nn.Module:
    """Leave a few values of each weight, half of them zero."""
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.dim() > 1):
            weight.copy_(torch.round(weight * 6).clamp(-2, 2) / 4)
    return model.eval()


def main() -> None:
    """Write the networks that are not there yet."""
    torch.manual_seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (model, inputs) in NETWORKS.items():
        path = FOLDER / f"{name}.terse"
        if not path.exists():
            tersenet.export(tersenet.compress(quantized(model)), inputs, path)
            print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
