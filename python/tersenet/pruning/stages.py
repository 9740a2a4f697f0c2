"""The trainings of a pruning run that goes in rounds, and the seed of each.

Each training draws from a seed of its own, made from that of the run and its place, so that a run
that was interrupted goes on from the last training that ended, to the bits that it would have found
without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

Phase = Literal["admm", "retraining"]
PHASES: tuple[Phase, ...] = ("admm", "retraining")

Validate = Callable[[nn.Module], float]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stage:
    """One training of one candidate; `seed` is for everything random in it, in [0, 2**32)."""

    round: int
    candidate: int
    phase: Phase
    seed: int


def stage_of(seed: int, number: int, candidate: int, phase: Phase) -> Stage:
    """Return the training of a candidate of the round of this number, in a run of this seed."""
    place = (seed, number, candidate, PHASES.index(phase))
    drawn = int(np.random.SeedSequence(place).generate_state(1)[0])
    return Stage(number, candidate, phase, drawn)


def seed_of(seed: int | torch.Generator, method: str) -> int:
    """Return the seed of a run, drawn from a generator where one is given.

    Raises:
        ValueError: if it is not in [0, 2**63).
    """
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**63 - 1, (), generator=seed, device=seed.device))
    if not 0 <= seed < 2**63:
        raise ValueError(f"{method}: seed is {seed}, expected an integer in [0, 2**63)")
    return seed
