"""Energy: sums by hand over the table of the paper."""

import pytest
import torch
from torch import nn

from tersenet import Plan, compress, report
from tersenet.hardware import energy


def test_a_dense_network_costs_what_a_sum_by_hand_says():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Flatten(), nn.Linear(12, 5))
    cost = energy(report(model, torch.zeros(1, 2, 4, 4)))
    adds = [54 * 4, 60]  # a kernel of 3 x 3 has 4 places in 4 x 4
    assert [row.multiply_adds for row in cost] == adds
    assert [row.bits for row in cost] == [32, 32]
    assert cost.multiply_add_bits == 32 * sum(adds)
    assert cost.arithmetic_pj == pytest.approx(sum(adds) * (3.7 + 0.9))
    assert cost.memory_pj == (54 + 60) * 640
    assert cost.energy_pj == cost.arithmetic_pj + cost.memory_pj
    assert str(cost).endswith(f"= {cost.energy_pj:,.0f} pJ")


@pytest.mark.parametrize(
    ("arithmetic", "operation"),
    [("int8", 0.2 + 0.1), ("int32", 3.1 + 0.1), ("float16", 1.1 + 0.4), ("float32", 3.7 + 0.9)],
)
def test_a_compressed_layer_costs_its_kept_weights_and_its_bytes(arithmetic, operation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 50))
    small = report(compress(model, Plan.of(sparsity=0.9, quantizer="uq", k=13)))
    (row,) = cost = energy(small, arithmetic=arithmetic, memory="sram")
    assert row.multiply_adds == round(small[0].density * 5000) <= 500
    assert 8 < small[0].k <= 13 and row.bits == 4
    assert cost.multiply_add_bits == 4 * row.multiply_adds
    assert cost.arithmetic_pj == pytest.approx(row.multiply_adds * operation)
    assert cost.memory_pj == small[0].nbytes / 4 * 5
    assert energy(small, memory=2.5).memory_pj == cost.memory_pj / 2


def test_one_value_takes_a_bit_and_half_precision_sixteen():
    torch.manual_seed(0)
    one = compress(nn.Linear(64, 64), Plan.of(sparsity=0.5, quantizer="cws", k=1))
    assert energy(report(one))[0].bits == 1
    assert energy(report(nn.Linear(4, 4).half()))[0].bits == 16


def test_what_is_not_counted_costs_its_bytes_alone():
    cost = energy(report(nn.Conv2d(1, 1, 3)))
    assert cost[0].arithmetic_pj is None and cost.arithmetic_pj == 0
    assert cost.energy_pj == cost.memory_pj == 9 * 640


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arithmetic": "int16"}, "arithmetic is 'int16', expected one of int8, int32"),
        ({"memory": "disk"}, "memory is 'disk', expected one of sram, dram"),
        ({"memory": -1.0}, "memory is -1.0"),
        ({"memory": float("nan")}, "memory is nan"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        energy(report(nn.Linear(2, 2)), **options)
