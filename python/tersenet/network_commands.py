"""The commands that run networks: `tersenet run` and `tersenet bench`.

Both take a file that `tersenet.export` wrote, and need NumPy alone; `bench` loads torch only to
measure a model of torch's beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

from tersenet import array_files, benchmark
from tersenet.array_files import ending
from tersenet.benchmark import Benchmark
from tersenet.command_limits import LimitOption, limits
from tersenet.console import listed, note, progress, say, show, table, written_shape
from tersenet.dtypes import Array
from tersenet.errors import FormatError
from tersenet.network import Network

_BATCHES = [1, 8, 32]
_FORMS = ["compressed", "cached"]

Exported = Annotated[Path, typer.Argument(metavar="NETWORK.terse", show_default=False)]


def run(
    source: Exported,
    inputs: Annotated[
        list[str] | None,
        typer.Option("-i", "--input", metavar="[NAME=]X.npy", help="One for each input."),
    ] = None,
    outputs: Annotated[
        list[Path] | None,
        typer.Option("-o", "--output", metavar="Y.npy", help="One for each output."),
    ] = None,
    resident: Annotated[
        str, typer.Option(help="How weights are held: compressed, cached or dense.")
    ] = "cached",
    threads: Annotated[
        int | None, typer.Option(help="By default as many as there are cores.")
    ] = None,
    limit: LimitOption = None,
) -> None:
    """Run a network on .npy files, without torch.

    NETWORK.terse is a file that tersenet.export(model, example, path) wrote in Python; the files of
    tersenet.save and of `tersenet compress` hold no network. Inputs come in the model's order, or
    by name; dimension 0 is the batch, of any size. Outputs are float32. One .npz file may hold all
    inputs, by name or as numpy.savez calls them, and one all outputs, as arr_0, arr_1 and so on.
    """
    network = _network(source, resident, limit)
    given, targets = _given(inputs or [], network), outputs or []
    _check_targets(targets, network)
    _check_unread(targets, [source, *(path for path, _ in given.values())])
    arrays = [_as(network.inputs[name][0], array, path) for name, (path, array) in given.items()]
    try:
        result = network.run(*arrays, threads=threads)
    except ValueError as error:
        places = ", ".join(f"{name} is {path}" for name, (path, _) in given.items())
        raise ValueError(f"{error} ({places})") from error
    results = result if isinstance(result, tuple) else (result,)
    array_files.save(targets, results)
    shown = ", ".join(f"{array.dtype} {written_shape(array.shape)}" for array in results)
    say(f"{', '.join(map(str, targets))}: {shown}")


def bench(
    source: Exported,
    batches: Annotated[
        list[int] | None,
        typer.Option("--batch", metavar="N", help="May be repeated; by default 1, 8 and 32."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="May be repeated; by default 1 and the number of cores."),
    ] = None,
    resident: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORM",
            help="How weights are held: compressed, cached or dense; may be repeated, by default "
            "compressed and cached.",
        ),
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:MODEL",
            help="A torch model to measure beside it: in a Python module, a model or a function "
            "without arguments that makes one. The module's code runs.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="To spend on each batch and threads.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    limit: LimitOption = None,
) -> None:
    """Measure how long a network takes, and what its weights take in memory.

    NETWORK.terse is a file that tersenet.export(model, example, path) wrote in Python. Inputs are
    made at random. The ways to hold weights, and torch, are called in turn, once untimed and once
    timed, in at least five rounds. Times are of one call; "per second" counts the examples of its
    batch, at the median.
    """
    peer = None
    if torch is not None:
        from tersenet.torch_peer import TorchPeer

        peer = TorchPeer.load(torch)
    with progress() as advance:
        forms = list(dict.fromkeys(resident or _FORMS))
        networks: dict[str, Network] = {}
        for form in forms:
            advance("loading", len(networks), len(forms))
            networks[form] = _network(source, form, limit)
        advance("loading", len(forms), len(forms))
        result = benchmark.measure(
            networks,
            batches=batches or _BATCHES,
            threads=threads or benchmark.default_threads(),
            peer=peer,
            seconds=seconds,
            seed=seed,
            limits=limits(limit),
            progress=advance,
        )
    if as_json:
        say(json.dumps(result.to_dict(), indent=2))
    else:
        _show(result)


def _network(source: Path, resident: str, limit: list[str] | None) -> Network:
    allowed = limits(limit)
    try:
        return Network.load(source, cast("Any", resident), limits=allowed)
    except FormatError as error:
        raise FormatError(f"{error}; tersenet.export makes the file that is needed") from error


def _check_targets(targets: Sequence[Path], network: Network) -> None:
    """Check before anything is computed that each output can have its file."""
    endings = [ending(path) for path in targets]
    if len(targets) != network.noutputs and endings != [".npz"]:
        raise ValueError(
            f"{network.path}: {len(targets)} --output, expected {network.noutputs}, one for each "
            "output of the network, or one .npz for all"
        )
    if ".npz" in endings and len(targets) > 1:
        raise ValueError(f"{listed([*map(str, targets)])}: expected .npy for each, or one .npz")
    places = [path.parent.resolve() / path.name for path in targets]
    for number, path in enumerate(targets):
        if places[number] in places[:number]:
            raise ValueError(f"{path}: --output given twice, expected another file for each")
        if path.is_dir() or not path.absolute().parent.is_dir():
            found = "a directory" if path.is_dir() else "in no directory that exists"
            raise ValueError(f"{path}: --output is {found}, expected a file to write")


def _check_unread(targets: Sequence[Path], sources: Sequence[Path]) -> None:
    for path in targets:
        if path.exists() and any(path.samefile(source) for source in sources):
            raise ValueError(f"run: {path} is read from, expected another file to write")


def _given(texts: Sequence[str], network: Network) -> dict[str, tuple[Path, Array]]:
    """Return the file and the array of each input, in the network's order."""
    names = list(network.inputs)
    if len(texts) == 1 and texts[0].lower().endswith(".npz"):
        path = Path(texts[0])
        arrays = array_files.load_archive(path)
        numbered = [f"arr_{number}" for number in range(len(names))]
        keys = numbered if arrays.keys() == set(numbered) else names
        if arrays.keys() != set(keys):
            raise ValueError(
                f"{path}: holds {listed(list(arrays))}, expected {listed(names)}, or "
                f"{listed(numbered)}"
            )
        return {name: (path, arrays[key]) for name, key in zip(names, keys, strict=True)}
    paths: dict[str, Path] = {}
    unnamed: list[Path] = []
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or Path(text).exists():
            unnamed.append(Path(text))
        elif name not in names or name in paths:
            found = "given twice" if name in paths else f"no input called {name!r}"
            raise ValueError(f"--input {text}: {found}, expected {network.signature}")
        else:
            paths[name] = Path(rest)
    left = [name for name in names if name not in paths]
    if len(unnamed) != len(left):
        raise ValueError(
            f"{network.path}: {len(texts)} --input, expected {len(names)}: {network.signature}"
        )
    paths |= dict(zip(left, unnamed, strict=True))
    for path in paths.values():
        if ending(path) == ".npz":
            raise ValueError(f"{path}: one of {len(names)} inputs, expected .npy, or one .npz")
    return {name: (paths[name], array_files.load(paths[name])) for name in names}


