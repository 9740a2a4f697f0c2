"""Arrays in `.npy` and `.npz` files: read without pickle, written whole or not at all."""

from __future__ import annotations

import errno
import os
import zipfile
from builtins import open as open_file
from collections.abc import Sequence
from contextlib import ExitStack
from typing import BinaryIO, cast

import numpy as np

from tersenet.dtypes import Array
from tersenet.errors import FormatError
from tersenet.files import Path
from tersenet.replacing import Replacing


def ending(path: Path) -> str:
    """Return how a path ends: ".npy" or ".npz".

    Raises:
        ValueError: if it ends otherwise.
    """
    found = os.path.splitext(os.fspath(path))[1]
    if found.lower() not in (".npy", ".npz"):
        raise ValueError(f"{path}: ending {found!r}, expected .npy or .npz")
    return found.lower()


def load(path: Path) -> Array:
    """Return the array of a `.npy` file.

    Raises:
        OSError: if it cannot be read.
        FormatError: if it is no such file, damaged, or holds objects.
    """
    with open_file(path, "rb") as file:
        return _array(file, os.fspath(path))


def load_archive(path: Path) -> dict[str, Array]:
    """Return the arrays of a `.npz` file by name, in its order.

    Raises:
        OSError: if it cannot be read.
        FormatError: if it is no such file, damaged, or holds objects.
    """
    with open_file(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                arrays = {}
                for name in archive.namelist():
                    with archive.open(name) as member:
                        arrays[name.removesuffix(".npy")] = _array(
                            cast("BinaryIO", member), f"{path}: {name}"
                        )
                return arrays
        except FormatError:
            raise
        except Exception as error:
            # Of a damaged file zipfile and zlib raise a dozen types, from RuntimeError on; all say
            # that it cannot be read.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of a damaged place
                raise
            raise FormatError(f"{path}: no .npz file that can be read: {error}") from error


def save(paths: Sequence[Path], arrays: Sequence[Array]) -> None:
    """Write arrays, each to a `.npy` file or all to one `.npz` file as arr_0, arr_1, ...

    Files take their names once all are written and synced.

    Raises:
        OSError: if one cannot be written; the old ones are still there.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(Replacing(path)) for path in paths]
        if ending(paths[0]) == ".npz":
            archive = stack.enter_context(zipfile.ZipFile(files[0], "w"))
            for number, array in enumerate(arrays):
                with archive.open(f"arr_{number}.npy", "w", force_zip64=True) as member:
                    _write(cast("BinaryIO", member), array)
            return
        for file, array in zip(files, arrays, strict=True):
            _write(file, array)


def _array(file: BinaryIO, what: str) -> Array:
    try:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of a damaged header NumPy's parser raises whatever it meets
        raise FormatError(f"{what}: no array of numbers that NumPy can read: {error}") from error
    return array


def _write(file: BinaryIO, array: Array) -> None:
    np.lib.format.write_array(file, array, allow_pickle=False)
