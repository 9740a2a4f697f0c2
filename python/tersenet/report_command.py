"""The command that writes a page to look at: `tersenet report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersenet.command_limits import LimitOption, limits
from tersenet.console import progress, say


def report(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="PAGE.html", help="Where the page goes."),
    ],
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Of a sweep, show first the smallest file that loses no more accuracy; 0.01 is a "
            "point. By default the most accurate."
        ),
    ] = None,
    times: Annotated[
        bool,
        typer.Option(
            "--times/--no-times",
            help="Of a .terse file, measure how long each matrix takes to decode and to multiply.",
        ),
    ] = True,
    limit: LimitOption = None,
) -> None:
    """Write SOURCE as one HTML page of figures, which loads nothing from anywhere.

    SOURCE is a results file of `tersenet sweep` (bytes against accuracy, the Pareto front, each trial's
    layers, seconds) or a .terse file (bits a weight and entropy, histograms with codebooks, bytes
    before and after, times). The page has plotly within, some 5 MB.
    """
    from tersenet.pages import report_page

    with progress() as advance:
        nbytes = report_page(
            source,
            output,
            max_drop=max_drop,
            times=times,
            limits=limits(limit),
            progress=advance,
        )
    say(f"{output}: {nbytes:,} bytes")
