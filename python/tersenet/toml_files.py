"""What plans and spaces have in common as TOML: text to tables, keys that are known, files."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def parsed(what: str, text: str) -> dict[str, Any]:
    """Return the table of a TOML text.

    Raises:
        ValueError: if it is no TOML; `what` it was to be comes first.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{what}: the text is no TOML: {error}") from error


def loaded(path: str | Path, read: Callable[[str], T]) -> T:
    """Return what `read` makes of the text of a file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no UTF-8, or as `read`; with the path.
    """
    data = Path(path).read_bytes()
    try:
        return read(data.decode())
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(f"{error} ({path})") from error


def check_keys(what: str, table: Mapping[str, Any], known: Iterable[str], place: str) -> None:
    """Refuse a key that is not known, and name the nearest one that is.

    Raises:
        ValueError: if there is one in this `place` of `what`.
    """
    names = list(known)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            expected = ", ".join(names)
            raise ValueError(f"{what}: unknown key {key!r} in {place}, expected {expected}{hint}")
