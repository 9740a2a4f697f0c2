"""What tests see of a sweep that another process runs."""

import os
import signal
import subprocess
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


def kill_underway(command, environment, results, log):
    """Run a sweep, kill its process after two trials, and wait for the last worker in the log to end."""
    driver = subprocess.Popen(command, env=environment)
    try:
        until(lambda: driver.poll() is not None or nfinished(results) >= 2)
        assert driver.poll() is None
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    worker = int(log.read_text().split()[-1])
    assert worker != driver.pid
    until(lambda: not exists(worker))
