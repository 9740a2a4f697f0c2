"""The commands themselves: options in, one table on stdout, progress on stderr.

Each command turns its options into one call of the package and shows the answer; whatever goes
wrong is an exception that `cli` reports. Torch and scikit-learn are loaded only by the commands
that need them, so that `tersenet --help` is quick. Those that run networks are in
`network_commands`, sweeps in `sweep_command`, pages in `report_command`; what they print goes through
`console`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tersenet import (
    __version__,
    array_files,
    dtypes,
    io,
    network_commands,
    report_command,
    sweep_command,
)
from tersenet.cli import DAMAGED, FINE, Settings, message
from tersenet.command_limits import LimitOption, limits
from tersenet.console import listed, note, progress, say, show, table, written_shape
from tersenet.dtypes import Array
from tersenet.errors import FormatError
from tersenet.network import Network
from tersenet.plan import Plan

if TYPE_CHECKING:
    from tersenet._core import Goal

_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt

app = typer.Typer(
    name="tersenet",
    help="Prune and quantize networks, store them losslessly compressed, look at such files.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Source = Annotated[Path, typer.Argument(metavar="IN", show_default=False)]
Stored = Annotated[Path, typer.Argument(metavar="FILE.terse", show_default=False)]


def run(arguments: Sequence[str], settings: Settings) -> int:
    """Run a command and return its exit status; errors come as exceptions."""
    try:
        status = app(list(arguments), prog_name="tersenet", standalone_mode=False, obj=settings)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as error:  # typer's, when nobody reads the output any more
        raise BrokenPipeError from error
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    return status if isinstance(status, int) else FINE


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"tersenet {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    settings = context.ensure_object(Settings)
    settings.debug = debug
    if context.invoked_subcommand is None:
        raise ValueError("no command, expected one: tersenet --help lists them")


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Of the weights and of the order of images.")] = 0,
    goal: Annotated[
        str, typer.Option(help="What the layers are laid out for: size or speed.")
    ] = "size",
    keep: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Keep the compressed file.")
    ] = None,
    epochs: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Train, prune, quantize, compress, save, load and run a small network, and compare."""
    from tersenet import demo

    with progress() as advance:
        result = demo.run(
            seed=seed, goal=_goal(goal), keep=keep, epochs=epochs or None, progress=advance
        )
    show(demo.table(result))


