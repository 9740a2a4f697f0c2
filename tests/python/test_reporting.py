"""compare and report: numbers that can be checked by hand or with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import sparse
from scipy.stats import entropy

from tersenet import PAIRS, CompressedMatrix
from tersenet.reporting import compare, report


def test_compare_has_a_row_for_every_pair_that_holds_the_matrix():
    table = compare(sparse())
    assert [(row.layout, row.coder) for row in table] == list(PAIRS)
    for row in table:
        matrix = CompressedMatrix.compress(sparse(), row.layout, row.coder)
        assert row.error is None
        assert row.nbytes == matrix.nbytes
        assert row.bits_per_weight == pytest.approx(8 * matrix.nbytes / 3000)
        assert row.occupancy == pytest.approx(matrix.nbytes / 12000)
        assert min(row.encode_ms, row.decode_ms, row.matvec_ms) > 0
    assert compare(CompressedMatrix.compress(sparse()))[0].nbytes == table[0].nbytes


def test_compare_says_why_a_layout_cannot_hold_a_matrix():
    w = np.arange(1, 70_001, dtype=np.float32).reshape(70, 1000)
    rows = {row.layout: row for row in compare(w)}
    assert rows["dense"].error is None
    assert rows["csr"].nbytes > 280_000
    assert "65,536" in rows["packed"].error.replace("65536", "65,536")
    assert rows["packed"].nbytes is None


def test_compare_prints_a_line_for_every_row():
    table = compare(sparse())
    lines = str(table).splitlines()
    assert len(lines) == 2 + len(PAIRS)
    assert "layout" in lines[0]
    assert "nbytes" in lines[0]
    assert "error" not in lines[0]
    for line, (layout, coder) in zip(lines[2:], PAIRS, strict=True):
        assert line.split()[:2] == [layout, coder]
    assert table.to_dicts()[0]["layout"] == "dense"


def test_compare_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"w is float64 \[3\]"):
        compare(np.ones(3))
    with pytest.raises(ValueError, match="threads is 0"):
        compare(sparse(), threads=0)


class TestReport:
    """What each weight of a model takes."""

    @pytest.fixture(autouse=True)
    def _needs_torch(self):
        pytest.importorskip("torch")

    @staticmethod
    def small():
        from models import SmallNet
        from torch import nn

        from tersenet.compression import compress
        from tersenet.plan import Plan, Rule

        net = SmallNet()
        net.left = nn.Linear(8, 8)
        net.lstm = nn.LSTM(4, 4)
        plan = Plan({"*": Rule(sparsity=0.9, quantizer="cws", k=8), "left": Rule(skip=True)})
        return compress(net, plan)

    def test_rows_are_the_weights_with_their_sizes(self):
        small = self.small()
        table = report(small)
        rows = {row.name: row for row in table}
        matrix = small.body[0].matrix
        row = rows["body.0"]
        assert row.shape == (48, 24 * 32)
        assert row.kind == "CompressedLinear"
        assert (row.k, row.layout, row.coder) == (8, matrix.layout, matrix.coder)
        assert row.density == matrix.nnz / (48 * 24 * 32)
        assert (row.nbytes, row.bits_per_weight) == (matrix.nbytes, matrix.bits_per_weight)
        assert rows["conv2"].shape == (32, 1, 3, 3)
        assert rows["left"].reason == "the plan skips left"
        assert (rows["left"].nbytes, rows["left"].layout) == (256, "dense")
        assert rows["lstm.weight_ih_l0"].reason == "LSTM has no compressed form"
        assert (rows["head"].layout, rows["head"].nbytes) == ("tied", 0)
        assert rows["head"].reason == "is the weight of embedding"

    def test_totals_count_every_tensor_once(self):
        small = self.small()
        table = report(small)
        tensors = {id(t): t for t in [*small.parameters(), *small.buffers()]}
        held = sum(t.numel() * t.element_size() for t in tensors.values())
        payloads = {m.payload.data_ptr(): m for m in small.modules() if hasattr(m, "payload")}
        held -= sum(len(m.payload) - m.matrix.nbytes for m in payloads.values())
        assert table.nbytes == held
        assert table.nbytes == table.weights_nbytes + table.other_nbytes
        from models import SmallNet
        from torch import nn

        stock = [*SmallNet().state_dict(keep_vars=True).values()]
        stock += [*nn.Linear(8, 8).parameters(), *nn.LSTM(4, 4).parameters()]
        unique = {id(t): t for t in stock}
        assert table.dense_nbytes == sum(t.numel() * t.element_size() for t in unique.values())
        assert table.occupancy == table.nbytes / table.dense_nbytes

    def test_the_entropy_is_that_of_positions_and_symbols(self):
        small = self.small()
        rows = {row.name: row for row in report(small)}
        dense = small.body[0].matrix.decompress()
        counts = np.unique(dense.view(np.int32), return_counts=True)[1]
        assert rows["body.0"].entropy_bits == pytest.approx(entropy(counts, base=2))

    def test_multiply_adds_are_counted_on_an_example(self):
        from models import SmallNet

        small = self.small()
        without = {row.name: row.multiply_adds for row in report(small)}
        assert without["body.0"] == small.body[0].matrix.nnz
        assert without["conv1"] is None
        small.train()
        before = {name: t.clone() for name, t in small.state_dict().items()}
        table = report(small, SmallNet.example())
        found = {row.name: row.multiply_adds for row in table}
        assert found["body.0"] == 4 * small.body[0].matrix.nnz
        assert found["conv1"] == 4 * 7 * small.conv1.matrix.nnz
        assert found["conv2"] == 4 * 24 * 7 * small.conv2.matrix.nnz
        assert found["embedding"] is None
        assert found["left"] is None
        assert small.training
        assert small.norm.training
        assert all((t == before[name]).all() for name, t in small.state_dict().items())
        total = sum(count for count in found.values() if count is not None)
        assert table.multiply_adds == total
        assert report(small, (SmallNet.example(),)).multiply_adds == total
        assert report(small, {"ids": SmallNet.example()}).multiply_adds == total

    def test_a_model_that_is_not_compressed_has_rows_too(self):
        from models import SmallNet

        from tersenet.plan import Plan
        from tersenet.pruning import prune
        from tersenet.quantization import quantize

        net = SmallNet()
        plan = Plan.of("body.*", sparsity=0.9, quantizer="cws", k=4)
        prune(net, plan)
        quantize(net, plan)
        rows = {row.name: row for row in report(net)}
        assert (rows["body.0"].k, rows["conv1"].k) == (4, None)
        assert rows["body.0"].density == pytest.approx(0.1, abs=1e-3)
        assert rows["conv1"].density == 1

    def test_the_report_prints_a_table_and_the_totals(self):
        text = str(report(self.small()))
        lines = text.splitlines()
        assert len(lines) == 2 + 9 + 2
        assert lines[0].split()[:3] == ["name", "kind", "shape"]
        assert "48 x 768" in text
        assert lines[-2].startswith("weights ")
        assert lines[-1].startswith("float32, dram: ")  # test_hardware has the numbers

    def test_an_empty_model_has_an_empty_report(self):
        from torch import nn

        table = report(nn.ReLU())
        assert len(table) == 0
        assert table.nbytes == 0
        assert "0 bytes" in str(table)
