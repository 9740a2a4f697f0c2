"""What tests see of a sweep that another process runs."""

import os
import time

import tersenet
from tersenet.sweeping import Results


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(holds, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def nfinished(path):
    """Trials in a file of results, which need not be there, or complete, yet."""
    try:
        return len(Results.open(path)) if path.exists() else 0
    except tersenet.FormatError:
        return 0
