"""What a sweep found: a row for each trial, the fronts of bytes and accuracy, and a choice.

::

    a trial is on the front     unless another has no more bytes and no less accuracy, and is
                                better in one of them
    choose(max_drop)            of the trials within max_drop of the dense model's accuracy, that
                                of the fewest bytes

Only files are read here, so neither torch nor NumPy is needed to look at results.

Price: sorting, O(n log n) in the number of trials.

Source: V. Pareto's optimality; the front of two objectives by one sweep over the sorted points: Kung,
Luccio and Preparata 1975, "On finding the maxima of a set of vectors".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from tersenet.files import Path
from tersenet.plan import Plan
from tersenet.reporting import Table
from tersenet.sweeping.space import Settings, plan_of

COSTS = ("nbytes", "bits_per_weight", "density", "seconds")


@dataclass(frozen=True)
class Layer:
    """One weight of a trial's model, as it is in the file.

    `kind` is the layer's type, `layout` "plain" for what is no compressed matrix and "tied" for the
    weight of a layer before it; `nbytes` are as stored, without a codebook that is coded with
    others; `entropy_bits` is of order 0, see `tersenet.report`; `reason` says why a weight is dense.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    k: int | None
    layout: str
    coder: str | None
    nbytes: int
    bits_per_weight: float
    entropy_bits: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Trial:
    """One trial: its settings, and what they came to.

    `number` is its place in the grid or among the proposals. `nbytes` are those of the whole file,
    `bits_per_weight` eight times that for each number of a weight, `density` the fraction of the
    weights that is kept, `accuracy` the measure on the validation data. Trials are equal whatever
    `seconds` they took.
    """

    number: int
    settings: Settings
    nbytes: int
    accuracy: float
    bits_per_weight: float
    density: float
    seconds: float = field(compare=False)
    layers: tuple[Layer, ...] = field(default=(), repr=False)

    @property
    def plan(self) -> Plan:
        """The plan to `compress` by; of training it says nothing."""
        return plan_of(self.settings)


@dataclass(frozen=True)
class Origin:
    """What a sweep is of; each may have results of its own only.

    `model` and `data` are digests, `space` is `Space.to_json`, `version` is tersenet's.
    """

    model: str
    data: str
    space: str
    version: str


@dataclass(frozen=True)
class Dense:
    """What the model was before: the measure on the validation data, and the bytes of its file."""

    accuracy: float
    nbytes: int


class Results(Table[Trial]):
    """The finished trials of a sweep, by number; prints as a table of the settings that differ.

    `dense` is what the model was before, `origin` what was swept, `varied` names the settings that
    are not the same in all of them.
    """

    def __init__(self, trials: Sequence[Trial], dense: Dense, origin: Origin) -> None:
        """Take the rows."""
        self.dense, self.origin = dense, origin
        names = dict.fromkeys(name for trial in trials for name in trial.settings)
        self.varied = tuple(n for n in names if len({t.settings.get(n) for t in trials}) > 1)
        super().__init__(trials, f"dense: {dense.nbytes:,} bytes, accuracy {dense.accuracy:.4f}")

    @classmethod
    def open(cls, path: Path) -> Results:
        """Read a file of results, finished or not, also while a sweep writes to it.

        Raises:
            OSError: if it cannot be read.
            FormatError: if it is no such file, or damaged.
        """
        from tersenet.sweeping.storing import ResultsFile

        with closing(ResultsFile(path, create=False)) as file:
            return file.results()

    def front(self, cost: str = "nbytes") -> Results:
        """Return the trials on the Pareto front, the least cost first; equal ones are all on it.

        Args:
            cost: what to have little of for the accuracy: "nbytes", "bits_per_weight", "density"
                or "seconds".

        Raises:
            ValueError: if the cost is none of these.
        """
        if cost not in COSTS:
            raise ValueError(f"sweep: cost is {cost!r}, expected one of {', '.join(COSTS)}")
        order = sorted(self, key=lambda t: (getattr(t, cost), -t.accuracy, t.number))
        front: list[Trial] = []
        for trial in order:
            last = front[-1] if front else None
            if (
                last is None
                or trial.accuracy > last.accuracy
                or (trial.accuracy, getattr(trial, cost)) == (last.accuracy, getattr(last, cost))
            ):
                front.append(trial)
        return Results(front, self.dense, self.origin)

    def fronts(self, by: str, cost: str = "nbytes") -> dict[Any, Results]:
        """Return a front for each value of a setting, as "codebook_scope" or "fc:*.quantizer".

        Raises:
            ValueError: if no trial has such a setting, or as `front`.
        """
        groups: dict[Any, list[Trial]] = {}
        for trial in self:
            if by in trial.settings:
                groups.setdefault(trial.settings[by], []).append(trial)
        if not groups:
            known = ", ".join(dict.fromkeys(name for trial in self for name in trial.settings))
            raise ValueError(f"sweep: no trial has a setting {by!r}, expected one of {known}")
        return {
            value: Results(trials, self.dense, self.origin).front(cost)
            for value, trials in groups.items()
        }

    def choose(self, *, max_drop: float) -> Trial:
        """Return the trial of the fewest bytes among those that lose no more accuracy.

        Of equal bytes that of the largest accuracy, then the first.

        Args:
            max_drop: how much less than the dense model's the accuracy may be, in its own unit:
                0.01 is a percentage point. Less than 0 asks for a gain.

        Raises:
            ValueError: if it is no finite number, or no trial is that good (it says the best).
        """
        if not math.isfinite(max_drop):
            raise ValueError(f"sweep: max_drop is {max_drop}, expected a finite number")
        good = [t for t in self if self.dense.accuracy - t.accuracy <= max_drop]
        if not good:
            best = max((t.accuracy for t in self), default=None)
            found = (
                "there is no trial" if best is None else f"the best of {len(self)} has {best:.4f}"
            )
            raise ValueError(
                f"sweep: {found}, expected at most {max_drop:g} under the dense model's "
                f"{self.dense.accuracy:.4f}"
            )
        return min(good, key=lambda t: (t.nbytes, -t.accuracy, t.number))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return each trial as a dict of plain values, its settings and layers within."""
        return [asdict(trial) for trial in self]

    def cells(self, row: Trial) -> Mapping[str, Any]:
        """Return what is printed of a trial."""
        return {
            "trial": row.number,
            **{name: _text(row.settings.get(name)) for name in self.varied},
            "nbytes": row.nbytes,
            "bits_per_weight": row.bits_per_weight,
            "density": row.density,
            "accuracy": f"{row.accuracy:.4f}",
            "seconds": row.seconds,
        }


def _text(value: object) -> str | None:
    return f"{value:g}" if isinstance(value, float) else None if value is None else str(value)
