"""The exceptions that tersenet adds to Python's own.

Bad arguments are `ValueError`, what the operating system refuses is `OSError`. They are defined in
Python, so that they pickle like any other exception.
"""


class FormatError(ValueError):
    """Stored bytes are damaged, cut short, too new, or larger than allowed."""


class InternalError(RuntimeError):
    """A defect of tersenet itself: please report it."""
