"""One trial: settings in, the bytes of a real file and the accuracy of what it holds out.

::

    copy the model
    prune as the plan says, train what is left            # training.after_pruning epochs
    quantize, train the shared values                     # training.after_quantizing epochs
    compress, save into a temporary file                  ─▶ nbytes, and those of each weight
    evaluate the compressed model                         ─▶ accuracy

Masks hold and values stay shared in both trainings, which are `fit` with Adam on all that trains,
biases and norms too. A trial that names a layout is saved as its layers lie in memory, else files
would not show it; any other is saved for its goal, as `save(compress(model, plan), path, goal)`.

Why on one thread: torch's sums depend on the number of threads. So a trial has the same bits in
every process of a machine, and on machines whose processors have the same instructions. Torch's
generator and threads belong to the process, so trials in one process wait for each other.

Price: a copy of the model, the trainings, an evaluation, and a file for size: an archive is written
at some million weights a second.
"""

from __future__ import annotations

import copy
import math
import pickle
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from tersenet import io
from tersenet._core import CompressedMatrix
from tersenet.compression import compress
from tersenet.parametrization import targets, unparametrize
from tersenet.plan import Plan, Rule
from tersenet.pruning import prune
from tersenet.quantization import quantize
from tersenet.reporting import WeightRow, report
from tersenet.sweeping.results import Layer, Trial
from tersenet.sweeping.space import Range, Settings, Space, completed, names_a_layout, plan_of
from tersenet.sweeping.work import Data, Work
from tersenet.training.loop import evaluate, fit

if TYPE_CHECKING:
    from tersenet._core import Goal

__all__ = ["Data", "Source", "Work", "check", "measure_dense", "run", "run_from"]

_one_at_a_time = threading.Lock()
_work: dict[str, Work] = {}  # in a worker: that of the present sweep, by its key


class Source(Protocol):
    """Where a worker gets the work from, once."""

    def get(self) -> Any:
        """Return the bytes of the work."""


def run_from(source: Source, key: str, number: int, settings: Settings) -> Trial:
    """Do a trial in a worker, which keeps the work for the next.

    Args:
        source: asked once for each key.
        key: tells the work of one sweep from that of another.
        number: as `run`.
        settings: as `run`.
    """
    work = _work.get(key)
    if work is None:
        _work.clear()
        work = _work[key] = pickle.loads(source.get())
    return run(work, number, settings)


def run(work: Work, number: int, settings: Settings) -> Trial:
    """Do a trial; the work stays as it was.

    Args:
        work: the model and its data.
        number: of the trial, for its row.
        settings: complete, see `space.completed`.

    Raises:
        OSError: if the temporary file cannot be written.
        ValueError: if the plan does not fit the model, or the measure gives no finite number.
    """
    plan = plan_of(settings)
    with _alone_on_one_thread(), tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        data = work.fresh()
        model = copy.deepcopy(work.model)
        prune(model, plan)
        _train(model, data, settings, "after_pruning")
        quantize(model, plan)
        _train(model, data, settings, "after_quantizing")
        goal = cast("Goal", plan.goal)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="compress: .* stay dense")  # rows say so
            small = compress(model, _layouts(plan), goal=goal, inplace=True)
        path = Path(folder, "model.terse")
        nbytes = io.save(small, path, goal=None if names_a_layout(plan) else goal)
        layers = _layers(small, path)
        accuracy = _accuracy(small, data)
        seconds = time.perf_counter() - start
    size = sum(prod(layer.shape) for layer in layers if layer.layout != "tied")
    nnz = sum(layer.density * prod(layer.shape) for layer in layers if layer.layout != "tied")
    return Trial(
        number=number,
        settings=settings,
        nbytes=nbytes,
        accuracy=accuracy,
        bits_per_weight=8 * nbytes / max(size, 1),
        density=round(nnz) / max(size, 1),
        seconds=seconds,
        layers=layers,
    )


def measure_dense(work: Work) -> tuple[float, int]:
    """Return the accuracy of the model as it is, and the bytes of its file, coded in no way."""
    with _alone_on_one_thread(), tempfile.TemporaryDirectory() as folder:
        model = copy.deepcopy(work.model)
        unparametrize(model)
        return _accuracy(model, work.fresh()), io.save(model, Path(folder, "model.terse"))


def check(model: nn.Module, space: Space) -> None:
    """Check what can be checked of a space before any trial.

    Raises:
        ValueError: if a pattern matches no layer, fields do not go together, or a layout does not
            go with a coder.
    """
    if space.search is None:
        every = space.grid()
    else:
        first = {n: c.low if isinstance(c, Range) else c[0] for n, c in space.choices.items()}
        every = iter([completed(first)])
    pairs = set()
    for settings in every:
        for target in targets(model, plan_of(settings)):
            pairs.add(target.rule.pair("auto", "auto"))
    for layout, coder in sorted(pairs):
        CompressedMatrix.compress(np.zeros((1, 1), np.float32), layout, coder)


def _train(model: nn.Module, data: Data, settings: Settings, stage: str) -> None:
    epochs = cast("int", settings[f"training.{stage}"])
    if epochs == 0:
        return
    assert data.training is not None
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fit(
        model,
        data.training,
        epochs=epochs,
        optimizer=torch.optim.Adam(parameters, lr=cast("float", settings["training.lr"])),
        loss=data.loss,
        seed=cast("int", settings["seed"]),
    )


def _layouts(plan: Plan) -> Plan:
    """Return what of a plan is left to do once a model is pruned and quantized."""
    rules = {
        pattern: Rule(layout=rule.layout, coder=rule.coder, skip=rule.skip)
        for pattern, rule in plan.layers.items()
    }
    return replace(plan, layers=rules)


def _layers(small: nn.Module, path: Path) -> tuple[Layer, ...]:
    """Return a row for each weight, with what it takes in the file."""
    with io.open(path) as file:
        return tuple(_layer(row, file) for row in report(small))


def _layer(row: WeightRow, file: io.File) -> Layer:
    name = f"{row.name}.weight".removeprefix(".")
    info = file.info(name if name in file else row.name)
    nbytes = 0 if row.layout == "tied" else int(info["nbytes"])
    return Layer(
        name=row.name,
        kind=row.kind,
        shape=row.shape,
        density=row.density,
        k=row.k,
        layout="tied" if row.layout == "tied" else info.get("layout", "plain"),
        coder=None if row.layout == "tied" else info.get("coder"),
        nbytes=nbytes,
        bits_per_weight=8 * nbytes / max(prod(row.shape), 1),
        entropy_bits=row.entropy_bits,
        reason=row.reason,
    )


def _accuracy(model: nn.Module, data: Data) -> float:
    value = evaluate(model, data.validation, data.measure)
    if not math.isfinite(value):
        raise ValueError(f"sweep: the measure gave {value}, expected a finite number")
    return value + 0.0  # a file of results has no -0.0


@contextmanager
def _alone_on_one_thread() -> Iterator[None]:
    with _one_at_a_time:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
