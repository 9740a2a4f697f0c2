"""What the engine is meant to reach, beside what the records say it does.

::

    a goal: what · at least so many times a peer     ratio: the peer's median over ours, in one record

Each peer is taken in its fastest form: of torch dense the better memory format, of CSR the product or that
of the turned batch, of int8 the faster runtime. Goals are those for CPUs with AVX-512; with AVX2 alone they are
three quarters of it, of `coded` products 45 %. What binds where one is missed is told in docs/records.md.

    PYTHONPATH=benches python benches/goals.py     reads benches/record, writes benches/record/goals.json
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import timing

from tersenet.console import show, table

SIMDS = ("avx512", "avx512full", "avx2")
AVX2_SHARE, AVX2_CODED_SHARE = 0.75, 0.45
TORCH = ("torch", "torch channels last")
CSR = ("torch csr", "torch csr, turned")
INT8 = ("onnxruntime int8", "openvino int8")

Times = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Goal:
    """One ratio; `times` finds the times in the records of an instruction set."""

    what: str
    at_least: float
    times: Callable[[str], Times]
    peers: tuple[str, ...]
    ours: str
    avx2_share: float = AVX2_SHARE

    def ratio(self, simd: str) -> float:
        """Return how many times as fast as the fastest peer this is."""
        times = self.times(simd)
        peer = min(times[name]["median_ms"] for name in self.peers if name in times)
        return peer / times[self.ours]["median_ms"]

    def at_least_on(self, simd: str) -> float:
        """Return the goal for an instruction set."""
        return self.at_least * (self.avx2_share if simd == "avx2" else 1)


def goals() -> Iterator[Goal]:
    """Yield all goals."""
    layer = "4096 x 4096, k = 32"
    for percent, at_least in ((60, 4), (80, 4.5), (90, 5.5), (95, 11), (99, 45)):
        what = f"vector, {layer}, {percent} % pruned, for speed ÷ torch dense"
        yield Goal(what, at_least, _product(percent, 1), ("torch dense",), "fastest")
    for percent in (60, 80, 90, 95):
        for name, at_least in (("torch csr", 4.0), ("scipy csr", 2.4)):
            what = f"vector, {percent} % pruned, for speed ÷ {name.replace('csr', 'CSR')}"
            yield Goal(what, at_least, _product(percent, 1), (name,), "fastest")
    for percent, at_least in ((80, 2), (90, 4), (95, 7.5)):
        what = f"vector, {percent} % pruned, coded ÷ torch dense"
        times = _product(percent, 1)
        yield Goal(what, at_least, times, ("torch dense",), "coded", AVX2_CODED_SHARE)
    what = "batch of 32, 90 % pruned, for speed ÷ torch"
    yield Goal(f"{what} dense", 8, _product(90, 32), ("torch dense",), "fastest")
    yield Goal(f"{what} CSR", 2.5, _product(90, 32), CSR, "fastest")
    for percent, at_least in ((80, 3), (90, 5.2), (95, 8.5)):
        for batch in (32, 1):
            what = f"convolution 256 to 256, 16 x 16, batch {batch}, {percent} % pruned ÷ torch"
            yield Goal(what, at_least, _convolution(percent, batch), TORCH, "coded for size")
    for batch, form, pairs in (
        (32, "compressed", ((90, 6), (95, 9.5))),
        (1, "compressed", ((90, 5.5), (95, 9))),
        (1, "cached", ((90, 7), (95, 12))),
    ):
        for percent, at_least in pairs:
            what = f"VGG19, batch {batch}, {percent} % pruned, {form} ÷ torch"
            yield Goal(what, at_least, _network("vgg19", percent, batch), TORCH, form)
    for batch, percent, at_least in ((32, 90, 1.6), (1, 90, 1.7), (1, 95, 2.8)):
        what = f"VGG19, batch {batch}, {percent} % pruned, cached ÷ int8 runtimes"
        yield Goal(what, at_least, _network("vgg19", percent, batch), INT8, "cached")
    for depth in (20, 56):
        for batch, at_least in ((32, 3.5), (1, 5)):
            what = f"ResNet-{depth}, batch {batch}, 90 % pruned, cached ÷ torch"
            yield Goal(what, at_least, _network(f"resnet{depth}", 90, batch), TORCH, "cached")
    what = "VGG19, batch 32, 90 % pruned, "
    times = _network("vgg19", 90, 32)
    yield Goal(f"{what}packed ÷ compressed", 1 / 1.08, times, ("packed",), "compressed", 1)
    for form in ("compressed", "cached"):
        yield Goal(f"{what}{form}: two threads", 1.85, times, (form,), f"{form}, 2 threads", 1)


def _product(percent: int, batch: int) -> Callable[[str], Times]:
    def times(simd: str) -> Times:
        cases = timing.read_speed("products", simd)["cases"]
        is_it = (round(1 - percent / 100, 3), batch)
        case = next(c for c in cases if (round(1 - c["sparsity"], 3), c["batch"]) == is_it)
        chosen = case.get("chosen_for_speed", "packed")
        found: Times = case["products"] | {"fastest": case["products"][chosen]}
        return found

    return times


def _convolution(percent: int, batch: int) -> Callable[[str], Times]:
    def times(simd: str) -> Times:
        is_it = (256, 16, round(1 - percent / 100, 3), batch)
        names = ("rows", "size", "density", "batch")
        layers = timing.read_speed("convolutions", simd)["layers"]
        found: Times = next(c["times"] for c in layers if tuple(c[n] for n in names) == is_it)
        return found

    return times


def _network(name: str, percent: int, batch: int) -> Callable[[str], Times]:
    def times(simd: str) -> Times:
        networks = timing.read_speed("compare", simd)["networks"]
        is_it = (name, percent)
        net = next(n for n in networks if (n["network"], round(100 * n["sparsity"])) == is_it)
        found: Times = net["batches"][f"{batch}"]["times"]
        return found

    return times


def main() -> None:
    """Print a table and write the record."""
    shown = table("what", "goal", *SIMDS)
    rows = []
    for goal in goals():
        ratios = {simd: goal.ratio(simd) for simd in SIMDS}
        asked = {simd: goal.at_least_on(simd) for simd in SIMDS}
        rows.append(
            {
                "what": goal.what,
                "goal": asked,
                "ratio": ratios,
                "share": {simd: ratios[simd] / asked[simd] for simd in SIMDS},
            }
        )
        marks = [f"{ratios[s]:.2g}" + ("" if ratios[s] >= asked[s] else " ✗") for s in SIMDS]
        shown.add_row(goal.what, f"{goal.at_least:.3g}", *marks)
    show(shown)
    of = {
        simd: {
            name: {part: timing.read_speed(name, simd)[part] for part in ("cpu", "commit")}
            for name in ("products", "convolutions", "compare")
        }
        for simd in SIMDS
    }
    timing.write("goals", {"records": of, "goals": rows})


if __name__ == "__main__":
    main()
