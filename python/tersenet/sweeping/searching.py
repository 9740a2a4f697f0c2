"""Settings proposed by Optuna, toward few bytes and large accuracy at once.

::

    until there are `trials` proposals:
        ask for `batch` settings                          # one after the other, nothing told between
        let them be tried, or look up what was tried before
        tell Optuna bytes and accuracy, in the order of the proposals

Why in batches: what a sampler proposes depends on what it was told before, so with one worker more
or less a sweep would go another way. A batch is told when all of it is there, in order; then the
number of workers and the order in which they end change nothing, and a sweep that was killed goes
through the same proposals again, finding those that were tried in its results.

Numbers that are listed are proposed by their place in the list, names without an order.

Price: workers wait for the slowest trial of a batch; some ms a proposal.

Source: T. Akiba et al. 2019, "Optuna"; TPE for several objectives: Y. Ozaki et al. 2022; NSGA-II: K.
Deb et al. 2002.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tersenet.sweeping.results import Trial
from tersenet.sweeping.space import Range, Search, Settings, Space, Value, completed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class Searcher:
    """Proposes settings of a space, a batch at a time."""

    def __init__(self, space: Space, search: Search) -> None:
        """Make Optuna's study.

        Raises:
            ImportError: if Optuna is not installed.
        """
        try:
            import optuna
        except ImportError as error:
            raise ImportError(
                "a search needs Optuna: pip install 'tersenet[search]'", name="optuna"
            ) from error
        samplers: dict[str, Any] = {
            "tpe": optuna.samplers.TPESampler,
            "nsgaii": optuna.samplers.NSGAIISampler,
            "random": optuna.samplers.RandomSampler,
        }
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            sampler=samplers[search.sampler](seed=search.seed), directions=["minimize", "maximize"]
        )
        optuna.logging.set_verbosity(before)
        self._choices = space.choices
        self._distributions = {n: _distribution(c) for n, c in space.choices.items()}
        self._left, self._batch = search.trials, search.batch
        self._asked: list[Any] = []

    def ask(self) -> list[Settings]:
        """Return the next proposals, in order, some perhaps twice; none where all were made."""
        count = min(self._batch, self._left)
        self._left -= count
        self._asked = [self._study.ask(self._distributions) for _ in range(count)]
        return [self._settings(asked.params) for asked in self._asked]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take what the last proposals came to, in the same order."""
        for asked, trial in zip(self._asked, trials, strict=True):
            self._study.tell(asked, (float(trial.nbytes), trial.accuracy))

    def _settings(self, proposed: dict[str, Any]) -> Settings:
        settings: Settings = {}
        for name, choice in self._choices.items():
            if isinstance(choice, Range) or not _is_ordered(choice):
                settings[name] = proposed[name]
            else:
                settings[name] = choice[proposed[name]]
        return completed(settings)


def _distribution(choice: tuple[Value, ...] | Range) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not isinstance(choice, Range):
        if _is_ordered(choice):
            return IntDistribution(0, len(choice) - 1)
        return CategoricalDistribution(choice)
    if isinstance(choice.low, int) and isinstance(choice.high, int):
        return IntDistribution(choice.low, choice.high, choice.log, int(choice.step or 1))
    return FloatDistribution(choice.low, choice.high, choice.log, choice.step)


def _is_ordered(choice: tuple[Value, ...]) -> bool:
    return all(type(value) in (int, float) for value in choice)
