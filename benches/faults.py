"""What R12 to R22 of the reliability bars ask of a process, in figures.

    python benches/faults.py --seconds 600

- How long Ctrl-C takes to end a long call, the worst of several instants.
- How much memory 10,000 loads leave behind.
- Random operations, one after the other, for so many seconds: compress, transcode, multiply, save,
  load, verify, pickle, damage. None may fail, and every answer is checked against NumPy.

Writes benches/record/faults.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from timing import environment, write

import tersenet
from tersenet import CompressedMatrix, FormatError, _core

MAX_SIDE = 120
RECORD = Path(__file__).parent / "record" / "faults.json"


def weights(rng: np.random.Generator, nrows: int, ncols: int) -> np.ndarray:
    """Return [nrows, ncols] with few or many values, kept at any density; rows of some are alike."""
    k = int(rng.choice([1, 2, 5, 16, 200, 300, 3000]))
    made = rng.standard_normal(k).astype(np.float32)[rng.integers(0, k, (nrows, ncols))]
    if nrows > 1 and rng.random() < 0.3:
        made = made[rng.integers(0, max(nrows // 8, 1), nrows)]
    made[rng.random((nrows, ncols)) >= rng.random()] = 0
    return made


class Operations:
    """One matrix after the other, and what is done with it."""

    def __init__(self, seed: int, folder: Path) -> None:
        """Start with a matrix."""
        self.rng = np.random.default_rng(seed)
        self.path = folder / "x.terse"
        self.compress()

    def step(self) -> str:
        """Do one thing, check it, and return its name."""
        names = ["compress", "transcode", "multiply", "batch", "file", "copy", "rows", "damage"]
        name = str(self.rng.choice(names))
        getattr(self, name)()
        return name

    def compress(self) -> None:
        """Make another matrix."""
        nrows, ncols = self.rng.integers(1, MAX_SIDE, 2)
        self.weights = weights(self.rng, nrows, ncols)
        layout, coder = _core.PAIRS[self.rng.integers(len(_core.PAIRS))]
        goal = str(self.rng.choice(["size", "speed"]))
        self.matrix = CompressedMatrix.compress(self.weights, layout, coder, goal)
        self.check(self.matrix)

    def check(self, matrix: CompressedMatrix) -> None:
        """Compare every bit."""
        assert matrix.decompress(threads=self.threads()).tobytes() == self.weights.tobytes()

    def threads(self) -> int:
        """Return 1 to 3."""
        return int(self.rng.integers(1, 4))

    def transcode(self) -> None:
        """Take another layout."""
        layout, coder = _core.PAIRS[self.rng.integers(len(_core.PAIRS))]
        self.matrix = self.matrix.to(layout, coder)
        self.check(self.matrix)

    def product(self, batch: int) -> None:
        """Multiply, within the bound of a sum in float64."""
        x = self.rng.standard_normal((batch, self.weights.shape[1])).astype(np.float32)
        found = self.matrix.matmul(x, threads=self.threads())
        wide = self.weights.astype(np.float64)
        exact, total = x @ wide.T, np.abs(x) @ np.abs(wide.T)
        bound = (self.weights.shape[1] + 2) * 2.0**-24 * total + 1e-40
        assert (np.abs(found - exact) <= bound).all()

    def multiply(self) -> None:
        """Multiply with a vector."""
        self.product(1)

    def batch(self) -> None:
        """Multiply with several."""
        self.product(int(self.rng.integers(2, 40)))

    def file(self) -> None:
        """Go through a file."""
        goal = [None, "size", "speed"][self.rng.integers(3)]
        plain = self.rng.standard_normal(self.rng.integers(0, 3000)).astype(np.float32)
        tersenet.save({"w": self.matrix, "b": plain, "again": self.matrix}, self.path, goal)
        with tersenet.open(self.path, mmap=bool(self.rng.integers(2))) as file:
            file.verify()
            self.check(file.get("w"))
            assert file.get("b").tobytes() == plain.tobytes()
            self.matrix = file.get("again")

    def copy(self) -> None:
        """Pickle."""
        self.matrix = pickle.loads(pickle.dumps(self.matrix))
        self.check(self.matrix)

    def rows(self) -> None:
        """Take some rows."""
        ids = self.rng.integers(0, len(self.weights), 5)
        assert self.matrix.rows(ids).tobytes() == self.weights[ids].tobytes()

    def damage(self) -> None:
        """Flip a bit of a file: an error."""
        data = bytearray(self.matrix.to_bytes())
        data[self.rng.integers(len(data))] ^= 1 << self.rng.integers(8)
        try:
            CompressedMatrix.from_bytes(bytes(data))
        except FormatError:
            return
        raise AssertionError("a flipped bit in silence")


def random_operations(seconds: float, folder: Path) -> dict[str, object]:
    """Do operations for so long; return how many of each, and how memory grew."""
    operations, done = Operations(0, folder), Counter()
    start, warm = time.perf_counter(), None
    while time.perf_counter() - start < seconds:
        done[operations.step()] += 1
        if warm is None and time.perf_counter() - start > min(30, seconds / 4):
            warm = resident()
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "operations": sum(done.values()),
        "errors": 0,
        "of_each": dict(sorted(done.items())),
        "memory_growth_nbytes": resident() - (warm or 0),
    }


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def interrupted(work: Callable[[], object], after: float) -> float:
    """Return the seconds from Ctrl-C, so long after the start, to the end of the work."""
    sent: list[float] = []

    def interrupt() -> None:
        time.sleep(after)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        work()
    except KeyboardInterrupt:
        return time.perf_counter() - sent[0]
    finally:
        thread.join()
    raise AssertionError("it was over before")


def interruptions(folder: Path) -> dict[str, float]:
    """Return for each long call the longest that Ctrl-C took, in ms."""
    rng = np.random.default_rng(0)
    large = rng.integers(0, 500, (4096, 4096)).astype(np.float32)
    large[rng.random(large.shape) < 0.5] = 0
    path = folder / "large.terse"
    tersenet.save({"w": CompressedMatrix.compress(large[:2500], "archive")}, path)
    hac = CompressedMatrix.compress(large, "hac")
    x = np.ones((4000, 4096), np.float32)
    plain = {str(i): rng.random(1 << 23) for i in range(6)}
    calls = {
        "compress cla": lambda: CompressedMatrix.compress(large, "cla"),
        "compress archive": lambda: CompressedMatrix.compress(large, "archive"),
        "compress for size": lambda: CompressedMatrix.compress(large),
        "load an archive": lambda: tersenet.load(path),
        "multiply a batch": lambda: hac.matmul(x),
        "save for size": lambda: tersenet.save(plain, path, "size"),
    }
    return {
        name: round(1e3 * max(interrupted(call, after) for after in (0.05, 0.1, 0.2, 0.3, 0.4)), 1)
        for name, call in calls.items()
    }


def loads(folder: Path) -> dict[str, float]:
    """Return how many bytes each of 10,000 loads leaves behind."""
    path = folder / "small.terse"
    values = {"w": CompressedMatrix.compress(weights(np.random.default_rng(0), 40, 60))}
    tersenet.save(values, path)

    def load(times: int) -> None:
        for _ in range(times):
            tersenet.load(path)["w"].matvec(np.zeros(60, np.float32))

    load(2000)
    before = resident()
    load(10_000)
    return {"loads": 10_000, "nbytes_a_load": (resident() - before) / 10_000}


def main() -> None:
    """Measure, and write the record: what is not measured stays as it was."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--only", choices=["ctrl_c_ms", "memory", "random"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], object]] = {
            "ctrl_c_ms": lambda: interruptions(folder),
            "memory": lambda: loads(folder),
            "random": lambda: random_operations(options.seconds, folder),
        }
        record = json.loads(RECORD.read_text()) if options.only else {}
        record |= environment()
        record |= {k: part() for k, part in parts.items() if options.only in (None, k)}
    write("faults", record)


if __name__ == "__main__":
    main()
