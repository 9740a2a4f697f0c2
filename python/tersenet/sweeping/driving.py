"""`sweep`: settings to trials, trials to workers, and what they find into one file, then a table.

::

    model = model_fn(); digests of model and data
    results of the same sweep?   go on with them;  of another: an error
    until the grid or the search ends:
        settings that are not in the file ──▶ workers ──▶ the file, each as it ends
    every trial, by number

What a trial finds depends on its settings, the model and the data alone: not on the worker, the
trials before it, or how often the sweep was killed. So fronts are the same to the bit for any
executor, where the processors have the same instructions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from typing import Any

from torch import nn

from tersenet import _core
from tersenet.files import Path
from tersenet.sweeping.results import Dense, Origin, Results, Trial
from tersenet.sweeping.running import Engine, Pool, Runner, Serial, Task
from tersenet.sweeping.space import Settings, Space, key_of
from tersenet.sweeping.storing import IN_MEMORY, ResultsFile
from tersenet.sweeping.trial import check, measure_dense
from tersenet.sweeping.work import Data, Work

Progress = Callable[[str, int, int], None]


def sweep(
    model_fn: Callable[[], nn.Module],
    data: Any,
    space: Space | Mapping[str, Any] | Path,
    executor: Executor | None = None,
    *,
    results: Path | None = None,
    workers: int | None = None,
    retries: int = 3,
    progress: Progress | None = None,
) -> Results:
    """Prune, quantize, train and save a model in every way of a space; return what each came to.

    A sweep that was interrupted goes on when it is called again with the same file, to the same
    results as one that was not; nothing in the file is done again. The model and the data are sent
    to each worker once, pickled: their classes and functions must be importable there.

    Args:
        model_fn: called once, here; returns a trained model on the CPU, which stays as it is.
        data: (training, validation), each batches as for `fit` and `evaluate`, training None where
            nothing trains; or `sweeping.Data`, with a loss and a measure of your own.
        space: a `Space`, a dict like one, or the path of a TOML file; see `tersenet.sweeping.space`.
        executor: runs the trials, as `sweeping.RayExecutor` or Dask's `client.get_executor()`; None
            is a pool of processes on this machine.
        results: the file to keep results in; None keeps them in memory.
        workers: how many processes the pool has, by default a core each; 0 runs the trials in this
            process.
        retries: how often a trial is tried again after its process in the pool was killed.
        progress: called with "trials", how many are finished, and how many there are.

    Raises:
        ImportError: if the space has a search and Optuna is not installed.
        OSError: if results cannot be read or written; those that were written stay.
        FormatError: if `results` is something else than results.
        RuntimeError: if processes were killed too often.
        TypeError: if `model_fn` gives no model.
        ValueError: if the space, the data or the model does not fit, the file is of another sweep,
            or as the steps of a trial, with a note that says which.

    Examples:
        >>> import torch
        >>> batches = [(torch.randn(32, 16), torch.arange(32) % 4)]
        >>> space = {"layers": {"*": {"sparsity": [0.5, 0.9], "quantizer": "cws", "k": 4}}}
        >>> found = sweep(lambda: nn.Linear(16, 4), (None, batches), space, workers=0)
        >>> len(found), found.choose(max_drop=1.0).nbytes == min(t.nbytes for t in found)
        (2, True)
    """
    space = _space(space)
    if executor is not None and workers is not None:
        raise ValueError(f"sweep: workers is {workers} with an executor, expected one of them")
    for name, value in (("workers", workers), ("retries", retries)):
        if value is not None and (type(value) is not int or value < 0):
            raise ValueError(f"sweep: {name} is {value!r}, expected an integer of at least 0")
    used = Data.of(data)
    if space.trains() and used.training is None:
        raise ValueError("sweep: the space trains and data's training is None, expected batches")
    work = Work(model_fn(), used)
    check(work.model, space)
    origin = Origin(
        work.model_digest(),
        work.data_digest(trains=space.trains()),
        space.to_json(),
        _core.__version__,
    )
    with closing(ResultsFile(IN_MEMORY if results is None else results, create=True)) as file:
        if file.begin(origin) is None:
            file.describe(origin, Dense(*measure_dense(work)))
        with closing(_runner(work, executor, workers, retries)) as runner:
            _Sweep(space, file, runner, progress).run()
        return file.results()


class _Sweep:
    """Goes through the settings of a space."""

    def __init__(
        self, space: Space, file: ResultsFile, runner: Runner, progress: Progress | None
    ) -> None:
        self._space, self._file, self._runner = space, file, runner
        self._progress = progress
        self._numbers: dict[str, int] = {}  # by key, in the order of the proposals
        self._found: dict[str, Trial] = {}
        self._ndone = self._total = 0

    def run(self) -> None:
        """Try all settings that are not in the file."""
        if self._space.search is None:
            grid = list(self._space.grid())
            self._total = len(grid)
            self._try(grid)
            return
        from tersenet.sweeping.searching import Searcher

        searcher = Searcher(self._space, self._space.search)
        self._total = self._space.search.trials
        while proposals := searcher.ask():
            searcher.tell(self._try(proposals))

    def _try(self, proposals: Sequence[Settings]) -> list[Trial]:
        """Return what each of some settings came to."""
        keys = [key_of(settings) for settings in proposals]
        tasks = []
        for key, settings in zip(keys, proposals, strict=True):
            if key in self._numbers:
                continue
            number = self._numbers[key] = len(self._numbers)
            trial = self._file.get(settings)
            if trial is None:
                tasks.append(Task(number, settings))
            else:
                self._found[key] = trial
        before = self._ndone
        self._advance(before + len(proposals) - len(tasks))

        def keep(trial: Trial) -> None:
            self._found[key_of(trial.settings)] = self._file.add(trial)
            self._advance(self._ndone + 1)

        self._runner.run(tasks, keep)
        return [self._found[key] for key in keys]

    def _advance(self, ndone: int) -> None:
        self._ndone = ndone
        if self._progress is not None:
            self._progress("trials", ndone, self._total)


def _space(space: Space | Mapping[str, Any] | Path) -> Space:
    if isinstance(space, Space):
        return space
    if isinstance(space, Mapping):
        return Space.from_dict(space)
    return Space.load(os.fspath(space))


def _runner(work: Work, executor: Executor | None, workers: int | None, retries: int) -> Runner:
    if executor is not None:
        return Engine(work, executor)
    if workers == 0:
        return Serial(work)
    return Pool(work, workers or len(os.sched_getaffinity(0)), retries)
