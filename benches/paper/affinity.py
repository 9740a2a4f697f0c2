"""Affinities of drugs and proteins: DAVIS and KIBA, as DeepDTA takes them.

A drug is a SMILES string, a protein its sequence of residues, both as codes of letters, cut or
filled with zeros to one length. There are few of each and many pairs, so a batch is a block: some
proteins, some drugs, and all pairs of the two that are in the fold.

Source: Öztürk et al. 2018, "DeepDTA: deep drug-target binding affinity prediction".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch import Tensor

# Letters by code, from 1; 0 fills.
SMILES = "(.02468@BDFHLNPRTVZ\\bdfhlnrt#%)+-/13579=ACEGIKMOSUWY[]acegimosuy"
RESIDUES = "ACBEDGFIHKMLONQPSRUTWVYXZ"
LENGTHS = {"davis": (85, 1200), "kiba": (100, 1000)}  # of drugs and proteins
VALIDATION = "train4"  # of five training folds


@dataclass(frozen=True)
class Pairs:
    """Pairs of a fold: which drug and which protein, int64 [pairs, 2], and float32 [pairs]."""

    places: Tensor
    affinities: Tensor

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.affinities)


@dataclass(frozen=True)
class Affinities:
    """Codes of all drugs and proteins, int64 [count, length], and the pairs of each fold."""

    drugs: Tensor
    proteins: Tensor
    train: Pairs
    validation: Pairs
    test: Pairs


def codes(texts: list[str], letters: str, length: int) -> Tensor:
    """Return the codes of the first letters of each text, int64 [texts, length].

    Raises:
        ValueError: if a letter has no code.
    """
    found = np.zeros((len(texts), length), np.int64)
    for row, text in zip(found, texts, strict=True):
        if stray := set(text) - set(letters):
            raise ValueError(
                f"affinity: {text[:20]}… has {min(stray)!r}, expected one of {letters}"
            )
        row[: len(text)] = [letters.index(letter) + 1 for letter in text[:length]]
    return torch.from_numpy(found)


def load(name: str) -> Affinities:
    """Return "davis", with -log10 of Kd in mol/l, or "kiba", with its scores.

    Raises:
        ValueError: if the folds are no partition of the known affinities.
    """
    folder = Path(os.environ["TERSENET_DATA"], "deepdta", name)
    known = np.load(folder / "Y.npz")["Y"]
    rows, columns = np.nonzero(~np.isnan(known))
    values = known[rows, columns]
    if name == "davis":
        values = 9 - np.log10(values)
    folds = dict(np.load(folder / "folds_setting1.npz"))
    if sorted(np.concatenate(list(folds.values()))) != list(range(len(rows))):
        raise ValueError(f"{folder}: expected folds that have each of {len(rows)} pairs once")

    def pairs(*names: str) -> Pairs:
        chosen = np.concatenate([folds[name] for name in names])
        places = np.stack([rows[chosen], columns[chosen]], 1)
        return Pairs(torch.from_numpy(places), torch.from_numpy(values[chosen].astype(np.float32)))

    texts = [
        list(json.loads((folder / f"{kind}.txt").read_text()).values())
        for kind in ("ligands_can", "proteins")
    ]
    learnt = sorted(name for name in folds if name not in ("test", VALIDATION))
    return Affinities(
        codes(texts[0], SMILES, LENGTHS[name][0]),
        codes(texts[1], RESIDUES, LENGTHS[name][1]),
        pairs(*learnt),
        pairs(VALIDATION),
        pairs("test"),
    )


class Blocks:
    """Batches of training pairs: the proteins of each epoch in groups, the drugs of each too.

    A batch is ((drugs, proteins, drug of each pair, protein of each pair), affinities), the first
    two as what they are chosen from. All pairs of an epoch are in one batch each. Blocks differ in
    their number of pairs, so `loss` divides by the mean number: every pair weighs the same.
    """

    def __init__(
        self,
        drugs: Tensor,
        proteins: Tensor,
        pairs: Pairs,
        *,
        groups: tuple[int, int],
        seed: int,
    ) -> None:
        """Keep the tensors [count, …]; `groups` are how many of drugs and of proteins."""
        self._drugs, self._proteins, self._pairs, self._groups = drugs, proteins, pairs, groups
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of blocks; those without pairs are no batches."""
        return self._groups[0] * self._groups[1]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of squared errors of a batch [pairs] over the mean number of pairs."""
        return (outputs - targets).square().sum() * (len(self) / len(self._pairs))

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]]:
        """Iterate over the batches of the next epoch."""
        drugs, proteins = (
            self._groups_of(len(of), count)
            for of, count in zip((self._drugs, self._proteins), self._groups, strict=True)
        )
        drug, protein = self._pairs.places.unbind(1)
        block = drugs[drug] * self._groups[1] + proteins[protein]
        members = block.argsort().split(torch.bincount(block, minlength=len(self)).tolist())
        for number in torch.randperm(len(self), generator=self._generator).tolist():
            chosen = members[number]
            if len(chosen):
                some, which = drug[chosen].unique(return_inverse=True)
                others, with_which = protein[chosen].unique(return_inverse=True)
                inputs = self._drugs[some], self._proteins[others], which, with_which
                yield inputs, self._pairs.affinities[chosen]

    def _groups_of(self, count: int, groups: int) -> Tensor:
        """Return the group of each, at random; their sizes differ by one at most."""
        return torch.randperm(count, generator=self._generator) % groups


def concordance(affinities: np.ndarray, predictions: np.ndarray) -> float:
    """Return the concordance index: of two unequal affinities, how often the larger is predicted so.

    Equal predictions count half. With n(n - 1) / 2 = all pairs and Kendall's tau b::

        concordant - discordant = tau b * sqrt((all - ties of one) * (all - ties of the other))
        index = 1/2 + (concordant - discordant) / (2 * (all - ties of affinities))

    Args:
        affinities: float [pairs], not all equal.
        predictions: float [pairs].
    """

    def untied(values: np.ndarray) -> int:
        counts = np.unique(values, return_counts=True)[1].astype(np.int64)
        return (len(values) * (len(values) - 1) - int((counts * (counts - 1)).sum())) // 2

    comparable, ranked = untied(affinities), untied(predictions)
    if ranked == 0:
        return 0.5
    tau = scipy.stats.kendalltau(affinities, predictions).statistic
    return float(0.5 + 0.5 * tau * np.sqrt(ranked / comparable))
