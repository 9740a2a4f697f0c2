"""Files that appear under their name only when all of them is written."""

from __future__ import annotations

import os
import secrets
from builtins import open as open_file
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from tersenet.files import Path


class Replacing:
    """A file that takes its name only when all of it is written and synced.

    After an error what was there is untouched and nothing is left beside it; errors of the
    system name the file that was asked for.
    """

    def __init__(self, path: Path) -> None:
        """Take the name; nothing is opened yet."""
        self._path = os.fspath(path)
        self._folder = os.path.dirname(self._path) or "."

    def __enter__(self) -> BinaryIO:
        """Open a file beside it for writing."""
        self._beside = f"{self._path}.{secrets.token_hex(8)}"
        with self._named():
            self._file: BinaryIO = open_file(self._beside, "xb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Sync and rename it; after an error remove it."""
        try:
            with self._named():
                with self._file as file:
                    if kind is None:
                        file.flush()
                        os.fsync(file.fileno())
                if kind is None:
                    os.replace(self._beside, self._path)
                    _sync_folder(self._folder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(self._beside)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from error


def _sync_folder(folder: str) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
