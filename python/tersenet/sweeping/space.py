"""A space says which settings a sweep tries; it is a plan whose fields may have several values.

::

    seed = 0                            # of quantizers and training; a list tries each
    pruning_scope = "layer"             # as in a plan
    codebook_scope = ["layer", "kind"]  # a codebook a layer, or one for all layers of a kind
    goal = "size"                       # what files are saved for

    [layers."fc:*"]                     # patterns and fields as in a plan
    sparsity = [0.8, 0.9, 0.95]
    quantizer = ["cws", "uq"]
    k = [16, 32]

    [layers."conv:*"]
    sparsity = { low = 0.3, high = 0.8 }          # a search only; log and step go in here too
    quantizer = "cws"
    k = 16

    [training]
    after_pruning = 2                   # epochs that train what is left
    after_quantizing = [0, 1]           # epochs that train the shared values
    lr = 1e-3                           # Adam's

    [search]                            # absent: every combination, the last field fastest
    trials = 100
    sampler = "tpe"                     # or "nsgaii" or "random", of Optuna
    seed = 0
    batch = 8                           # trials proposed together

    [model]                             # for the command: what is swept, in a Python module
    function = "networks:make_model"
    [data]
    function = "networks:make_data"

Settings, one for each field, are a flat dict: `{"fc:*.sparsity": 0.9, "codebook_scope": "kind", ...}`.

Why flat: a row of a table, a line of JSON and a proposal of Optuna are that already; the field is
what follows the last dot, so patterns may hold dots.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tersenet._core import CODERS, LAYOUTS
from tersenet.plan import Plan, Rule
from tersenet.pruning import PRUNERS
from tersenet.quantization import QUANTIZERS
from tersenet.toml_files import check_keys, loaded, parsed

Value = float | int | str | bool
Settings = dict[str, Value]

SAMPLERS = ("tpe", "nsgaii", "random")
PLAN_FIELDS = ("seed", "pruning_scope", "codebook_scope", "goal")
TRAINING_FIELDS = ("after_pruning", "after_quantizing", "lr")

_RULE_FIELDS = tuple(field.name for field in fields(Rule))
_DEFAULTS: Settings = {
    "seed": 0,
    "pruning_scope": "layer",
    "codebook_scope": "layer",
    "goal": "size",
    "training.after_pruning": 0,
    "training.after_quantizing": 0,
    "training.lr": 1e-3,
}
_NAMES = {
    "quantizer": tuple(QUANTIZERS),
    "pruner": tuple(PRUNERS),
    "layout": ("auto", *LAYOUTS),
    "coder": ("auto", *CODERS),
}
_INTEGERS = ("k", "seed", "after_pruning", "after_quantizing")
_FLOATS = ("sparsity", "threshold", "lam", "lr")


@dataclass(frozen=True)
class Range:
    """All numbers in [low, high], which only a search can try.

    Args:
        low: the least.
        high: the largest; integers where both are.
        step: from one to the next; None is 1 for integers, and any number between for others.
        log: whether proportions count, not differences; then no `step`.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Search:
    """Settings proposed by Optuna, toward few bytes and large accuracy at once.

    Args:
        trials: how many proposals, at least 1; those that were tried before cost nothing.
        sampler: "tpe", "nsgaii" or "random".
        seed: of the sampler, in [0, 2**32).
        batch: how many are proposed together, at least 1: at most so many run side by side. The
            answers to one batch decide about the next, so that any number of workers finds the same.
    """

    trials: int
    sampler: str = "tpe"
    seed: int = 0
    batch: int = 8

    def __post_init__(self) -> None:
        """Check each field."""
        for name, low, high in (
            ("trials", 1, 2**31),
            ("seed", 0, 2**32),
            ("batch", 1, 2**31),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value < high:
                raise _error("[search]", name, value, f"an integer in [{low}, {high})")
        if self.sampler not in SAMPLERS:
            raise _error("[search]", "sampler", self.sampler, f"one of {', '.join(SAMPLERS)}")


@dataclass(frozen=True)
class Space:
    """What a sweep tries: for each setting a range or values, in the order of the grid.

    Make one with `from_dict`, `from_toml` or `load`. `model` and `data` name functions for the
    command, as "module:function".

    Examples:
        >>> space = Space.from_dict({"layers": {"*": {"sparsity": [0.8, 0.9], "quantizer": "cws",
        ...     "k": [16, 32]}}})
        >>> [(s["*.sparsity"], s["*.k"]) for s in space.grid()]
        [(0.8, 16), (0.8, 32), (0.9, 16), (0.9, 32)]
    """

    choices: Mapping[str, tuple[Value, ...] | Range]
    search: Search | None = None
    model: str | None = None
    data: str | None = None

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Space:
        """Return the space of a table like the one above; lists may be tuples or arrays.

        Raises:
            ValueError: if a key is unknown, a value does not fit, or a grid has a range.
        """
        _check_table(table, "the top level")
        known = ("layers", *PLAN_FIELDS, "training", "search", "model", "data")
        check_keys("space", table, known, "the top level")
        choices: dict[str, tuple[Value, ...] | Range] = {}
        layers = _subtable(table, "layers", "the top level")
        if not layers:
            raise ValueError("space: layers is empty, expected a table for at least one pattern")
        for pattern, entry in layers.items():
            place = f"[layers.{pattern!r}]"
            _check_table(entry, place)
            check_keys("space", entry, _RULE_FIELDS, place)
            if "sparsity" in entry and "threshold" in entry:
                raise ValueError(f"space: {place} has sparsity and threshold, expected one of them")
            for name, value in entry.items():
                choices[f"{pattern}.{name}"] = _choice(place, name, value)
        for name in PLAN_FIELDS:
            if name in table:
                choices[name] = _choice("the top level", name, table[name])
        training = _subtable(table, "training", "the top level")
        check_keys("space", training, TRAINING_FIELDS, "[training]")
        for name, value in training.items():
            choices[f"training.{name}"] = _choice("[training]", name, value)
        search = None
        if "search" in table:
            entry = _subtable(table, "search", "the top level")
            check_keys("space", entry, (field.name for field in fields(Search)), "[search]")
            if "trials" not in entry:
                raise ValueError("space: [search] has no trials, expected their number")
            search = Search(**entry)
        space = cls(choices, search, _function(table, "model"), _function(table, "data"))
        if search is None:
            next(space.grid())
        return space

    @classmethod
    def from_toml(cls, text: str) -> Space:
        """Read a space from TOML.

        Raises:
            ValueError: if the text is no TOML, or as `from_dict`.
        """
        return cls.from_dict(parsed("space", text))

    @classmethod
    def load(cls, path: str | Path) -> Space:
        """Read a space from a TOML file.

        Raises:
            OSError: if the file cannot be read.
            ValueError: as `from_toml`, with the path.
        """
        return loaded(path, cls.from_toml)

    def grid(self) -> Iterator[Settings]:
        """Yield every combination once, in the order of the fields, the last one changing fastest.

        Raises:
            ValueError: if a field has a range.
        """
        values = {n: c for n, c in self.choices.items() if not isinstance(c, Range)}
        if ranges := [name for name in self.choices if name not in values]:
            raise ValueError(
                f"space: {ranges[0]} is a range, expected a list of values for a grid "
                "(a [search] takes ranges)"
            )
        seen = set()
        for combination in itertools.product(*values.values()):
            settings = completed(dict(zip(self.choices, combination, strict=True)))
            if (key := key_of(settings)) not in seen:
                seen.add(key)
                yield settings

    def trains(self) -> bool:
        """Tell whether any of the settings asks for an epoch of training."""
        found = [self.choices.get(f"training.{name}", (0,)) for name in TRAINING_FIELDS[:2]]
        return any(isinstance(choice, Range) or any(choice) for choice in found)

    def to_json(self) -> str:
        """Return what decides which settings are tried, but for how many a search tries."""
        choices = {
            name: vars(choice) if isinstance(choice, Range) else list(choice)
            for name, choice in self.choices.items()
        }
        search = None if self.search is None else {**vars(self.search)}
        if search is not None:
            del search["trials"]
        return json.dumps({"choices": choices, "search": search})


def completed(settings: Settings) -> Settings:
    """Return settings with defaults for what is absent, without what has no effect.

    Without an epoch of training that is its learning rate.
    """
    layers = {name: value for name, value in settings.items() if name not in _DEFAULTS}
    others = {name: settings.get(name, default) for name, default in _DEFAULTS.items()}
    if not others["training.after_pruning"] and not others["training.after_quantizing"]:
        del others["training.lr"]
    return {**layers, **others}


def key_of(settings: Settings) -> str:
    """Return a digest of settings, the same for the same settings in the same order."""
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def plan_of(settings: Settings) -> Plan:
    """Return the plan that settings say.

    Raises:
        ValueError: if the fields of a pattern do not go together.
    """
    rules: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if name not in _DEFAULTS:
            pattern, _, field = name.rpartition(".")
            rules.setdefault(pattern, {})[field] = value
    others: dict[str, Any] = {name: settings[name] for name in PLAN_FIELDS}
    return Plan({pattern: Rule(**fields) for pattern, fields in rules.items()}, **others)


def names_a_layout(plan: Plan) -> bool:
    """Tell whether any rule of a plan says how weights are to lie in memory."""
    return any(rule.layout not in (None, "auto") for rule in plan.layers.values())


def _choice(place: str, name: str, value: Any) -> tuple[Value, ...] | Range:
    if isinstance(value, Mapping):
        return _range(place, name, value)
    if hasattr(value, "tolist"):  # NumPy's, as of linspace
        value = value.tolist()
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values:
        raise _error(place, name, value, "a value, or a list of at least one")
    checked = tuple(_checked(place, name, each) for each in values)
    if len(set(checked)) < len(checked):
        raise _error(place, name, list(values), "each value once")
    return checked


def _checked(place: str, name: str, value: Any) -> Value:
    """Return a value as a plan takes it, if it does."""
    if name in _NAMES:
        if value not in _NAMES[name]:
            raise _error(place, name, value, f"one of {', '.join(_NAMES[name])}")
    elif name == "goal":
        if value not in ("size", "speed"):
            raise _error(place, name, value, "'size' or 'speed'")
    elif name in PLAN_FIELDS or name in _RULE_FIELDS:
        try:
            made = Plan(**{name: value}) if name in PLAN_FIELDS else Rule(**{name: value})
        except (ValueError, TypeError) as error:
            text = str(error).removeprefix("plan: ")
            raise ValueError(f"space: {text} ({place})") from None
        if getattr(made, name) is None:
            raise _error(place, name, value, "a value, or a list of at least one")
        value = getattr(made, name)
    elif name == "lr":
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise _error(place, name, value, "a number above 0")
        value = float(value)
    elif type(value) is not int or value < 0:
        raise _error(place, name, value, "a number of epochs, an integer of at least 0")
    checked: Value = value
    return checked


def _range(place: str, name: str, table: Mapping[str, Any]) -> Range:
    if name not in _INTEGERS + _FLOATS:
        raise _error(place, name, dict(table), "a value, or a list of at least one")
    where = f"{place} {name}"
    check_keys("space", table, (field.name for field in fields(Range)), where)
    for end in ("low", "high"):
        if end not in table:
            raise ValueError(f"space: {where} has no {end}, expected low and high of a range")
    low, high = (_checked(place, name, table[end]) for end in ("low", "high"))
    assert isinstance(low, int | float) and isinstance(high, int | float)
    step, log = table.get("step"), table.get("log", False)
    if not low <= high:
        raise _error(where, "low", low, f"at most high, {high}")
    is_whole = name in _INTEGERS
    if step is not None:
        kinds = (int,) if is_whole else (int, float)
        if type(step) not in kinds or not 0 < step < math.inf:
            raise _error(where, "step", step, f"{'an integer' if is_whole else 'a number'} above 0")
    if type(log) is not bool or (log and (step is not None or low <= 0)):
        raise _error(where, "log", log, "true or false; true with low above 0 and without a step")
    return Range(low, high, step, log)


def _function(table: Mapping[str, Any], name: str) -> str | None:
    if name not in table:
        return None
    entry = _subtable(table, name, "the top level")
    check_keys("space", entry, ("function",), f"[{name}]")
    found = entry.get("function")
    if not isinstance(found, str) or not all(found.partition(":")):
        raise _error(f"[{name}]", "function", found, "a name like 'module:function'")
    return found


def _subtable(table: Mapping[str, Any], name: str, place: str) -> Mapping[str, Any]:
    entry = table.get(name, {})
    if not isinstance(entry, Mapping):
        raise _error(place, name, entry, "a table")
    return entry


def _check_table(table: Any, place: str) -> None:
    if not hasattr(table, "items"):
        raise ValueError(f"space: {place} is {table!r}, expected a table of fields")


def _error(place: str, name: str, found: Any, expected: str) -> ValueError:
    return ValueError(f"space: {name} in {place} is {found!r}, expected {expected}")
