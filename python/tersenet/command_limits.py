"""The option `--limit NAME=N` of commands that read a file: what the file may ask for."""

from __future__ import annotations

from typing import Annotated

import typer

from tersenet.files import Limits

_NAMES = [name.removeprefix("max_") for name in vars(Limits())]

LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=N",
        help=f"What the file may ask for, at most; may be repeated: {', '.join(_NAMES)}.",
    ),
]


def limits(given: list[str] | None) -> Limits:
    """Return the limits that options give, those not given as they are by default.

    Raises:
        ValueError: for another name, or what is no number.
    """
    chosen = {}
    for option in given or []:
        name, _, number = option.partition("=")
        if name not in _NAMES or not number.isdecimal():
            names = ", ".join(_NAMES)
            raise ValueError(f"--limit {option}: expected NAME=N, with NAME one of {names}")
        chosen[f"max_{name}"] = int(number)
    return Limits(**chosen)
