"""The command that tries many plans: `tersenet sweep`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersenet.console import progress, say
from tersenet.importing import imported, working_folder_importable
from tersenet.sweeping.space import Space

if TYPE_CHECKING:
    from tersenet.sweeping import Results

_EXAMPLE = "module:function, as in networks:make_model"


def sweep(
    source: Annotated[Path, typer.Argument(metavar="SPACE.toml", show_default=False)],
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where finished trials are kept, and taken up again; by default SPACE.sqlite.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes; by default a core each. 0: in this one."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: auto, or its address."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Choose the smallest file that loses no more accuracy; 0.01 is a point."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Show every trial, not the front alone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Prune, quantize, fine-tune and save a model in every way that SPACE.toml says.

    SPACE.toml lists values for the fields of a plan, by layer pattern, and for training; [model]
    and [data] name functions without arguments, which return a trained model and (training batches
    or nothing, validation batches). Their code runs. A sweep that was interrupted goes on when it
    is started again. Shown is the Pareto front of bytes and accuracy.
    """
    from tersenet.sweeping.driving import sweep

    space = Space.load(source)
    functions = {}
    for name, function in (("model", space.model), ("data", space.data)):
        if function is None:
            raise ValueError(f"{source}: no [{name}], expected function = 'module:function' in it")
        functions[name] = imported(function, f"{source}: [{name}] function", _EXAMPLE)
    with ExitStack() as stack:
        stack.enter_context(working_folder_importable())  # for workers, which inherit the path
        executor = None
        if ray is not None:
            from tersenet.sweeping.rays import RayExecutor

            executor = stack.enter_context(RayExecutor(ray))
        found = sweep(
            functions["model"],
            functions["data"](),
            space,
            executor,
            results=source.with_suffix(".sqlite") if results is None else results,
            workers=workers,
            progress=stack.enter_context(progress()),
        )
    _show(found if every else found.front(), found, max_drop, as_json)


def _show(shown: Results, found: Results, max_drop: float | None, as_json: bool) -> None:
    chosen = None if max_drop is None else found.choose(max_drop=max_drop)
    if as_json:
        answer = {
            "dense": vars(found.dense),
            "trials": shown.to_dicts(),
            "chosen": None if chosen is None else chosen.number,
        }
        say(json.dumps(answer, indent=2))
        return
    say(str(shown))
    say(f"{len(found)} trials, {len(found.front())} on the front")
    if chosen is not None:
        settings = ", ".join(f"{name} = {value}" for name, value in chosen.settings.items())
        say(f"trial {chosen.number}, {chosen.nbytes:,} bytes, {chosen.accuracy:.4f}: {settings}")
