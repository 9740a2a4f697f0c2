"""The file of a sweep's results: SQLite, each trial committed as soon as it is finished.

::

    sweep    name, value                  model, data, space, version; the dense model's numbers
    trials   number, key, settings, nbytes, accuracy, bits_per_weight, density, seconds
    layers   trial, place, name, kind, shape, density, k, layout, coder, nbytes, bits_per_weight,
             entropy_bits, reason

`key` is a digest of the settings, so a trial is there once; `settings` and `shape` are JSON. The
numbers are 64-bit floats and integers, so they come back to the bit.

Why SQLite: a commit is whole or not at all, whatever kills the process or fills the disk, and every
language reads the file. Its rollback journal and not its write-ahead log: trials take seconds, and
so all of a finished trial is in the one file. `synchronous = EXTRA` waits for the disk, and for the
folder once the journal is gone.

Price: two or three syncs a trial, some 10 ms on a disk.

Source: https://www.sqlite.org/atomiccommit.html
"""

from __future__ import annotations

import errno
import json
import math
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any
from urllib.parse import quote

from tersenet.errors import FormatError
from tersenet.files import Path
from tersenet.sweeping.results import Dense, Layer, Origin, Results, Trial
from tersenet.sweeping.space import Settings, key_of

IN_MEMORY = ":memory:"

_APPLICATION = int.from_bytes(b"ters", "big")
_VERSION = 1
_PATIENCE_S = 60  # for another process to end its commit
_SCHEMA = (
    "CREATE TABLE sweep (name TEXT PRIMARY KEY, value NOT NULL)",
    """CREATE TABLE trials (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,
       settings TEXT NOT NULL, nbytes INTEGER NOT NULL, accuracy REAL NOT NULL,
       bits_per_weight REAL NOT NULL, density REAL NOT NULL, seconds REAL NOT NULL)""",
    """CREATE TABLE layers (trial INTEGER NOT NULL REFERENCES trials, place INTEGER NOT NULL,
       name TEXT NOT NULL, kind TEXT NOT NULL, shape TEXT NOT NULL, density REAL NOT NULL,
       k INTEGER, layout TEXT NOT NULL, coder TEXT, nbytes INTEGER NOT NULL,
       bits_per_weight REAL NOT NULL, entropy_bits REAL, reason TEXT,
       PRIMARY KEY (trial, place))""",
)
_TRIAL = "number, key, settings, nbytes, accuracy, bits_per_weight, density, seconds"
_LAYER = tuple(field.name for field in fields(Layer))
_Types = dict[str, tuple[type, ...]]
_FACTS: _Types = {field.name: (str,) for field in fields(Origin)} | {
    "dense_accuracy": (float,),
    "dense_nbytes": (int,),
}
_TRIAL_TYPES: _Types = {
    "number": (int,),
    "settings": (dict,),
    "nbytes": (int,),
    "accuracy": (float,),
    "bits_per_weight": (float,),
    "density": (float,),
    "seconds": (float,),
}
_LAYER_TYPES: _Types = {
    "name": (str,),
    "kind": (str,),
    "shape": (tuple,),
    "density": (float,),
    "k": (int, type(None)),
    "layout": (str,),
    "coder": (str, type(None)),
    "nbytes": (int,),
    "bits_per_weight": (float,),
    "entropy_bits": (float, type(None)),
    "reason": (str, type(None)),
}
_ERRNOS = {
    sqlite3.SQLITE_FULL: (errno.ENOSPC, "no space left for results"),
    sqlite3.SQLITE_READONLY: (errno.EACCES, "results cannot be written"),
    sqlite3.SQLITE_PERM: (errno.EACCES, "results cannot be written"),
    sqlite3.SQLITE_CANTOPEN: (errno.EACCES, "results cannot be opened"),
    sqlite3.SQLITE_BUSY: (errno.EAGAIN, "results are locked by another process"),
    sqlite3.SQLITE_LOCKED: (errno.EAGAIN, "results are locked by another process"),
}


