"""Checkpoints of other programs: files of named tensors that are read one at a time.

::

    .safetensors              read one tensor at a time; torch is not needed
    .pt .pth .bin .ckpt       torch.load, tensors only (weights_only), mapped; a state_dict, or the
                              one under "state_dict", "model_state_dict" or "model"

What is no tensor of the model (an optimizer's state, a number of epochs) is left out and named in
`left_out`. Tensors of a torch file that share all their memory are one tensor with several names.

Why mapped: a torch file may be larger than memory. As with any mapped file, nobody may cut it short
meanwhile.
"""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from tersenet import dtypes
from tersenet.dtypes import Array
from tersenet.errors import FormatError
from tersenet.files import Path
from tersenet.interchange import SafetensorsFile

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS_ENDINGS = (".safetensors",)
TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")

_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Entry:
    """What is known of a tensor before it is read: the type of its elements, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return prod(self.shape) * np.dtype(dtypes.NUMPY_NAMES[self.dtype]).itemsize


class Checkpoint(ABC):
    """A file of named tensors.

    `entries` are its tensors, `aliases` other names of some of them, `left_out` what else the
    file holds, `metadata` its strings.
    """

    entries: dict[str, Entry]
    aliases: dict[str, str]
    left_out: tuple[str, ...]
    metadata: dict[str, str]

    @abstractmethod
    def get(self, name: str) -> Array:
        """Return the values of a tensor, read-only; of bfloat16 the bit patterns."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint by the ending of its name, and read what it holds, but no values.

    Raises:
        OSError: if the file cannot be read.
        FormatError: if it is not what its ending says.
        ValueError: if the ending is none of those above, or the file holds no tensors of a model.
        ImportError: if it is a torch file and torch is not installed.
    """
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending in SAFETENSORS_ENDINGS:
        return _SafetensorsCheckpoint(path)
    if ending in TORCH_ENDINGS:
        return _TorchCheckpoint(path)
    expected = ", ".join(SAFETENSORS_ENDINGS + TORCH_ENDINGS)
    raise ValueError(f"{os.fspath(path)}: ending {ending!r}, expected one of {expected}")


class _SafetensorsCheckpoint(SafetensorsFile, Checkpoint):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.entries = {name: Entry(*entry) for name, entry in self.types.items()}
        self.aliases, self.left_out = {}, ()


class _TorchCheckpoint(Checkpoint):
    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        self.left_out, self.metadata = (), {}
        loaded = _load_torch(self.path)
        for key in _STATE_DICT_KEYS:
            if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
                self.left_out = tuple(str(other) for other in loaded if other != key)
                loaded = loaded[key]
                break
        if not hasattr(loaded, "items"):
            raise ValueError(
                f"{self.path}: holds a {type(loaded).__name__}, expected a state_dict: "
                "torch.save(model.state_dict(), path)"
            )
        self._tensors: dict[str, Tensor] = {}
        self.entries, self.aliases = {}, {}
        first: dict[object, str] = {}
        others: list[str] = []
        for key, value in loaded.items():
            name, entry = str(key), _entry(value)
            if entry is None:
                others.append(name)
                continue
            place = value.data_ptr(), value.stride(), entry
            if entry.nbytes and place in first:
                self.aliases[name] = first[place]
                continue
            first[place] = name
            self._tensors[name] = value
            self.entries[name] = entry
        self.left_out += tuple(others)
        if loaded and not self.entries:
            raise ValueError(
                f"{self.path}: holds {', '.join(map(str, loaded))} and no tensors, "
                f"expected a state_dict, or one under {', '.join(_STATE_DICT_KEYS)}"
            )

    def get(self, name: str) -> Array:
        return dtypes.from_tensor(self._tensors[name])[1]


def _entry(value: Any) -> Entry | None:
    """Return the entry of a tensor that a file can hold, else None."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        return None
    dtype = dtypes.name_of(value.dtype)
    return Entry(dtype, tuple(value.shape)) if dtype in dtypes.NUMPY_NAMES else None


def _load_torch(path: str) -> Any:
    import torch

    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # only these can be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error) and "not an allowed global" not in str(error):
            raise FormatError(f"{path}: no torch file: {_first_line(error)}") from error
        raise ValueError(
            f"{path}: holds Python objects besides tensors, which are not run, expected a "
            "state_dict: torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise FormatError(f"{path}: no torch file: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
