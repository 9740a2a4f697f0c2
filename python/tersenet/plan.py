"""A plan says what to do to which layer; it is a value, and a TOML file.

::

    goal = "size"                       # or "speed"; absent: as the caller says
    seed = 0
    pruning_scope = "layer"             # "global": layers that ask the same are ranked together
    codebook_scope = "layer"            # "kind": one codebook for all fc, one for all conv layers

    [layers."*"]                        # a pattern of module names, as the shell matches them
    sparsity = 0.9
    quantizer = "cws"
    k = 32

    [layers."conv:*"]                   # only layers of a kind: fc, conv or embedding
    sparsity = 0.6                      # k = 32 from above stays

    [layers.head]
    skip = true

Every matching rule counts, later ones override earlier ones field by field. `sparsity` and
`threshold` are one field with two spellings: setting one clears the other. Embeddings are only
reached by a pattern that means them (`embedding:*`, or one that is more than wildcards), because
pruning rows of rare words costs more than it saves.

Why this way: a pattern that matches nothing and a key that does not exist are errors, since a
typing mistake would otherwise leave a layer dense in silence. Names of quantizers, layouts and
coders are checked where they are looked up, so that adding one touches one list.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tersenet.toml_files import check_keys, loaded, parsed

KINDS = ("fc", "conv", "embedding")
PRUNING_SCOPES = ("layer", "global")
CODEBOOK_SCOPES = ("layer", "kind")
GOALS = ("size", "speed")

_MAX_K = 65_536
_MAX_SEED = 2**63 - 1  # TOML's integers


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What to do to the layers of one pattern; None leaves a field to earlier rules.

    Args:
        pruner: how to choose what is pruned; "magnitude" when only a sparsity is given.
        sparsity: fraction of weights to prune, in [0, 1).
        threshold: prune weights whose absolute value is at most this; excludes `sparsity`.
        quantizer: "cws", "pws", "uq" or "ecsq".
        k: the number of values, in [1, 65,536].
        lam: ecsq's price of one bit, at least 0.
        layout: how the compressed layer is arranged in memory.
        coder: how its symbols are coded.
        skip: leave the layer alone.

    Raises:
        ValueError: if a field has the wrong type or is out of its range.
    """

    pruner: str | None = None
    sparsity: float | None = None
    threshold: float | None = None
    quantizer: str | None = None
    k: int | None = None
    lam: float | None = None
    layout: str | None = None
    coder: str | None = None
    skip: bool | None = None

    def __post_init__(self) -> None:
        """Check each field, and make whole numbers floats where floats are meant."""
        for name in ("pruner", "quantizer", "layout", "coder"):
            _check(getattr(self, name), name, str, "a name", lambda value: value != "")
        for name, limit in (("sparsity", 1.0), ("threshold", math.inf), ("lam", math.inf)):
            value = getattr(self, name)
            if type(value) is int:
                value = float(value)
                object.__setattr__(self, name, value)
            expected = f"a number in [0, {limit:g})"
            _check(value, name, float, expected, lambda v, limit=limit: 0 <= v < limit)
        _check(self.k, "k", int, f"an integer in [1, {_MAX_K}]", lambda k: 1 <= k <= _MAX_K)
        _check(self.skip, "skip", bool, "true or false")
        if self.sparsity is not None and self.threshold is not None:
            raise ValueError(
                f"plan: rule has sparsity {self.sparsity} and threshold {self.threshold}, "
                "expected one of them"
            )

    @property
    def prunes(self) -> bool:
        """Whether the rule asks for pruning."""
        return self.pruner is not None or self.sparsity is not None or self.threshold is not None

    def pair(self, layout: str, coder: str) -> tuple[str, str]:
        """Return layout and coder: the rule's own, or those that everything else gets.

        A coder is given for a layout, so a rule with a layout of its own takes its own coder too.
        """
        if self.layout is not None:
            return self.layout, self.coder or "auto"
        return layout, self.coder or coder

    def overridden_by(self, later: Rule) -> Rule:
        """Return this rule with the fields that `later` sets."""
        changes = _set_fields(later)
        if "sparsity" in changes:
            changes["threshold"] = None
        elif "threshold" in changes:
            changes["sparsity"] = None
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Plan:
    """What to do to which layer of a model.

    Args:
        layers: pattern to rule; a later match overrides an earlier one field by field.
        seed: of everything random, in [0, 2**63).
        pruning_scope: "layer" meets a sparsity in every layer, "global" in all layers that ask
            for the same together.
        codebook_scope: "layer" gives each layer a codebook, "kind" one to all layers of a kind.
        goal: "size", "speed" or None.

    Raises:
        ValueError: if a field has the wrong type or is out of its range.

    Examples:
        >>> plan = Plan({"*": Rule(sparsity=0.9), "conv:*": Rule(sparsity=0.5)})
        >>> rules = plan.resolve([("fc1", "fc"), ("conv1", "conv")])
        >>> rules["fc1"].sparsity, rules["conv1"].sparsity
        (0.9, 0.5)
    """

    layers: Mapping[str, Rule] = field(default_factory=dict)
    seed: int = field(default=0, kw_only=True)
    pruning_scope: str = field(default="layer", kw_only=True)
    codebook_scope: str = field(default="layer", kw_only=True)
    goal: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check each field and keep an own copy of the rules."""
        if not hasattr(self.layers, "items"):
            found = type(self.layers).__name__
            raise ValueError(f"plan: layers is {found}, expected a mapping of patterns to rules")
        object.__setattr__(self, "layers", dict(self.layers))
        for pattern, rule in self.layers.items():
            if (type(pattern), type(rule)) != (str, Rule):
                found = f"{pattern!r}: {type(rule).__name__}"
                raise ValueError(f"plan: layers holds {found}, expected a pattern and a Rule")
        expected = "an integer in [0, 2**63)"
        _check(self.seed, "seed", int, expected, lambda seed: 0 <= seed <= _MAX_SEED)
        for name, choices in (
            ("pruning_scope", PRUNING_SCOPES),
            ("codebook_scope", CODEBOOK_SCOPES),
            ("goal", (*GOALS, None)),
        ):
            value = getattr(self, name)
            if value not in choices:
                words = " or ".join(repr(choice) for choice in choices)
                raise ValueError(f"plan: {name} is {value!r}, expected {words}")

    def __eq__(self, other: object) -> bool:
        """Tell whether two plans are the same, with their rules in the same order."""
        return isinstance(other, Plan) and self._key() == other._key()

    def __hash__(self) -> int:
        """Hash what `__eq__` compares."""
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        rules = tuple(self.layers.items())
        return (rules, self.seed, self.pruning_scope, self.codebook_scope, self.goal)

    @classmethod
    def of(
        cls,
        pattern: str = "*",
        *,
        pruner: str | None = None,
        sparsity: float | None = None,
        threshold: float | None = None,
        quantizer: str | None = None,
        k: int | None = None,
        lam: float | None = None,
        layout: str | None = None,
        coder: str | None = None,
        seed: int = 0,
        pruning_scope: str = "layer",
        codebook_scope: str = "layer",
        goal: str | None = None,
    ) -> Plan:
        """Return a plan of one rule.

        Examples:
            >>> Plan.of(sparsity=0.9, quantizer="cws", k=32).layers["*"].k
            32
        """
        rule = Rule(
            pruner=pruner,
            sparsity=sparsity,
            threshold=threshold,
            quantizer=quantizer,
            k=k,
            lam=lam,
            layout=layout,
            coder=coder,
        )
        return cls(
            {pattern: rule},
            seed=seed,
            pruning_scope=pruning_scope,
            codebook_scope=codebook_scope,
            goal=goal,
        )

    def resolve(self, names: Sequence[tuple[str, str]]) -> dict[str, Rule]:
        """Return the rule of every layer that the plan reaches and does not skip.

        Args:
            names: (module name, kind) of each layer of the model, in order.

        Raises:
            ValueError: if a pattern matches nothing, or a layer's rules together make no sense
                (k without a quantizer, a quantizer without k, a pruner without a sparsity).
        """
        for pattern in self.layers:
            if not any(_matches(pattern, name, kind) for name, kind in names):
                raise ValueError(_no_match(pattern, names))
        resolved = {}
        for name, kind in names:
            matching = [r for pattern, r in self.layers.items() if _matches(pattern, name, kind)]
            rule = Rule()
            for later in matching:
                rule = rule.overridden_by(later)
            if matching and not rule.skip:
                _check_whole(rule, name)
                resolved[name] = rule
        return resolved

    @classmethod
    def from_toml(cls, text: str) -> Plan:
        """Read a plan from TOML.

        Raises:
            ValueError: if the text is no TOML, a key is unknown, or a value does not fit.
        """
        table = parsed("plan", text)
        check_keys("plan", table, (f.name for f in fields(cls)), "the top level")
        layers = table.pop("layers", {})
        _check(layers, "layers", dict, "a table of patterns")
        rules = {}
        for pattern, entry in layers.items():
            place = f"[layers.{pattern!r}]"
            _check(entry, place, dict, "a table of fields")
            check_keys("plan", entry, (f.name for f in fields(Rule)), place)
            try:
                rules[pattern] = Rule(**entry)
            except ValueError as error:
                raise ValueError(f"{error} ({place})") from None
        return cls(rules, **table)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a TOML file.

        Raises:
            OSError: if the file cannot be read.
            ValueError: as `from_toml`, with the path.
        """
        return loaded(path, cls.from_toml)

    def to_toml(self) -> str:
        """Return the plan as TOML that `from_toml` reads back to an equal plan.

        Raises:
            ImportError: if tomli-w is not installed.
        """
        try:
            import tomli_w
        except ImportError as error:
            raise ImportError("plan: to_toml needs tomli-w: pip install tomli-w") from error
        table: dict[str, Any] = {
            "seed": self.seed,
            "pruning_scope": self.pruning_scope,
            "codebook_scope": self.codebook_scope,
        }
        if self.goal is not None:
            table["goal"] = self.goal
        table["layers"] = {pattern: _set_fields(rule) for pattern, rule in self.layers.items()}
        return tomli_w.dumps(table)


