"""What options and files name as "module:attribute", as in networks:make_model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """Let modules be found in the working folder first, as by `python -m`."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def imported(name: str, what: str, example: str) -> Any:
    """Import a module, from the working folder too, and return its attribute; its code runs.

    Args:
        name: "module:attribute".
        what: the option or field that gives the name, for errors.
        example: of a name, for errors.

    Raises:
        ValueError: if there is no such module or attribute.
    """
    module, colon, attributes = name.partition(":")
    if not (module and colon and attributes):
        raise ValueError(f"{what} {name}: expected {example}")
    with working_folder_importable():
        try:
            found: Any = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # of something that the module imports
            raise ValueError(f"{what} {name}: no module {module}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise ValueError(f"{what} {name}: {module} has no attribute {attributes}")
        found = getattr(found, attribute)
    return found
