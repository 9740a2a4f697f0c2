"""What a model costs on hardware of its own: multiply-adds times bits, and an energy by table.

::

    multiply_add_bits = multiply-adds * bits of a weight       # log2 k where k values are shared
    arithmetic_pj     = multiply-adds * (one product + one sum)
    memory_pj         = bytes of the weight / 4 * one word read
    energy_pj         = arithmetic_pj + memory_pj

`tersenet.report` has these numbers in its rows and totals, and prints them with `costs=True`; `energy`
reckons them again for another arithmetic or memory.

Why a table and no measurement: it is for accelerators that are not there to be measured, and the
ratios of two models matter, not the sums. Each weight is read once for the whole example. Decoding,
activations, control and leakage are not in it, so it is what the weights cost at the least.

Multiply-adds times bits are for arithmetic as wide as the symbols, as after `uq`, whose values lie on
a grid; values of `cws` are any floats, and cost what `arithmetic` says.

Source: Horowitz 2014, "Computing's energy problem (and what we can do about it)", ISSCC, 45 nm at
0.9 V; a word of DRAM as in Han et al. 2015, "Learning both weights and connections".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersenet.reporting import Table

if TYPE_CHECKING:
    from tersenet.reporting import WeightRow

ADD_PJ = {"int8": 0.03, "int16": 0.05, "int32": 0.1, "float16": 0.4, "float32": 0.9}
MULTIPLY_PJ = {"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7}
READ_PJ = {"sram": 5.0, "dram": 640.0}  # a word of 32 bits; sram: a cache of 8 KB

_SUM_OF = {"int8": "int32"}  # products of 8 bits are added up in 32


@dataclass(frozen=True)
class EnergyRow:
    """What one weight costs, in picojoules; None where its multiply-adds are unknown.

    `energy_pj` is then that of reading it alone.
    """

    name: str
    bits: int
    multiply_adds: int | None
    multiply_add_bits: int | None
    arithmetic_pj: float | None
    memory_pj: float
    energy_pj: float


class Energy(Table["EnergyRow"]):
    """The rows, and their totals; weights whose multiply-adds are unknown add their bytes alone.

    `arithmetic` and `memory` are those it is for, `summary` is the totals in a line.
    """

    def __init__(self, rows: list[EnergyRow], arithmetic: str, memory: str | float) -> None:
        """Add up the rows."""
        self.arithmetic = arithmetic
        self.memory = memory
        self.multiply_add_bits = sum(row.multiply_add_bits or 0 for row in rows)
        self.arithmetic_pj = sum(row.arithmetic_pj or 0.0 for row in rows)
        self.memory_pj = sum(row.memory_pj for row in rows)
        self.energy_pj = self.arithmetic_pj + self.memory_pj
        read = memory if isinstance(memory, str) else f"{memory:g} pJ for 32 bits"
        self.summary = (
            f"{arithmetic}, {read}: {self.multiply_add_bits:,} multiply-add bits; arithmetic "
            f"{self.arithmetic_pj:,.0f} + memory {self.memory_pj:,.0f} = {self.energy_pj:,.0f} pJ"
        )
        unknown = sum(row.multiply_adds is None for row in rows)
        if unknown:
            self.summary += (
                f"; memory alone, multiply-adds unknown: {unknown} of {len(rows)} weights"
            )
        super().__init__(rows, self.summary)


def energy(
    report: Sequence[WeightRow], *, arithmetic: str = "float32", memory: str | float = "dram"
) -> Energy:
    """Return what the weights of a report cost, for the example that it was made with.

    Args:
        report: of `tersenet.report(model, example)`, or some of its rows.
        arithmetic: of a multiply-add: "int8" (summed in int32), "int32", "float16" or "float32".
        memory: where weights are read from, "sram" (8 KB) or "dram", or picojoules for 32 bits.

    Raises:
        ValueError: if `arithmetic` or `memory` is unknown, or a number is negative or not finite.

    Examples:
        >>> from torch import nn
        >>> from tersenet import report
        >>> cost = energy(report(nn.Linear(4, 2)))
        >>> round(cost.arithmetic_pj, 3), cost.memory_pj
        (36.8, 5120.0)
    """
    operation, word = prices(arithmetic, memory)
    rows = []
    for row in report:
        count, read = row.multiply_adds, row.nbytes / 4 * word
        computed = None if count is None else count * operation
        rows.append(
            EnergyRow(
                name=row.name,
                bits=row.bits,
                multiply_adds=count,
                multiply_add_bits=None if count is None else count * row.bits,
                arithmetic_pj=computed,
                memory_pj=read,
                energy_pj=(computed or 0.0) + read,
            )
        )
    return Energy(rows, arithmetic, memory)


def prices(arithmetic: str = "float32", memory: str | float = "dram") -> tuple[float, float]:
    """Return the picojoules of one multiply-add, and of 32 bits that are read; see `energy`.

    Raises:
        ValueError: if `arithmetic` or `memory` is unknown, or a number is negative or not finite.
    """
    if arithmetic not in MULTIPLY_PJ:
        names = ", ".join(MULTIPLY_PJ)
        raise ValueError(f"energy: arithmetic is {arithmetic!r}, expected one of {names}")
    word = READ_PJ.get(memory) if isinstance(memory, str) else float(memory)
    if word is None or not 0 <= word < math.inf:
        names = ", ".join(READ_PJ)
        raise ValueError(
            f"energy: memory is {memory!r}, expected one of {names}, or a number of at least 0"
        )
    return MULTIPLY_PJ[arithmetic] + ADD_PJ[_SUM_OF.get(arithmetic, arithmetic)], word


def weight_bits(k: int | None, element_bits: int) -> int:
    """Return the bits that tell one of k values from the others, or those of a dense element."""
    return element_bits if k is None else max(math.ceil(math.log2(max(k, 1))), 1)
