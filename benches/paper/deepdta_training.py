"""Training DeepDTA: each drug and each protein of a batch is read once, whatever its pairs.

::

    first convolution of letters     = one of one-hot letters, by weights multiplied beforehand
    largest of the last convolution  = where it is, found without gradients; then only that window

Both compute what the network computes, in a fraction of the time.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from affinity import Affinities, Blocks, Pairs, concordance
from networks import DeepDTA
from torch import Tensor, nn

from tersenet.replacing import Replacing
from tersenet.training import fit
from tersenet.training.loop import in_mode

SEED = 0
LR = 1e-3
EPOCHS = {"davis": 60, "kiba": 30}
GROUPS = {"davis": (1, 55), "kiba": (11, 14)}  # of drugs and of proteins

_AT_ONCE = 8192  # letters


class Paired(nn.Module):
    """A DeepDTA that takes the drugs and proteins of a batch, and which of them are paired."""

    def __init__(self, net: DeepDTA) -> None:
        """Keep the network, whose parameters these are."""
        super().__init__()
        self.net = net

    def forward(self, drugs: Tensor, proteins: Tensor, drug: Tensor, protein: Tensor) -> Tensor:
        """Return the affinity of each pair, [pairs]."""
        read = (
            read_texts(self.net.drug, drugs)[drug],
            read_texts(self.net.protein, proteins)[protein],
        )
        return self.net.fc(torch.cat(read, 1))[:, 0]


class Head(nn.Module):
    """The linear layers of a DeepDTA, on features of all drugs and proteins."""

    def __init__(self, fc: nn.Sequential, drugs: Tensor, proteins: Tensor) -> None:
        """Keep the layers, whose parameters these are, and features [count, 96] of each."""
        super().__init__()
        self.fc = fc
        self.register_buffer("drugs", drugs, persistent=False)
        self.register_buffer("proteins", proteins, persistent=False)

    def forward(self, places: Tensor) -> Tensor:
        """Return the affinity of each pair, [pairs], for which drug and which protein [pairs, 2]."""
        read = self.drugs[places[:, 0]], self.proteins[places[:, 1]]
        return self.fc(torch.cat(read, 1))[:, 0]


def read_texts(branch: nn.ModuleDict, codes: Tensor) -> Tensor:
    """Return the features of texts, [texts, features], as `DeepDTA` reads them.

    Texts of like length are read together, up to the first window that has zeros alone: those
    after it are the same.
    """
    kernels = [conv.weight.shape[2] for conv in branch["convs"][::2]]
    lengths = codes.count_nonzero(1)
    order = lengths.argsort()
    reach = sum(kernels) - len(kernels) + 1
    parts = [
        _read_part(branch, codes[some, : int(lengths[some].max()) + reach])
        for some in order.split(_AT_ONCE // codes.shape[1])
    ]
    return torch.cat(parts)[order.argsort()]


def _read_part(branch: nn.ModuleDict, codes: Tensor) -> Tensor:
    first, _, *between, last, _ = branch["convs"]
    letters = branch["letters"].weight
    texts = F.one_hot(codes, len(letters)).transpose(1, 2).to(letters.dtype)
    x = F.conv1d(texts, torch.einsum("oek,le->olk", first.weight, letters), first.bias).relu()
    for layer in between:
        x = layer(x)
    weight = last.weight
    with torch.no_grad():
        start = F.conv1d(x, weight).argmax(2)  # [texts, features]
    window = start[:, :, None] + torch.arange(weight.shape[2])
    places = window.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    windows = x.gather(2, places).unflatten(2, window.shape[1:])
    return ((windows * weight.transpose(0, 1)).sum((1, 3)) + last.bias).relu()


@torch.no_grad()
def head_of(net: DeepDTA, data: Affinities) -> Head:
    """Return the linear layers of a network, on what it reads of all drugs and proteins."""
    return Head(net.fc, read_texts(net.drug, data.drugs), read_texts(net.protein, data.proteins))


@torch.no_grad()
def predict(head: Head, pairs: Pairs) -> Tensor:
    """Return the affinities that a head gives for pairs, [pairs]."""
    with in_mode(head, training=False):
        return torch.cat([head(places) for places in pairs.places.split(1024)])


def mse(head: Head, pairs: Pairs) -> float:
    """Return the mean squared error of a head."""
    return float(F.mse_loss(predict(head, pairs), pairs.affinities))


def measures(head: Head, data: Affinities) -> dict[str, float]:
    """Return the error on the validation fold, and error and concordance on the test fold."""
    found = predict(head, data.test)
    return {
        "validation": mse(head, data.validation),
        "mse": float(F.mse_loss(found, data.test.affinities)),
        "ci": concordance(data.test.affinities.numpy(), found.numpy()),
    }


def train_dense(net: DeepDTA, data: Affinities, name: str, path: Path) -> None:
    """Train from the start; of all epochs the weights stay that do best on the validation fold.

    A run that was stopped goes on from the last epoch's checkpoint at `path`.
    """
    epochs, blocks = EPOCHS[name], None
    model = Paired(net)
    with torch.no_grad():
        net.fc[-1].bias.fill_(data.train.affinities.mean())
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    steps = epochs * GROUPS[name][0] * GROUPS[name][1]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=steps, pct_start=0.05
    )
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    done, least, best = 0, float("inf"), copy.deepcopy(model.state_dict())
    if path.exists():
        state = torch.load(path, weights_only=True)
        done, least, best = state["done"], state["least"], state["best"]
        for part, of in parts.items():
            of.load_state_dict(state[part])
    for epoch in range(done, epochs):
        start = time.perf_counter()
        blocks = Blocks(
            data.drugs, data.proteins, data.train, groups=GROUPS[name], seed=SEED + epoch
        )
        losses = fit(
            model,
            blocks,
            epochs=1,
            optimizer=optimizer,
            loss=blocks.loss,
            scheduler=scheduler,
            scheduler_unit="step",
            seed=SEED + epoch,
        )
        error = mse(head_of(net, data), data.validation)
        if error < least:
            least, best = error, copy.deepcopy(model.state_dict())
        print(
            f"{name}, epoch {epoch + 1}: {losses[0]:.4f}, validation {error:.4f}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
        state = {part: of.state_dict() for part, of in parts.items()}
        with Replacing(path) as file:
            torch.save({**state, "done": epoch + 1, "least": least, "best": best}, file)
    model.load_state_dict(best)