@app.command()
def compress(
    source: Source,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.terse")],
    sparsity: Annotated[float | None, typer.Option(help="Fraction of weights to prune.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Prune up to this magnitude.")] = None,
    quantizer: Annotated[str | None, typer.Option(help="cws, pws, uq or ecsq.")] = None,
    k: Annotated[int | None, typer.Option(help="How many values a layer keeps.")] = None,
    lam: Annotated[float | None, typer.Option(help="The price of a bit, for ecsq.")] = None,
    pruning_scope: Annotated[str | None, typer.Option(help="layer or global.")] = None,
    codebook_scope: Annotated[str | None, typer.Option(help="layer or kind.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is random (pws).")] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="PLAN.toml", help="What to do to which layer, in place of these."),
    ] = None,
    layout: Annotated[str, typer.Option(help="How weights lie in memory.")] = "auto",
    coder: Annotated[str, typer.Option(help="How their symbols are coded.")] = "auto",
    goal: Annotated[str, typer.Option(help="What auto looks for: size or speed.")] = "size",
    threads: Annotated[int, typer.Option(help="Tensors worked on at once.")] = 1,
) -> None:
    """Compress IN.safetensors or a torch file (.pt, .pth, .bin, .ckpt) tensor by tensor.

    Without a plan, a sparsity, a threshold or a quantizer this is lossless. With them, weights are
    pruned and quantized: tensors of two to five dimensions whose names end in "weight". Patterns of
    a plan match these names without ".weight". An embedding is left alone where its name says so
    (embed, emb, wte, wpe); a plan reaches it by "embedding:*" or by its name.
    """
    from tersenet.file_compression import compress_file

    _check_ending(output, ".terse")
    options = {
        "sparsity": sparsity,
        "threshold": threshold,
        "quantizer": quantizer,
        "k": k,
        "lam": lam,
        "pruning_scope": pruning_scope,
        "codebook_scope": codebook_scope,
        "seed": seed,
    }
    chosen = _plan(plan, {name: v for name, v in options.items() if v is not None})
    with progress() as advance:
        report = compress_file(
            source,
            output,
            chosen,
            goal=_goal(goal),
            layout=layout,
            coder=coder,
            threads=threads,
            progress=advance,
        )
    if report.left_out:
        note(f"left out, no tensors of the model: {listed(report.left_out)}")
    shown = table("tensor", "type", "shape", "layout", "density", "k", "bytes", "of dense")
    others = [row for row in report.rows if row.layout is None and row.reason is None]
    for row in report.rows:
        if row not in others:
            shown.add_row(
                row.name,
                row.dtype,
                written_shape(row.shape),
                _pair(row.layout, row.coder),
                "" if row.nnz is None else f"{row.nnz / prod(row.shape):.2%}",
                f"{row.k:,}" if row.k else "",
                f"{row.nbytes:,}",
                f"{row.nbytes / row.dense_nbytes:.2%}",
            )
    for name, first in report.aliases.items():
        shown.add_row(name, "", "", f"= {first}")
    show(shown)
    if others:
        nbytes = sum(row.nbytes for row in others)
        dense_nbytes = sum(row.dense_nbytes for row in others)
        say(f"{len(others)} other tensors, losslessly: {nbytes:,} of {dense_nbytes:,} bytes")
    if dropped := sum(row.dropped for row in report.rows):
        say(f"{dropped:,} weights became zero when they were quantized")
    share = report.target_nbytes / max(report.source_nbytes, 1)
    say(f"{output}: {report.target_nbytes:,} bytes, {share:.2%} of {report.source_nbytes:,}")


@app.command()
def decompress(
    source: Stored,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.safetensors")],
    limit: LimitOption = None,
) -> None:
    """Write FILE.terse as a safetensors file of dense tensors, bit for bit the same."""
    _check_ending(output, ".safetensors")
    if output.exists() and output.samefile(source):
        raise ValueError(f"decompress: {output} is the source, expected another file to write")
    nbytes = io.to_safetensors(source, output, limits=limits(limit))
    say(f"{output}: {nbytes:,} bytes, {source.stat().st_size:,} compressed")


@app.command()
def inspect(
    source: Stored,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    limit: LimitOption = None,
) -> None:
    """Show what the header of FILE.terse says; no weights are read."""
    with io.open(source, limits=limits(limit)) as file:
        facts = {name: _facts(file.info(name)) for name in file}
        own = [fact for fact in facts.values() if "alias_of" not in fact]
        totals = {
            "file_nbytes": file.nbytes,
            "tensors_nbytes": sum(fact["nbytes"] for fact in own),
            "dense_nbytes": sum(fact["dense_nbytes"] for fact in own),
        }
        metadata = file.metadata()
    if as_json:
        answer = {"path": str(source), **totals, "metadata": metadata, "tensors": facts}
        say(json.dumps(answer, indent=2))
        return
    shown = table("tensor", "type", "shape", "layout", "density", "k", "bytes", "bits each")
    for name, fact in facts.items():
        size, alias = prod(fact["shape"]), fact.get("alias_of")
        is_matrix = fact["kind"] == "matrix" and alias is None and size > 0
        shown.add_row(
            name,
            fact["dtype"],
            written_shape(fact["shape"]),
            _pair(fact.get("layout"), fact.get("coder")) if alias is None else f"= {alias}",
            f"{fact['nnz'] / size:.2%}" if is_matrix else "",
            str(fact["k"]) if is_matrix and "k" in fact else "",
            f"{fact['nbytes']:,}" if alias is None else "",
            f"{8 * fact['nbytes'] / size:.3f}" if alias is None and size else "",
        )
    show(shown)
    share = totals["file_nbytes"] / max(totals["dense_nbytes"], 1)
    rest = totals["file_nbytes"] - totals["tensors_nbytes"]
    say(
        f"{len(facts)} tensors, {totals['file_nbytes']:,} bytes, {share:.2%} of "
        f"{totals['dense_nbytes']:,} dense; header, codebooks and checksums are {rest:,} of them"
    )
    for key, value in metadata.items():
        say(f"{key} = {value}")


