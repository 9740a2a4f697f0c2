"""The command that writes a page to look at, and tells what a network costs: `tersenet report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tersenet.command_limits import LimitOption, limits
from tersenet.console import note, progress, say, show, table, written_shape
from tersenet.errors import FormatError
from tersenet.files import Limits
from tersenet.reporting import Report


def report(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PAGE.html", help="Where the page goes."),
    ] = None,
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
    costs: Annotated[
        bool,
        typer.Option(
            "--costs",
            help="Show the multiply-adds of a network for a batch of one, times the bits of a weight, "
            "and their energy; with or without a page.",
        ),
    ] = False,
    arithmetic: Annotated[
        str, typer.Option(help="Of a multiply-add: int8, int32, float16 or float32.")
    ] = "float32",
    memory: Annotated[
        str,
        typer.Option(help="Where weights are read from: sram, dram, or picojoules for 32 bits."),
    ] = "dram",
    as_json: Annotated[bool, typer.Option("--json", help="The costs as one JSON object.")] = False,
    limit: LimitOption = None,
) -> None:
    """Write SOURCE as one HTML page of figures, which loads nothing from anywhere, or tell its costs.

    SOURCE is a results file of `tersenet sweep` (bytes against accuracy, the Pareto front, each trial's
    layers, seconds) or a .terse file (bits a weight and entropy, histograms with codebooks, bytes
    before and after, times). The page has plotly within, some 5 MB. Costs, here and in the page, are
    those of a file that tersenet.export(model, example, path) wrote in Python: it has the operators
    that say how often each weight is multiplied. Energy is by Horowitz's table (45 nm).
    """
    if as_json and not costs:
        raise ValueError("report: --json without --costs, expected both, or neither")
    if output is None and not costs:
        raise ValueError("report: nothing to write, expected -o PAGE.html, or --costs")
    word, allowed = _word(memory), limits(limit)
    found = _costs(source, allowed, arithmetic, word) if costs else None
    if output is not None:
        told = _page(source, output, max_drop, times, allowed, arithmetic, word)
        (note if as_json else say)(told)
    if found is not None:
        if as_json:
            say(json.dumps(found.to_dict(), indent=2))
        else:
            _show(found)


def _costs(source: Path, allowed: Limits, arithmetic: str, memory: str | float) -> Report:
    from tersenet.network_report import of_file

    try:
        return of_file(source, allowed, costs=True, arithmetic=arithmetic, memory=memory)
    except FormatError as error:
        raise FormatError(f"{error}; --costs need a file of tersenet.export") from error


def _page(
    source: Path,
    output: Path,
    max_drop: float | None,
    times: bool,
    allowed: Limits,
    arithmetic: str,
    memory: str | float,
) -> str:
    from tersenet.pages import report_page

    with progress() as advance:
        nbytes = report_page(
            source,
            output,
            max_drop=max_drop,
            times=times,
            arithmetic=arithmetic,
            memory=memory,
            limits=allowed,
            progress=advance,
        )
    return f"{output}: {nbytes:,} bytes"


def _word(memory: str) -> str | float:
    try:
        return float(memory)
    except ValueError:
        return memory


def _show(found: Report) -> None:
    from tersenet.pages.texts import shown

    columns = ["shape", "kept", "bytes", "multiply-adds", "bits", "multiply-\nadd bits"]
    made = table("tensor", "used by", *columns, "arithmetic\npJ", "memory\npJ", "energy\npJ")
    for row in found:
        count, bits, computed = row.multiply_adds, row.multiply_add_bits, row.arithmetic_pj
        made.add_row(
            Text(shown(row.name)),
            row.kind,
            written_shape(row.shape),
            f"{row.density:.2%}",
            f"{row.nbytes:,}",
            "" if count is None else f"{count:,}",
            str(row.bits),
            "" if bits is None else f"{bits:,}",
            "" if computed is None else f"{computed:,.0f}",
            f"{row.memory_pj:,.0f}",
            f"{row.energy_pj:,.0f}",
        )
    show(made)
    for line in found.summary.splitlines():
        say(line)
