"""Energy: sums by hand over the table of the paper."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from tersenet import Plan, compress, report
from tersenet.hardware import energy


def two_layers():
    """A convolution of 54 weights, used at 4 places of 4 x 4, and a linear layer of 60."""
    return nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Flatten(), nn.Linear(12, 5))


EXAMPLE = torch.zeros(1, 2, 4, 4)


def test_a_dense_network_costs_what_a_sum_by_hand_says():
    cost = energy(report(two_layers(), EXAMPLE))
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


class TestReport:
    """What `report` itself tells of it."""

    def test_rows_and_totals_are_sums_by_hand(self):
        table = report(two_layers(), EXAMPLE)
        convolution, linear = table
        assert (convolution.bits, linear.bits) == (32, 32)
        assert [row.multiply_add_bits for row in table] == [216 * 32, 60 * 32]
        assert [row.arithmetic_pj for row in table] == pytest.approx([216 * 4.6, 60 * 4.6])
        assert [row.memory_pj for row in table] == [54 * 640, 60 * 640]
        assert convolution.energy_pj == pytest.approx(216 * 4.6 + 54 * 640)
        assert table.multiply_adds == 276
        assert table.multiply_add_bits == 276 * 32
        assert table.arithmetic_pj == pytest.approx(276 * (3.7 + 0.9))
        assert table.memory_pj == 114 * 640
        assert table.energy_pj == pytest.approx(276 * 4.6 + 114 * 640)

    def test_arithmetic_and_memory_are_those_asked_for(self):
        table = report(two_layers(), EXAMPLE, arithmetic="int8", memory="sram")
        assert table.arithmetic_pj == pytest.approx(276 * (0.2 + 0.1))
        assert table.memory_pj == 114 * 5
        assert report(two_layers(), EXAMPLE, memory=2.5).memory_pj == 114 * 2.5

    @pytest.mark.parametrize("options", [{}, {"arithmetic": "int8", "memory": "sram"}])
    def test_the_numbers_are_those_of_energy(self, options):
        torch.manual_seed(0)
        small = compress(two_layers(), Plan.of(sparsity=0.5, quantizer="uq", k=7))
        for example in (None, EXAMPLE):
            table = report(small, example, **options)
            cost = energy(table, **options)
            for mine, its in zip(table, cost, strict=True):
                shared = {name: getattr(mine, name) for name in vars(its)}
                assert shared == vars(its)
            assert table.multiply_add_bits == cost.multiply_add_bits
            assert table.arithmetic_pj == cost.arithmetic_pj
            assert table.memory_pj == cost.memory_pj == sum(row.memory_pj for row in table)
            assert table.energy_pj == cost.energy_pj
        assert [row.bits for row in table] == [3, 3]

    def test_a_tied_weight_is_computed_with_twice_and_read_once(self):
        first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        second.weight = first.weight
        table = report(nn.Sequential(first, second), torch.zeros(1, 6))
        assert table.multiply_add_bits == 2 * 36 * 32
        assert table.memory_pj == 36 * 640

    def test_what_no_example_counts_is_left_open(self):
        table = report(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)))
        assert (table.multiply_add_bits, table.arithmetic_pj, table.energy_pj) == (None, None, None)
        assert table.memory_pj == 18 * 640
        assert "pJ" not in str(table)
        mixed = report(two_layers())
        assert mixed[0].multiply_add_bits is mixed[0].arithmetic_pj is None
        assert mixed[0].energy_pj == mixed[0].memory_pj == 54 * 640
        assert mixed.energy_pj == pytest.approx(60 * 4.6 + 114 * 640)
        last = str(mixed).splitlines()[-1]
        assert last.endswith("memory alone, multiply-adds unknown: 1 of 2 weights")

    def test_totals_are_printed_and_columns_where_asked_for(self):
        table = report(two_layers(), EXAMPLE)
        head, _, *_, sizes, costs = str(table).splitlines()
        assert head.split() == [
            *("name", "kind", "shape", "density", "layout", "nbytes"),
            *("bits_per_weight", "occupancy", "multiply_adds"),
        ]
        assert sizes.startswith("weights 456 ")
        assert costs == (
            "float32, dram: 8,832 multiply-add bits; arithmetic 1,270 + memory 72,960 = 74,230 pJ"
        )
        asked = report(two_layers(), EXAMPLE, costs=True)
        head, rule, convolution, _, *footer = str(asked).splitlines()
        assert head.split() == [
            *("name", "kind", "shape", "density", "nbytes", "multiply_adds", "bits"),
            *("multiply_add_bits", "arithmetic_pj", "memory_pj", "energy_pj"),
        ]
        assert convolution.split()[-5:] == ["32", "6,912", "994", "34,560", "35,554"]
        assert footer == [sizes, costs]
        assert max(len(head), len(rule), len(convolution)) < 140
        assert asked.to_dicts() == table.to_dicts()
        assert "sram" in str(report(two_layers(), EXAMPLE, arithmetic="int8", memory="sram"))
        assert "2.5 pJ for 32 bits" in str(report(two_layers(), EXAMPLE, memory=2.5))

    def test_a_dict_carries_rows_and_totals_as_json_does(self):
        table = report(two_layers(), EXAMPLE)
        found = json.loads(json.dumps(table.to_dict()))
        assert found.pop("weights") == json.loads(json.dumps(table.to_dicts()))
        assert found["multiply_adds"] == 276
        assert found["multiply_add_bits"] == 276 * 32
        assert found["energy_pj"] == table.energy_pj
        assert (found["arithmetic"], found["memory"]) == ("float32", "dram")
        assert found["nbytes"] == table.nbytes
        assert all(getattr(table, name) == value for name, value in found.items())

    def test_bad_arguments_are_named_before_the_model_runs(self):
        def run(*_):
            raise AssertionError("it ran")

        model = nn.Linear(2, 2)
        model.register_forward_hook(run)
        with pytest.raises(ValueError, match="arithmetic is 'int16', expected one of int8, int32"):
            report(model, torch.zeros(1, 2), arithmetic="int16")
        with pytest.raises(ValueError, match="memory is inf, expected one of sram, dram"):
            report(model, torch.zeros(1, 2), memory=math.inf)


def test_the_module_is_there_without_torch_and_without_another_import():
    code = (
        "import sys; sys.modules['torch'] = None; import tersenet; "
        "assert 'hardware' in tersenet.__all__ and 'hardware' in dir(tersenet); "
        "print(list(tersenet.hardware.prices()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pytest.approx([3.7 + 0.9, 640])