def _as(dtype: str, array: Array, path: Path) -> Array:
    """Return numbers as the float32 that a network takes, and say so if any is rounded."""
    if dtype != "float32" or array.dtype.kind not in "fiu" or array.dtype == np.float32:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = array.astype(np.float32)
    if array.dtype.kind == "f" and np.any(np.isinf(rounded) & np.isfinite(array)):
        raise ValueError(f"{path}: holds {array.dtype} beyond float32, expected numbers within it")
    if not np.array_equal(rounded, array, equal_nan=True):
        note(f"{path}: {array.dtype}, rounded to float32")
    return rounded


def _show(result: Benchmark) -> None:
    say(f"{result.path}: {result.file_nbytes:,} bytes; {result.inputs}; {result.simd}")
    torch_ms = {(t.threads, t.batch): t.median_ms for t in result.timings if t.form == "torch"}
    columns = ["threads", "batch", "median\nms", "least\nms", "per\nsecond"]
    shown = table("weights", *columns, *(["x\ntorch"] if torch_ms else []))
    settings = None
    for timing in result.timings:
        setting = timing.threads, timing.batch
        if settings not in (None, setting):
            shown.add_section()
        settings = setting
        shown.add_row(
            timing.form,
            str(timing.threads),
            str(timing.batch),
            _ms(timing.median_ms),
            _ms(timing.best_ms),
            f"{timing.examples_per_second:,.0f}",
            *([f"{torch_ms[setting] / timing.median_ms:.2f}"] if torch_ms else []),
        )
    show(shown)
    held = table("weights", "bytes\nloaded", "after\nthe runs")
    for form, taken in result.held.items():
        held.add_row(form, f"{taken.loaded_nbytes:,}", f"{taken.nbytes:,}")
    show(held)
    if result.difference is not None and result.largest is not None:
        is_close = result.difference <= 0.01 * result.largest
        say(
            f"answers differ from torch's by at most {result.difference:.3g}, of numbers up to "
            f"{result.largest:.3g}{'' if is_close else ': is it the model that was exported?'}"
        )


def _ms(ms: float) -> str:
    return f"{ms:.3f}" if ms < 100 else f"{ms:,.0f}"
