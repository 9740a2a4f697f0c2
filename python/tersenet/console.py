"""What commands print: answers and tables on stdout, notes and progress on stderr."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

_WIDTH_IN_A_FILE = 200
_NAMES_SHOWN = 5
_NAME_WIDTH = 10  # at least, on a narrow terminal
_TEXTS = ("type", "shape", "layout")
_SPEED_OF_S = 24 * 3600.0  # what the estimate of the time left looks back on: steps may be long
_NOTE_EVERY_S = 30.0


def say(text: str) -> None:
    """Print a line of the answer as it is."""
    _stdout().print(text, markup=False, highlight=False, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table of the answer, as wide as the terminal.

    Names are folded where it is narrow; numbers are never cut, so a terminal too narrow for them
    breaks the lines.
    """
    console = _stdout()
    names, *others = table.columns
    if all(column.no_wrap for column in others):
        names.max_width = _NAME_WIDTH
        unbounded = console.options.update(width=_WIDTH_IN_A_FILE)
        needed = Measurement.get(console, unbounded, table).maximum
        names.max_width = None
        console = Console(width=max(console.width, needed))
    console.print(table)


def note(text: str) -> None:
    """Print a line that is no part of the answer."""
    console = Console(stderr=True)
    console.print(f"tersenet: {text}", markup=False, highlight=False, soft_wrap=True)


def table(name: str, *columns: str) -> Table:
    """Return an empty table: names that may be folded, then numbers and a few texts."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.add_column(name, overflow="fold")
    for column in columns:
        made.add_column(column, justify="left" if column in _TEXTS else "right", no_wrap=True)
    return made


def written_shape(shape: Sequence[int]) -> str:
    """Return a shape as people write it, 3x4."""
    return "x".join(map(str, shape)) or "scalar"


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown or "none"


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show how far each thing is and an estimate of the time left, until the end.

    On a terminal's stderr these are bars, elsewhere a line every half a minute.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Notes().advance
        return
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        speed_estimate_period=_SPEED_OF_S,
    )
    tasks: dict[str, TaskID] = {}

    def advance(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what)
        bars.update(tasks[what], completed=done, total=max(total, 1))

    with bars:
        yield advance


class _Notes:
    """Progress for a file: a line now and then; nothing of what is quick."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}  # when each was first told of, and how far
        self._last_s = time.monotonic()

    def advance(self, what: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        start_s, before = self._first.setdefault(what, (now_s, done))
        if now_s - self._last_s < _NOTE_EVERY_S:
            return
        self._last_s = now_s
        left = ""
        if done > before:
            seconds = (now_s - start_s) / (done - before) * (total - done)
            left = f", about {datetime.timedelta(seconds=round(seconds))} left"
        note(f"{what}: {done} of {total}{left}")


def _stdout() -> Console:
    """Return stdout: as wide as the terminal, or wide enough for a table in a file."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_FILE)
