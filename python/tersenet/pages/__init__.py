"""Pages: what a sweep found, or what a `.terse` file holds, as one HTML page to look at.

::

    results of a sweep ──of_results──▶ Page: facts, sections ──document──▶ one .html file
    a .terse file ──weights──▶ of_file ──▶        │
    a network in it ──network_report──▶           │
                                               figures: plotly's JSON, colours as CSS variables

The page needs nothing from anywhere: plotly's JavaScript (about 5 MB, all of it: its Python package
ships no smaller bundle), the style and the numbers are within, and its content security policy lets
it load nothing and run only the two scripts that were written, by their digests.

Text from files (names, settings, metadata) is data at each step: escaped in HTML, escaped again in
what plotly reads as its own markup, and in the JSON no "<" is left that could end the script. Weights
never go into a page; histograms are of bins.

Plotly is needed, and loaded when a page is written; torch is not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial

from tersenet.errors import FormatError
from tersenet.files import File, Limits, Path
from tersenet.hardware import prices
from tersenet.network_report import of_file as of_network
from tersenet.pages.document import Page, check_target, plotly_script, write
from tersenet.reporting import Report

__all__ = ["Page", "report_page"]

_SQLITE = b"SQLite format 3\0"
_TERSE = b"\x89TRS\r\n\x1a\n"


def report_page(
    source: Path,
    path: Path,
    *,
    max_drop: float | None = None,
    times: bool = True,
    arithmetic: str = "float32",
    memory: str | float = "dram",
    limits: Limits | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Write one HTML page about a sweep's results or a `.terse` file; return its bytes.

    Of results: bytes against accuracy, the Pareto front, and of one trial at a time the bits and
    bytes of each layer. Of a `.terse` file: bits a weight beside their entropy, histograms, bytes,
    and times; and where it holds a network, as `export` writes, what that costs on hardware. The page opens in a browser without a network, on phones and in the dark, too.

    Args:
        source: a file of results, as `sweep` writes, or a `.terse` file.
        path: the page, ending in .html.
        max_drop: of results, show first what `Results.choose` takes; by default the most accurate
            trial, of equal ones the smallest.
        times: of a `.terse` file, measure here how long each matrix takes to decode and to multiply.
        arithmetic: of a network, that of a multiply-add: see `tersenet.hardware.energy`.
        memory: of a network, where weights are read from: see there.
        limits: what a `.terse` file may ask for.
        progress: called with what is done, how far, and of how much.

    Raises:
        ImportError: if plotly is not installed.
        OSError: if a file cannot be read or written.
        FormatError: if the source is neither kind of file, or damaged.
        ValueError: if there is no finished trial, none that loses as little as `max_drop`, the
            page cannot be at `path`, or `arithmetic` or `memory` is unknown.
    """
    check_target(source, path)
    prices(arithmetic, memory)
    script = plotly_script()
    costs = partial(of_network, arithmetic=arithmetic, memory=memory)
    page = _page(source, max_drop, times, limits or Limits(), progress or _silent, costs)
    return write(page, script, path)


def _page(
    source: Path,
    max_drop: float | None,
    times: bool,
    limits: Limits,
    progress: Callable[[str, int, int], None],
    costs: Callable[[Path, Limits], Report],
) -> Page:
    with open(source, "rb") as file:
        start = file.read(len(_SQLITE))
    if start == _SQLITE:
        from tersenet.pages import of_results
        from tersenet.sweeping import Results

        return of_results.page(Results.open(source), source, max_drop)
    from tersenet.pages import of_file

    try:
        opened = File(source, False, limits)
    except FormatError as error:
        if start.startswith(_TERSE):
            raise
        raise FormatError(f"{error}; expected that, or the results of a sweep") from error
    with closing(opened):
        if max_drop is not None:
            raise ValueError(
                f"{source}: a .terse file, expected the results of a sweep with max_drop {max_drop}"
            )
        found = costs(source, limits) if opened.has_network else None
        return of_file.page(opened, times, progress, found)


def _silent(what: str, done: int, total: int) -> None:
    pass
