"""The command `tersenet`: one line on stderr for whatever goes wrong, and an exit status.

::

    0   fine
    1   the file is damaged (verify)
    2   anything else: wrong usage, a file that cannot be read, an extra that is not installed

The commands are in `commands` and the modules it names, which need typer and rich; this module does
without, so that it can say what to install. With `--debug` the traceback comes before the line.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

FINE, DAMAGED, FAILED = 0, 1, 2

_EXTRAS = {
    "typer": "cli",
    "rich": "cli",
    "tomli_w": "cli",
    "torch": "torch",
    "sklearn": "demo",
    "optuna": "search",
    "ray": "ray",
    "plotly": "report",
}


@dataclass
class Settings:
    """What the options before the command say."""

    debug: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status.

    Args:
        arguments: those after the program's name; by default the process's own.
    """
    settings = Settings()
    try:
        from tersenet.commands import run

        return run(sys.argv[1:] if arguments is None else list(arguments), settings)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        if settings.debug:
            traceback.print_exc()
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"tersenet: {message(error)}\n")
        return FAILED


def message(error: BaseException) -> str:
    """Return what to tell of an error, in one line."""
    usage = getattr(error, "format_message", None)  # of typer's own errors
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    elif isinstance(error, ImportError) and (name := _package(error)) in _EXTRAS:
        text = f"{name} is not installed: pip install 'tersenet[{_EXTRAS[name]}]'"
    elif isinstance(error, OSError) and error.strerror:
        named = "" if error.filename is None else f"{error.filename}: "
        text = named + error.strerror
    elif usage is not None:
        text = usage()
    elif isinstance(error, MemoryError):
        text = "not enough memory"
    elif isinstance(error, ValueError | OSError | ImportError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (tersenet --debug shows where)"
    notes = [f"({note})" for note in getattr(error, "__notes__", ())]
    return " ".join(" ".join([text, *notes]).split())


def _package(error: ImportError) -> str:
    return (error.name or "").partition(".")[0]


if __name__ == "__main__":
    sys.exit(main())