@app.command()
def compare(
    source: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    tensor: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a safetensors file.")
    ] = None,
    threads: Annotated[int, typer.Option(help="To decode and multiply with.")] = 1,
) -> None:
    """Show what a matrix of FILE.npy or FILE.safetensors takes in every layout."""
    from tersenet.reporting import compare

    ending = source.suffix.lower()
    if ending == ".npy":
        if tensor is not None:
            raise ValueError(f"{source}: --tensor {tensor}, expected none, for a file of one array")
        matrix = _npy_matrix(source)
    elif ending == ".safetensors":
        matrix = _checkpoint_matrix(source, tensor)
    else:
        raise ValueError(f"{source}: ending {ending!r}, expected .npy or .safetensors")
    say(str(compare(matrix, threads)))


@app.command()
def verify(source: Stored, limit: LimitOption = None) -> None:
    """Read and check all of FILE.terse; exit status 1 if it is damaged.

    All is every tensor, block, codebook and byte of padding; and of a network, its operators and that
    its weights are those that they need.
    """
    try:
        allowed = limits(limit)
        with io.open(source, limits=allowed) as file:
            file.verify()
            if file.has_network:
                Network.load(source, "compressed", limits=allowed)
            say(f"{source}: fine, {len(file)} tensors, {file.nbytes:,} bytes")
    except FormatError as error:
        note(message(error))
        raise typer.Exit(DAMAGED) from error


app.command()(network_commands.run)
app.command()(network_commands.bench)
app.command()(sweep_command.sweep)
app.command()(report_command.report)


def _plan(path: Path | None, options: dict[str, Any]) -> Plan | None:
    if path is None:
        return Plan.of(**options) if options else None
    if options:
        given = ", ".join("--" + name.replace("_", "-") for name in options)
        raise ValueError(f"compress: {given} with --plan {path}, expected one or the other")
    return Plan.load(path)


def _goal(goal: str) -> Goal:
    if goal not in ("size", "speed"):
        raise ValueError(f"goal is {goal!r}, expected 'size' or 'speed'")
    return "size" if goal == "size" else "speed"


def _check_ending(path: Path, ending: str) -> None:
    if path.suffix.lower() != ending:
        raise ValueError(f"{path}: ending {path.suffix!r}, expected {ending}")


def _facts(info: dict[str, Any]) -> dict[str, Any]:
    itemsize = np.dtype(dtypes.NUMPY_NAMES[info["dtype"]]).itemsize
    shape = list(info["shape"])
    return info | {"shape": shape, "dense_nbytes": prod(shape) * itemsize}


def _npy_matrix(path: Path) -> Array:
    array = array_files.load(path)
    return _as_matrix(array, array.dtype.name, str(path))


def _checkpoint_matrix(path: Path, tensor: str | None) -> Array:
    from tersenet.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    names = [name for name, entry in checkpoint.entries.items() if len(entry.shape) > 1]
    if tensor is None and len(names) == 1:
        tensor = names[0]
    if tensor not in checkpoint.entries:
        found = "no --tensor" if tensor is None else f"--tensor {tensor}"
        raise ValueError(f"{path}: {found}, expected one of {listed(names)}")
    return _as_matrix(checkpoint.get(tensor), checkpoint.entries[tensor].dtype, tensor)


def _as_matrix(array: Array, dtype: str, what: str) -> Array:
    values = dtypes.widened(array, dtype) if dtype in dtypes.NUMPY_NAMES else None
    if values is None or array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"{what}: found {dtype} {list(array.shape)}, expected at least two dimensions of "
            "values that float32 holds exactly"
        )
    return np.require(values.reshape(array.shape[0], -1), np.float32, ("C", "A"))


def _pair(layout: str | None, coder: str | None) -> str:
    """Name a layout, and its coder where that is not the plain one."""
    if layout is None:
        layout = "plain"
    return layout if coder in (None, "fixed") else f"{layout}, {coder}"
