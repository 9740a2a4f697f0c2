"""Search for the sparsity and the number of values, together, that a budget of bytes allows.

::

    uniform      for each (sparsity, k):  compress, save for size, count the bytes of the file
    per layer    A = mean over the batches of |dL/dw|
                 loss of a layer's choice  = sum of A * |w compressed - w|
                 bytes of a layer's choice = those of its tensor and codebook in the file above
                 each layer begins with its choice of least loss
                 until a file of all choices is within the budget:
                     change the layer and choice with the least added loss for a byte saved
    then change those that lower the loss most and still fit
    the answer   of all files within the budget, that of the largest value

Why this way: fewer weights with more values each, or more weights with fewer, come to the same bytes,
and which is better differs from layer to layer. What a choice takes depends on how alike its rows are,
so no formula stands in for the coder: every plan that can be the answer was compressed and saved. The
estimate only orders the steps of the search; with `evaluate` it does not pick the answer. Layers are
taken as independent, which is the first order of the loss anyway.

The greedy steps are no proof that nothing is better.

Price: a file a pair of sparsity and k, and a few more per layer; an archive is written at some
million weights a second. One backward pass a batch, and an evaluation for each file within the budget.

Source: the estimate: see `pruning.taylor`; greedy by loss for size: Shoham and Gersho 1988, "Efficient
bit allocation for an arbitrary set of quantizers". That pruning and quantization belong together is
the point of arXiv 2010.01892, whose search is not followed here.
"""

from __future__ import annotations

import glob
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from tersenet import io
from tersenet.compression import compress
from tersenet.nn import CompressedLayer
from tersenet.parametrization import Target, as_array, targets
from tersenet.plan import Plan, Rule
from tersenet.pruning.magnitude import Weights
from tersenet.pruning.resuming import digest_of
from tersenet.pruning.stages import Progress
from tersenet.pruning.taylor import mean_gradients
from tersenet.replacing import Replacing
from tersenet.reporting import Table
from tersenet.training.loop import Batch, Loss

SEARCHES = ("uniform", "per layer")


@dataclass(frozen=True)
class BudgetRow:
    """One plan that was tried; `sparsity` and `k` are None where each layer has its own.

    `nbytes` are those of the saved file, `loss_increase` is the Taylor estimate, where there are
    batches, and `value` what the answer was picked by, where the file is within the budget.
    """

    search: str
    sparsity: float | None
    k: int | None
    nbytes: int
    loss_increase: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class BudgetFit:
    """The plan of the largest value whose file is within the budget, and all that were tried.

    `save(compress(model, plan), path, goal="size")` writes a file of exactly `nbytes`.
    """

    plan: Plan
    nbytes: int
    value: float
    trials: Table[BudgetRow]


