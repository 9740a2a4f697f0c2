"""Numbers and names as people read them, and text from files made safe for each reader.

::

    shown      for textContent and as the first step of the others: printable, not endless
    in_html    between tags and in attributes
    in_plot    plotly reads a little markup of its own in every text: &, < and > are escaped
    in_script  JSON in a script element, where only "</" or "<!--" could do harm: no "<" is left
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

_LONGEST = 160  # characters of a text from a file, anywhere
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_JOULES = ("pJ", "nJ", "µJ", "mJ", "J")


def shown(text: object, width: int = _LONGEST) -> str:
    """Return text with a mark for what cannot be seen, its end where it is too long."""
    text = str(text)
    if len(text) > width:
        text = "…" + text[len(text) - width + 1 :]
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def in_html(text: object, width: int = _LONGEST) -> str:
    """Return text for HTML, between tags or in a quoted attribute."""
    return html.escape(shown(text, width))


def in_plot(text: object, width: int = _LONGEST) -> str:
    """Return text for plotly, whose texts are a kind of HTML."""
    return html.escape(shown(text, width), quote=False)


def in_script(value: Any) -> str:
    """Return plain values as JSON for a script element.

    Raises:
        ValueError: for a number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def lines(*parts: str) -> str:
    """Join what is `in_plot` already as lines of a text that pops up."""
    return "<br>".join(part for part in parts if part)


def nbytes(number: float) -> str:
    """Return bytes with a unit, three to four digits of them."""
    unit = 0
    while number >= 999.95 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} B" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def joules(picojoules: float) -> str:
    """Return an energy with a unit."""
    unit = 0
    while picojoules >= 999.95 and unit < len(_JOULES) - 1:
        picojoules, unit = picojoules / 1000, unit + 1
    return f"{picojoules:.4g} pJ" if unit == 0 else f"{picojoules:.1f} {_JOULES[unit]}"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage of three digits."""
    return f"{100 * fraction:.3g} %" if fraction < 0.9995 else f"{100 * fraction:,.1f} %"


def real(number: float) -> str:
    """Return a number of any size with four digits."""
    return f"{number:.4g}"


def shape(sides: Sequence[int]) -> str:
    """Return a shape, 3 x 4 with a real cross."""
    return " × ".join(f"{side}" for side in sides) or "scalar"  # noqa: RUF001


def counted(number: int, thing: str) -> str:
    """Return how many there are of a thing, whose plural takes an s."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