def _set_fields(rule: Rule) -> dict[str, Any]:
    values = {f.name: getattr(rule, f.name) for f in fields(rule)}
    return {name: value for name, value in values.items() if value is not None}


def _check(value: Any, name: str, kind: type, expected: str, holds: Any = None) -> None:
    """Raise ValueError unless the value is None or of exactly this type, and the test holds."""
    if value is not None and (type(value) is not kind or (holds and not holds(value))):
        raise ValueError(f"plan: {name} is {value!r}, expected {expected}")


def _check_whole(rule: Rule, name: str) -> None:
    problem = None
    if rule.pruner is not None and rule.sparsity is None and rule.threshold is None:
        problem = f"pruner {rule.pruner!r} alone, expected a sparsity or a threshold with it"
    elif rule.quantizer is None and (rule.k is not None or rule.lam is not None):
        problem = "k or lam alone, expected a quantizer with it"
    elif rule.quantizer is not None and rule.k is None and rule.lam is None:
        problem = f"quantizer {rule.quantizer!r} alone, expected k with it"
    if problem is not None:
        raise ValueError(f"plan: layer {name!r} gets {problem}")


def _matches(pattern: str, name: str, kind: str) -> bool:
    selector, colon, rest = pattern.partition(":")
    if colon and selector in KINDS:
        return kind == selector and fnmatch.fnmatchcase(name, rest)
    if kind == "embedding" and not pattern.strip("*?."):
        return name == pattern
    return fnmatch.fnmatchcase(name, pattern)


def _no_match(pattern: str, names: Sequence[tuple[str, str]]) -> str:
    if not names:
        return (
            f"plan: pattern {pattern!r} matches no layer: there is none left to prune or quantize, "
            "expected Linear, Conv1d, Conv2d or Embedding layers that are not compressed yet"
        )
    known = [name for name, _ in names] + [
        f"{kind}:*" for kind in dict.fromkeys(k for _, k in names)
    ]
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4)
    shown = f"the nearest names are {', '.join(near)}" if near else f"{len(names)} names are known"
    if any(kind == "embedding" for _, kind in names):
        shown += "; wildcards alone do not reach embeddings"
    return f"plan: pattern {pattern!r} matches no layer, expected one that does: {shown}"
