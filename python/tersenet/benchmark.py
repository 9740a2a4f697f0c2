"""How long a network from a file takes, in each form that its weights can be held.

::

    for each number of threads, for each batch:
        inputs at random; each form runs once, plans its shapes and keeps what it decodes
        rounds, until the time is over: each form in turn, one call untimed, one call timed

Taking turns spreads what else the machine does over all forms; the untimed call brings a form's
weights back into the caches, as they are when a network runs again and again. A median says what
to expect, the least what the machine can do.

Inputs are normal numbers, and of an embedding rows that it has.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tersenet import _core
from tersenet.dtypes import Array
from tersenet.files import Limits
from tersenet.network import F32, Network

if TYPE_CHECKING:
    from tersenet.torch_peer import TorchPeer

Progress = Callable[[str, int, int], None]
Call = Callable[[], object]

_ROUNDS = 5, 1000  # at least, at most


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call with a batch, of one form (or of torch) on some threads."""

    form: str
    threads: int
    batch: int
    rounds: int
    median_ms: float
    best_ms: float

    @property
    def examples_per_second(self) -> float:
        """The throughput at the median."""
        return 1000 * self.batch / self.median_ms


@dataclass(frozen=True)
class Held:
    """Bytes of all weights in memory: when they are loaded, and with what the runs keep decoded."""

    loaded_nbytes: int
    nbytes: int


@dataclass(frozen=True)
class Benchmark:
    """Everything that was measured.

    `held` and `timings` are by form; with torch, `difference` is the largest between an answer of
    the first form and of torch's model, and `largest` the largest answer.
    """

    path: str
    file_nbytes: int
    inputs: str
    simd: str
    held: dict[str, Held]
    timings: list[Timing]
    difference: float | None = None
    largest: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        answer = asdict(self) | {"version": _core.__version__}
        for plain, timing in zip(answer["timings"], self.timings, strict=True):
            plain["examples_per_second"] = timing.examples_per_second
        for name in ("difference", "largest"):
            if answer[name] is not None and not math.isfinite(answer[name]):
                answer[name] = str(answer[name])
        return answer


def default_threads() -> list[int]:
    """Return 1, and the number of cores that the process may use where that is another."""
    return sorted({1, len(os.sched_getaffinity(0))})


