"""Save, open and load `.terse` files, and go to and from safetensors.

::

    model or dict ──names and values──▶ file        tied tensors once, other names as aliases
    file ──open──▶ keys, info, get                  one tensor at a time, checked when read
    file ──load──▶ dict, or a model:                compare all names, shapes and types
                                                    read and check all values
                                                    only then change the model

A model is saved as the tensors that it computes with, under the names of its stock layers
(`fc.weight`, `fc.bias`), so a file loads into a plain model of the same architecture and into a
compressed one alike. Optimizers and masks are not part of it. Loaded into a plain model, layers
become compressed layers, and no dense weight is ever made.

Why compare first: a model that is half loaded is worse than an error.

Torch is loaded only where a model comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast, overload

from tersenet import files
from tersenet.files import File, Level, Limits, Path, Value
from tersenet.interchange import from_safetensors, to_safetensors

if TYPE_CHECKING:
    from torch import nn

    from tersenet._core import Goal

__all__ = ["File", "Limits", "from_safetensors", "load", "open", "save", "to_safetensors"]


def open(path: Path, mmap: bool = False, limits: Limits | None = None) -> File:
    """Open a file and check its header; tensors are read and checked when asked for.

    Args:
        path: a `.terse` file.
        mmap: map the file instead of reading it; then nobody may write to it while it is open.
        limits: what the file may ask for.

    Raises:
        OSError: if the file cannot be read.
        FormatError: if it is no valid `.terse` file, or beyond the limits.
    """
    return File(path, mmap, limits or Limits())


def save(
    source: nn.Module | Mapping[str, Any],
    path: Path,
    goal: Goal | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    level: Level = "best",
) -> int:
    """Save a model, or a dict of CompressedMatrix, arrays and torch tensors; return the bytes.

    The file is written beside its target, synced and renamed: after an error the old file is
    still there.

    Args:
        source: of a model, its tensors; weights of compressed layers are stored compressed.
        path: where to; `.terse` is the usual ending.
        goal: "size" or "speed" gives compressed matrices the layout that is best for it; None
            keeps each as it is. For size archive is among them, which takes a second for about 5 M
            weights to write and to read; and all other tensors (biases, norms, embeddings, weights
            that are not compressed) and codebooks are coded losslessly where that is smaller. Archives
            of up to a million weights go on from each other; one that is read by its name is decoded
            after those before it, of up to 4 million weights in all.
        metadata: strings of your own, stored with it.
        level: "fast" writes and reads archives of matrices about twice as fast where rows are alike,
            10 M weights a second and more where few are kept, for files of up to 1.6 times the size;
            for the goal "size" alone.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if a name or a value cannot be stored, or the model is still parametrized by
            prune or quantize (compress it first).
    """
    _check_goal("save", goal)
    files.check_level("save", goal, level)
    named = dict(source) if isinstance(source, Mapping) else _state().of(source)
    return files.write(path, named, goal, metadata, level=level)


@overload
def load(
    path: Path,
    into: None = None,
    goal: Goal | None = None,
    *,
    mmap: bool = False,
    limits: Limits | None = None,
) -> dict[str, Value]: ...
@overload
def load(
    path: Path,
    into: nn.Module,
    goal: Goal | None = None,
    *,
    mmap: bool = False,
    limits: Limits | None = None,
) -> nn.Module: ...
def load(
    path: Path,
    into: nn.Module | None = None,
    goal: Goal | None = None,
    *,
    mmap: bool = False,
    limits: Limits | None = None,
) -> dict[str, Value] | nn.Module:
    """Load a file into a model, or return its values by name.

    Into a model, each layer whose weight is stored compressed becomes a compressed layer (or gets
    the new payload, if it is one), and other tensors are copied. Types must agree, or the model's
    hold the file's exactly. What was tied in the file is tied again. If an error is raised, the
    model is as it was. Tensors are read side by side, on as many cores as there are, or threads
    that torch takes.

    Args:
        path: a `.terse` file.
        into: a model of the same architecture, plain or compressed; on the "meta" device, too.
        goal: "speed" or "size" gives compressed matrices the layout that is best for it; None
            keeps each as it is stored, and of a layer what is an archive as coded or grouped, and
            slices (`sell`) only where they are fastest.
        mmap: as in `open`.
        limits: as in `open`.

    Returns:
        The model (if it is a single layer: the compressed layer in its place); or a dict as of
        `File.get`, where other names of one tensor hold the same object. Matrices and bit
        patterns in a dict do not tell the logical shape and type: `File.info` does.

    Raises:
        OSError: if the file cannot be read.
        FormatError: if it is damaged, or beyond the limits.
        ValueError: if names, shapes or types do not match (it lists all of them), or the goal is
            another.
    """
    _check_goal("load", goal)
    with File(path, mmap, limits or Limits()) as file:
        if into is not None:
            return cast("nn.Module", _state().load_into(file, into, goal))
        targets = {name: file.info(name).get("alias_of", name) for name in file}
        values = file.values(dict.fromkeys(targets.values()), goal)
        return {name: values[target] for name, target in targets.items()}


def _check_goal(what: str, goal: str | None) -> None:
    if goal not in (None, "size", "speed"):
        raise ValueError(f"{what}: goal is {goal!r}, expected 'size', 'speed' or None")


def _state() -> ModuleType:
    """Return the module that knows models, or say what it needs."""
    try:
        from tersenet import state
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            "models need torch: pip install 'tersenet[torch]'", name="torch"
        ) from error
    return state