class ResultsFile:
    """An open file of results, until it is closed."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Open a file, and make it where it is not there and `create` is set.

        Raises:
            OSError: if it cannot be opened.
            FormatError: if it is something else.
        """
        self.path = os.fspath(path)
        if not create:
            os.stat(self.path)
        with self._named():
            self._connection = sqlite3.connect(
                self.path if self.path == IN_MEMORY else _uri(self.path, create),
                uri=self.path != IN_MEMORY,
                timeout=_PATIENCE_S,
                isolation_level=None,
            )
            try:
                self._connection.execute("PRAGMA synchronous = EXTRA")
                self._check(create)
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def begin(self, origin: Origin) -> Dense | None:
        """Check that what is there is of the same sweep; return the dense model's numbers.

        Returns None where nothing is there yet.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is of another model, other data, another space or version.
        """
        facts = self._checked_facts()
        if not facts:
            return None
        other = [name for name, value in vars(origin).items() if facts[name] != value]
        if other:
            words = {name: f"another {name}" for name in other} | {"data": "other data"}
            found = ", ".join(words[name] for name in other)
            if other == ["version"]:
                found = f"tersenet {facts['version']}, not {origin.version}"
            raise ValueError(
                f"sweep: {self.path} has results of {found}, expected those of this sweep "
                "(take another file for other results)"
            )
        return Dense(facts["dense_accuracy"], facts["dense_nbytes"])

    def describe(self, origin: Origin, dense: Dense) -> None:
        """Write what the sweep is of.

        Raises:
            OSError: if it cannot be written.
        """
        facts = {
            **vars(origin),
            "dense_accuracy": dense.accuracy,
            "dense_nbytes": dense.nbytes,
        }
        with self._committed():
            self._connection.executemany(
                "INSERT OR REPLACE INTO sweep VALUES (?, ?)", facts.items()
            )

    def add(self, trial: Trial) -> Trial:
        """Write a finished trial; it is on the disk when this returns.

        Returns what is there: that of the same settings which another process wrote meanwhile, or
        this one, with the next free number if its own is taken.

        Raises:
            OSError: if it cannot be written; what was there before still is.
        """
        with self._committed():
            if (present := self.get(trial.settings)) is not None:
                return present
            query = "SELECT max(number), max(number = ?) FROM trials"
            largest, is_taken = self._connection.execute(query, (trial.number,)).fetchone()
            if is_taken:
                trial = replace(trial, number=largest + 1)
            self._insert(trial)
        return trial

    def get(self, settings: Settings) -> Trial | None:
        """Return the trial of these settings, if it is finished.

        Raises:
            OSError: if the file cannot be read.
        """
        found = self._trials("WHERE key = ?", key_of(settings))
        return found[0] if found else None

    def results(self) -> Results:
        """Return all that is there.

        Raises:
            OSError: if the file cannot be read.
            FormatError: if no sweep has begun in it, or it is damaged.
        """
        with self._named():
            self._connection.execute("BEGIN")  # one state of the file for all that is read
            try:
                facts = self._checked_facts()
                trials = self._trials("ORDER BY number")
            finally:
                self._connection.execute("ROLLBACK")
        if not facts:
            raise FormatError(f"{self.path}: no sweep has begun in it, expected results of one")
        origin = Origin(**{field.name: facts[field.name] for field in fields(Origin)})
        dense = Dense(facts["dense_accuracy"], facts["dense_nbytes"])
        return Results(trials, dense, origin)

    def _insert(self, trial: Trial) -> None:
        settings = json.dumps(trial.settings)
        row = (
            *(trial.number, key_of(trial.settings), settings, trial.nbytes, trial.accuracy),
            *(trial.bits_per_weight, trial.density, trial.seconds),
        )
        self._connection.execute(
            f"INSERT INTO trials ({_TRIAL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row
        )
        for place, layer in enumerate(trial.layers):
            values = vars(layer) | {"shape": json.dumps(layer.shape)}
            self._connection.execute(
                f"INSERT INTO layers (trial, place, {', '.join(_LAYER)}) "
                f"VALUES (?, ?, {', '.join('?' * len(_LAYER))})",
                (trial.number, place, *(values[name] for name in _LAYER)),
            )

    def _checked_facts(self) -> dict[str, Any]:
        """Return what the sweep is of; nothing where none has begun."""
        with self._named():
            rows = self._connection.execute("SELECT name, value FROM sweep").fetchall()
        return self._checked("the sweep", dict(rows), _FACTS) if rows else {}

    def _trials(self, which: str, *values: object) -> list[Trial]:
        with self._named():
            rows = self._connection.execute(f"SELECT {_TRIAL} FROM trials {which}", values)
            found = []
            names = _TRIAL.split(", ")
            for row in rows.fetchall():
                cells: dict[str, Any] = dict(zip(names, row, strict=True))
                what = f"trial {cells['number']}"
                settings = self._parsed(f"{what}: settings", cells["settings"])
                cells |= {"settings": settings, "layers": self._layers(cells["number"])}
                del cells["key"]
                found.append(Trial(**self._checked(what, cells, _TRIAL_TYPES)))
            return found

    def _layers(self, number: int) -> tuple[Layer, ...]:
        query = f"SELECT {', '.join(_LAYER)} FROM layers WHERE trial = ? ORDER BY place"
        layers = []
        for place, row in enumerate(self._connection.execute(query, (number,))):
            values = dict(zip(_LAYER, row, strict=True))
            what = f"trial {number}: layer {place}"
            shape = self._parsed(f"{what}: shape", values["shape"])
            values["shape"] = tuple(shape) if isinstance(shape, list) else shape
            layers.append(Layer(**self._checked(what, values, _LAYER_TYPES)))
        return tuple(layers)

    def _parsed(self, what: str, text: Any) -> Any:
        try:
            return json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise FormatError(f"{self.path}: {what}: no JSON: {error}") from error

    def _checked(self, what: str, values: dict[str, Any], types: _Types) -> dict[str, Any]:
        """Check what any program may have written; SQLite holds any type in any column."""
        for name, expected in types.items():
            if name not in values or not _is_one(values[name], expected):
                found = repr(values.get(name, "missing"))[:80]
                kinds = " or ".join(kind.__name__ for kind in expected).replace("NoneType", "none")
                raise FormatError(f"{self.path}: {what}: {name} is {found}, expected {kinds}")
        for name in ("settings", "shape"):
            inner = values.get(name, ())
            each = inner.values() if isinstance(inner, dict) else inner
            allowed: tuple[type, ...] = (int,) if name == "shape" else (int, float, str, bool)
            if not all(_is_one(value, allowed) for value in each):
                raise FormatError(f"{self.path}: {what}: {name} holds {str(inner)[:80]}")
        return values

    def _check(self, create: bool) -> None:
        """Check whose file it is, and make the tables of a new one."""
        with self._committed() if create else self._named():
            application = self._pragma("application_id")
            version = self._pragma("user_version")
            query = "SELECT count(*) FROM sqlite_master"
            is_new = self._connection.execute(query).fetchone() == (0,)
            if create and is_new and application == 0:
                for statement in _SCHEMA:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
            elif application != _APPLICATION:
                raise FormatError(f"{self.path}: no results of a sweep, expected a file of them")
            elif version != _VERSION:
                raise FormatError(
                    f"{self.path}: results of version {version}, expected {_VERSION} "
                    "(a newer tersenet reads them)"
                )

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def _committed(self) -> Iterator[None]:
        """Do all of it or nothing, and wait for the disk."""
        with self._named():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Make errors of SQLite those of Python, with the path."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise FormatError(
                    f"{self.path}: {error}, expected the results of a sweep"
                ) from error
            number, text = _ERRNOS.get(code, (errno.EIO, f"results: {error}"))
            raise OSError(number, text, self.path) from error


def _is_one(value: object, types: tuple[type, ...]) -> bool:
    """Tell whether a value is of one of these very types, and finite."""
    return type(value) in types and (type(value) is not float or math.isfinite(value))


def _uri(path: str, create: bool) -> str:
    return f"file:{quote(os.path.abspath(path))}?mode={'rwc' if create else 'rw'}"
