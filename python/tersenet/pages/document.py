"""A page of facts, figures and tables, and how it becomes one HTML file.

::

    Page ── Section ── Drawing            a figure of plotly under a heading
                   ├── Choice             one of several is shown: its note, its figures
                   └── Table              each cell with its column's name, for narrow screens

A figure of a choice is drawn with the variant that is chosen. Colours in figures are CSS variables,
which the page's script looks up, so light and dark are said once, in the style.

Source: content security policies by digest, https://www.w3.org/TR/CSP3/#match-element-to-source-list
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

from tersenet._core import __version__
from tersenet.files import Path
from tersenet.pages.texts import in_html, in_script
from tersenet.replacing import Replacing

Figure = dict[str, Any]  # plotly's data and layout


@dataclass(frozen=True)
class Drawing:
    """A place for a figure; `figure` is None where a choice says which.

    `picks` is the key of a choice that a click on a point makes, by the point's id; a trace whose
    `meta` is "chosen" goes to the point of what is chosen. `is_wide` ones have a row to themselves.
    """

    key: str
    title: str
    figure: Figure | None = None
    picks: str | None = None
    is_wide: bool = False


@dataclass(frozen=True)
class Variant:
    """What a choice shows: a line of text, and figures by the key of their drawing."""

    note: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Choice:
    """What to choose from: (value, text) each, and what each shows; the first is shown first."""

    key: str
    label: str
    options: Sequence[tuple[str, str]]
    variants: Mapping[str, Variant]


@dataclass(frozen=True)
class Table:
    """Columns, and rows of texts; `numeric` columns stand to the right, `marked` rows stand out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[str] = ()
    marked: Sequence[int] = ()


@dataclass(frozen=True)
class Section:
    """A heading, what to know, and what is shown under it, drawings side by side where they fit."""

    title: str
    text: str = ""
    drawings: Sequence[Drawing] = ()
    choice: Choice | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Page:
    """A title, what the page is about, its main facts as (name, value, more), and sections."""

    title: str
    about: str
    facts: Sequence[tuple[str, str, str]]
    sections: Sequence[Section] = field(default=())


def plotly_script() -> str:
    """Return plotly's JavaScript.

    Raises:
        ImportError: if plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            "a report page needs plotly: pip install 'tersenet[report]'", name="plotly"
        ) from error
    return str(get_plotlyjs())


def check_target(source: Path, path: Path) -> None:
    """Check before anything is computed that a page can be at a path.

    Raises:
        ValueError: if it has another ending, is a folder or in none, or is what is read.
    """
    text = os.fspath(path)
    ending = os.path.splitext(text)[1]
    if ending.lower() != ".html":
        raise ValueError(f"{text}: ending {ending!r}, expected .html")
    if os.path.isdir(text) or not os.path.isdir(os.path.dirname(text) or "."):
        found = "a folder" if os.path.isdir(text) else "in no folder that exists"
        raise ValueError(f"{text}: is {found}, expected a file to write")
    if os.path.exists(text) and os.path.exists(source) and os.path.samefile(source, text):
        raise ValueError(f"{text}: is the source, expected another file to write")


def write(page: Page, plotly: str, path: Path) -> int:
    """Write a page and return its bytes; after an error what was there still is.

    Raises:
        OSError: if it cannot be written.
    """
    data = html_of(page, plotly).encode()
    with Replacing(path) as file:
        file.write(data)
    return len(data)


def html_of(page: Page, plotly: str) -> str:
    """Return a page as HTML, with plotly's JavaScript in it."""
    drawings = [drawing for section in page.sections for drawing in section.drawings]
    choices = [section.choice for section in page.sections if section.choice is not None]
    numbers = {
        "figures": {drawing.key: drawing.figure for drawing in drawings},
        "choices": {
            choice.key: {
                value: {"note": variant.note, "figures": dict(variant.figures)}
                for value, variant in choice.variants.items()
            }
            for choice in choices
        },
    }
    script = _resource("page.js")
    return Template(_resource("page.html")).substitute(
        title=in_html(page.title),
        about=in_html(page.about),
        version=in_html(__version__),
        scripts=f"{_digest(plotly)} {_digest(script)}",
        style=_resource("page.css"),
        facts="\n".join(map(_fact, page.facts)),
        sections="\n".join(map(_section, page.sections)),
        numbers=in_script(numbers),
        plotly=plotly,
        script=script,
    )


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _digest(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _fact(fact: tuple[str, str, str]) -> str:
    name, value, more = map(in_html, fact)
    return f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>"


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{in_html(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{in_html(section.text, 2000)}</p>")
    if section.choice is not None:
        parts.append(_choice(section.choice))
    if section.drawings:
        parts += ['<div class="drawings">', *map(_drawing, section.drawings), "</div>"]
    if section.table is not None:
        parts.append(_table(section.table))
    return "\n".join([*parts, "</section>"])


def _drawing(drawing: Drawing) -> str:
    picks = f' data-picks="{in_html(drawing.picks)}"' if drawing.picks else ""
    title = in_html(drawing.title)
    wide = ' class="wide"' if drawing.is_wide else ""
    return (
        f'<figure{wide}><figcaption>{title}</figcaption><div class="plot" role="img" '
        f'aria-label="{title}" data-figure="{in_html(drawing.key)}"{picks}></div></figure>'
    )


def _choice(choice: Choice) -> str:
    options = "".join(
        f'<option value="{in_html(value)}">{in_html(text)}</option>'
        for value, text in choice.options
    )
    key = in_html(choice.key)
    return (
        f'<label class="choice">{in_html(choice.label)} <select data-choice="{key}" '
        f'autocomplete="off">{options}</select></label>\n'
        f'<p class="note" data-note="{key}" aria-live="polite"></p>'
    )


def _table(table: Table) -> str:
    kinds = [' class="number"' if name in table.numeric else "" for name in table.columns]
    columns = zip(table.columns, kinds, strict=True)
    # Settings may be broken at their dots, where the table is narrow.
    breaking = ((in_html(name).replace(".", ".<wbr>"), kind) for name, kind in columns)
    heads = [f'<th scope="col"{kind}>{name}</th>' for name, kind in breaking]
    lines = ['<div class="table"><table>', "<thead><tr>", *heads, "</tr></thead>", "<tbody>"]
    for number, row in enumerate(table.rows):
        cells = [
            f'<td data-column="{in_html(name)}"{kind}>{in_html(text)}</td>'
            for name, kind, text in zip(table.columns, kinds, row, strict=True)
        ]
        mark = ' class="marked"' if number in table.marked else ""
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table></div>"])