def measure(
    networks: Mapping[str, Network],
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    peer: TorchPeer | None = None,
    seconds: float = 1.0,
    seed: int = 0,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Run networks in turn and return their times and bytes.

    Args:
        networks: the same file, loaded as each form says.
        batches: sizes of dimension 0 of the inputs.
        threads: how many to compute with.
        peer: a model of torch's that takes the same inputs.
        seconds: how long each batch is measured on each number of threads, all forms together.
        seed: of the inputs.
        limits: what the file may ask for.
        progress: called with what is done now, and parts done and in all.

    Raises:
        ValueError: if a number is out of range, or torch's model gives other shapes.
    """
    _check(batches, threads, seconds, seed)
    first = next(iter(networks.values()))
    reader = _core.Reader(first.path, **vars(limits or Limits()))
    graph = reader.graph()
    assert graph is not None, "a network was loaded from here"
    rows = _rows(graph, reader)
    loaded = {form: network.nbytes for form, network in networks.items()}
    timings: list[Timing] = []
    differences: list[tuple[float, float]] = []
    settings = [(count, batch) for count in threads for batch in batches]
    with ExitStack() as stack:
        if peer is not None:
            stack.callback(peer.restore)
        for number, (count, batch) in enumerate(settings):
            arrays = random_inputs(graph, rows, batch, seed)
            calls = {form: _call(network, arrays, count) for form, network in networks.items()}
            if peer is not None:
                calls["torch"] = peer.call(arrays, count)
            answers = [call() for call in calls.values()]
            if peer is not None:
                differences.append(_difference(answers[0], answers[-1]))

            def advance(share: float, number: int = number) -> None:
                if progress is not None:
                    progress("measuring", round(1000 * (number + share)), 1000 * len(settings))

            for form, times in _times(calls, seconds, advance).items():
                median = statistics.median(times)
                timings.append(Timing(form, count, batch, len(times), median, min(times)))
    held = {form: Held(loaded[form], network.nbytes) for form, network in networks.items()}
    if peer is not None:
        held["torch"] = Held(peer.nbytes, peer.nbytes)
    return Benchmark(
        path=first.path,
        file_nbytes=reader.nbytes,
        inputs=first.signature,
        simd=_core.SIMD,
        held=held,
        timings=timings,
        difference=max((found for found, _ in differences), default=None),
        largest=max((number for _, number in differences), default=None),
    )


def random_inputs(
    graph: _core.Graph, rows: Mapping[int, int], batch: int, seed: int
) -> list[Array]:
    """Return an array for each input of a graph; int64 ones hold integers in [0, rows[input])."""
    rng = np.random.default_rng(seed)
    arrays: list[Array] = []
    for number, (_, dtype, dims) in enumerate(graph[0]):
        shape = [size if size >= 0 else -size * batch for size in dims]
        if dtype == "int64":
            arrays.append(rng.integers(0, max(rows.get(number, 1), 1), shape))
        else:
            arrays.append(rng.standard_normal(shape, np.float32))
    return arrays


def _check(batches: Sequence[int], threads: Sequence[int], seconds: float, seed: int) -> None:
    for name, least, found in (
        ("batch", 1, min(batches)),
        ("threads", 1, min(threads)),
        ("seconds", 0, seconds),
        ("seed", 0, seed),
    ):
        if not least <= found < math.inf:
            raise ValueError(f"bench: {name} is {found}, expected at least {least}")


def _rows(graph: _core.Graph, reader: _core.Reader) -> dict[int, int]:
    """Return how many rows the smallest embedding has that each int64 input goes to."""
    inputs, nodes, _, _ = graph
    origin = {number: number for number in range(len(inputs))}
    rows: dict[int, int] = {}
    for number, (operator, taken, weights, *_) in enumerate(nodes, len(inputs)):
        if operator not in ("reshape", "embedding") or taken[0] not in origin:
            continue
        source = origin[taken[0]]
        if operator == "reshape":
            origin[number] = source
        else:
            found = reader.entry(weights[0])["shape"][0]
            rows[source] = min(found, rows.get(source, found))
    return rows


def _call(network: Network, arrays: Sequence[Array], threads: int) -> Call:
    return lambda: network.run(*arrays, threads=threads)


def _times(
    calls: Mapping[str, Call], seconds: float, advance: Callable[[float], None]
) -> dict[str, list[float]]:
    """Return the milliseconds of each call, in turns that begin with another one each round."""
    least, most = _ROUNDS
    times: dict[str, list[float]] = {form: [] for form in calls}
    order = list(calls.items())
    begin = time.perf_counter()
    for done in range(1, most + 1):
        for form, call in order:
            call()
            start = time.perf_counter()
            call()
            times[form].append(1000 * (time.perf_counter() - start))
        order.append(order.pop(0))
        over = (time.perf_counter() - begin) / seconds if seconds else math.inf
        share = max(min(done / least, over), done / most)
        advance(min(share, 1.0))
        if share >= 1:
            break
    return times


def _difference(ours: object, theirs: object) -> tuple[float, float]:
    """Return the largest difference of two answers, and the largest number of the second."""
    pairs = list(zip(_tuple(ours), _tuple(theirs), strict=False))
    found = [[list(y.shape) for y in _tuple(answer)] for answer in (ours, theirs)]
    if found[0] != found[1]:
        raise ValueError(f"bench: torch's model gives shapes {found[1]}, expected {found[0]}")
    with np.errstate(invalid="ignore"):
        differences = [float(np.abs(a - b).max(initial=0)) for a, b in pairs]
    return max(differences), max(float(np.abs(b).max(initial=0)) for _, b in pairs)


def _tuple(answer: Any) -> tuple[F32, ...]:
    return answer if isinstance(answer, tuple) else (answer,)