def fit_budget(
    model: nn.Module,
    nbytes: int,
    evaluate: Callable[[nn.Module], float] | None = None,
    *,
    batches: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    search: str = "uniform",
    layers: str | Sequence[str] = "*",
    sparsities: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    quantizer: str = "cws",
    ks: Sequence[int] = (8, 16, 32, 64),
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> BudgetFit:
    """Return the plan that prunes and quantizes a model into a file of at most so many bytes.

    The model is left as it was. The same arguments find the same plan, if `evaluate` gives the same.

    Args:
        model: trained, on the CPU; pruned or not, but not quantized.
        nbytes: the most that a file for `goal="size"` may take, with all that is in it.
        evaluate: how good a compressed model is, larger is better; on examples that nothing is
            reported of. None: the smaller the Taylor estimate of the loss, the better.
        batches: (inputs, targets) for the estimate, as for `fit`, or inputs alone where the loss
            needs no targets.
        loss: outputs and targets to a scalar, for the estimate.
        search: "uniform" tries one sparsity and k for all layers, "per layer" some for each too.
        layers: patterns of layer names, as in a `Plan`.
        sparsities: what to try, each in [0, 1).
        quantizer: "cws", "pws" or "uq".
        ks: what to try, each in [1, 65,536].
        seed: of the quantizer.
        checkpoint: a folder for what each plan came to. What it holds of the same search is not tried
            again; whether `evaluate` or the batches changed it cannot tell.
        progress: called after each plan with the search, and plans done and in all; how many a
            search per layer will try nobody knows, so that its two numbers are equal.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if no file is within the budget (it says what the smallest takes), an option
            does not fit, `evaluate` gives no finite number, the checkpoint is damaged or of another
            search, or as `compress` and `taylor_scores`.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> data = [(torch.randn(16, 64), None)]
        >>> fit = fit_budget(model, 2500, batches=data, loss=lambda y, _: y.square().mean())
        >>> fit.nbytes <= 2500, len(fit.trials)
        (True, 24)
    """
    pairs = [(sparsity, k) for sparsity in sparsities for k in ks]
    if not pairs:
        raise ValueError("budget: sparsities or ks is empty, expected at least one of each")
    if search not in SEARCHES:
        raise ValueError(f"budget: search is {search!r}, expected one of {', '.join(SEARCHES)}")
    if (batches is None) != (loss is None):
        raise ValueError("budget: batches or loss alone, expected both or none")
    if batches is None and (evaluate is None or search == "per layer"):
        need = "search 'per layer'" if search == "per layer" else "no evaluate"
        raise ValueError(f"budget: {need} and no batches, expected batches and a loss")
    rules = [Rule(sparsity=sparsity, quantizer=quantizer, k=k) for sparsity, k in pairs]
    patterns = [layers] if isinstance(layers, str) else list(layers)
    chosen = targets(model, Plan({pattern: Rule() for pattern in patterns}))
    gradients = None
    if batches is not None and loss is not None:
        gradients = mean_gradients(model, batches, loss, chosen)
    results = None
    if checkpoint is not None:
        has = [batches is not None, evaluate is not None]
        run = repr([nbytes, search, patterns, rules, seed, has])
        results = _Results(Path(checkpoint), digest_of(model.state_dict(), run))
    trials = _Trials(model, chosen, gradients, evaluate, nbytes, results)
    uniform = []
    tell = progress or (lambda _, __, ___: None)
    for number, rule in enumerate(rules):
        plan = Plan(dict.fromkeys(patterns, rule), seed=seed, goal="size")
        row = BudgetRow("uniform", rule.sparsity, rule.k, 0)
        uniform.append(trials.try_plan(plan, row))
        tell("uniform", number + 1, len(rules))
    if search == "per layer":
        for number, choices in enumerate(_greedy(uniform, nbytes)):
            own = {glob.escape(name): rules[choice] for name, choice in choices.items()}
            plan = Plan(own, seed=seed, goal="size")
            made = trials.try_plan(plan, BudgetRow(search, None, None, 0))
            tell(search, number + 1, number + 1)
            if made.nbytes <= nbytes:
                break
    return trials.best()


@dataclass(frozen=True)
class _Part:
    """What one layer takes in a file, and the estimate of what its choice does to the loss."""

    nbytes: int
    loss: float


@dataclass(frozen=True)
class _Made:
    """What a plan came to: the bytes of the file, and each layer's part."""

    nbytes: int
    parts: dict[str, _Part]


class _Results:
    """What plans came to, in a folder, by their order: files of JSON."""

    def __init__(self, folder: Path, run: str) -> None:
        """Make the folder where it is not there; `run` is a digest of all that decides."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._run = folder, run

    def save(self, number: int, row: BudgetRow, parts: Mapping[str, _Part]) -> None:
        """Write what a plan came to, all of it or nothing."""
        names = {name: asdict(part) for name, part in parts.items()}
        state = {"run": self._run, "row": asdict(row), "parts": names}
        with Replacing(self._path(number)) as file:
            file.write(json.dumps(state).encode())

    def load(self, number: int) -> tuple[BudgetRow, dict[str, _Part]] | None:
        """Return what a plan came to, none where it was not tried."""
        path = self._path(number)
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_bytes())
            run, row = state["run"], BudgetRow(**state["row"])
            parts = {name: _Part(**part) for name, part in state["parts"].items()}
        except Exception as error:
            raise ValueError(f"budget: checkpoint {path} cannot be read: {error}") from error
        if run != self._run:
            raise ValueError(
                f"budget: checkpoint {path} is of another search, expected one with the same model, "
                "options and seed (take another folder, or remove this one)"
            )
        return row, parts

    def _path(self, number: int) -> Path:
        return self._folder / f"plan-{number}.json"


@dataclass
class _Trials:
    """Tries plans on one model, and remembers each."""

    model: nn.Module
    chosen: Sequence[Target]
    gradients: Mapping[str, Weights] | None
    evaluate: Callable[[nn.Module], float] | None
    budget: int
    results: _Results | None
    rows: list[BudgetRow] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)

    def try_plan(self, plan: Plan, row: BudgetRow) -> _Made:
        """Compress, save and measure, or recall it; keep the row with what was found."""
        number = len(self.rows)
        known = self.results.load(number) if self.results else None
        row, parts = known or self._tried(plan, row)
        if self.results and not known:
            self.results.save(number, row, parts)
        self.rows.append(row)
        self.plans.append(plan)
        return _Made(row.nbytes, parts)

    def _tried(self, plan: Plan, row: BudgetRow) -> tuple[BudgetRow, dict[str, _Part]]:
        small = compress(self.model, plan)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.terse"
            nbytes = io.save(small, path, goal="size")
            with io.open(path) as file:
                parts = {target.name: self._part(target, small, file) for target in self.chosen}
        increase = sum(part.loss for part in parts.values()) if self.gradients else None
        value = None
        if nbytes <= self.budget:
            value = self._value(small, increase)
        return replace(row, nbytes=nbytes, loss_increase=increase, value=value), parts

    def best(self) -> BudgetFit:
        """Return the largest value; of equal ones the fewest bytes, then the first."""
        found: tuple[float, int, int] | None = None
        for place, row in enumerate(self.rows):
            if row.value is not None:
                rank = (-row.value, row.nbytes, place)
                found = rank if found is None else min(found, rank)
        if found is None:
            least = min(row.nbytes for row in self.rows)
            raise ValueError(
                f"budget: the smallest of {len(self.rows)} files takes {least:,} bytes, expected "
                f"at most {self.budget:,} (a larger sparsity or a smaller k may)"
            )
        place = found[2]
        row, plan = self.rows[place], self.plans[place]
        return BudgetFit(plan, row.nbytes, -found[0], Table(self.rows))

    def _value(self, small: nn.Module, increase: float | None) -> float:
        if self.evaluate is None:
            assert increase is not None
            return -increase
        value = float(self.evaluate(small))
        if not math.isfinite(value):
            raise ValueError(f"budget: evaluate gave {value}, expected a finite number")
        return value

    def _part(self, target: Target, small: nn.Module, file: io.File) -> _Part:
        """Return a layer's bytes, its codebook's as float32, and its estimate."""
        layer = small.get_submodule(target.name)
        info = file.info(f"{target.name}.weight" if target.name else "weight")
        info = file.info(info["alias_of"]) if "alias_of" in info else info
        nbytes = int(info["nbytes"])
        if isinstance(layer, CompressedLayer):
            nbytes += layer.matrix.codebook.nbytes
            weight = layer.dense_weight()
        else:
            weight = layer.get_parameter("weight")
        if self.gradients is None:
            return _Part(nbytes, 0.0)
        moved = np.abs(as_array(weight) - as_array(target.weight())).reshape(-1)
        gradient = self.gradients[target.name].reshape(-1)
        return _Part(nbytes, float(np.sum(moved * gradient, dtype=np.float64)))


def _greedy(uniform: Sequence[_Made], budget: int) -> Iterator[dict[str, int]]:
    """Yield the choice of each layer, once the parts fit, then smaller and smaller ones."""
    parts = {name: [made.parts[name] for made in uniform] for name in uniform[0].parts}
    choices = {}
    for name, options in parts.items():
        ranks = [(part.loss, part.nbytes, choice) for choice, part in enumerate(options)]
        choices[name] = min(ranks)[-1]
    rest = min(made.nbytes - sum(part.nbytes for part in made.parts.values()) for made in uniform)
    while True:
        taken = rest + sum(parts[name][choice].nbytes for name, choice in choices.items())
        if taken <= budget:
            filled = _filled(parts, choices, budget - taken)
            if filled != choices:
                yield filled
            yield dict(choices)
        moves = []
        for order, name in enumerate(choices):
            before = parts[name][choices[name]]
            for choice, part in enumerate(parts[name]):
                if (saved := before.nbytes - part.nbytes) > 0:
                    moves.append(((part.loss - before.loss) / saved, order, choice, name))
        if not moves:
            return
        *_, choice, name = min(moves)
        choices[name] = choice


def _filled(
    parts: Mapping[str, list[_Part]], choices: Mapping[str, int], left: int
) -> dict[str, int]:
    """Return choices of less loss for the bytes that are left."""
    filled = dict(choices)
    while True:
        moves = []
        for order, name in enumerate(filled):
            before = parts[name][filled[name]]
            for choice, part in enumerate(parts[name]):
                if part.loss < before.loss and part.nbytes - before.nbytes <= left:
                    moves.append((part.loss - before.loss, order, choice, name))
        if not moves:
            return filled
        *_, choice, name = min(moves)
        left -= parts[name][choice].nbytes - parts[name][filled[name]].nbytes
        filled[name] = choice
