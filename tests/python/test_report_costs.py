"""Costs of a network in a file: its shapes and counts against torch's, the page, the command."""

import copy
import json

import pytest
import torch
from exported import lively
from models import SmallNet, small_net
from pages import Parsed, write_results, write_terse
from test_cli import call, process
from test_export import CASES, inputs_of
from test_networks import ZOO
from torch import nn

import tersenet
from tersenet import _core, report
from tersenet.errors import FormatError
from tersenet.network_shapes import value_shapes
from tersenet.pages.texts import joules

LIMITS = vars(tersenet.Limits())


def outputs(path):
    """The shapes of a network's outputs, by the graph of its file."""
    reader = _core.Reader(str(path), **LIMITS)
    graph = reader.graph()
    names = reader.keys()
    weights = {name: tuple(reader.entry(name)["shape"]) for name in names}
    shapes = value_shapes(graph, weights)
    return [shapes[number] for number in graph[2]]


def torch_outputs(model, inputs):
    with torch.no_grad():
        found = model(*inputs)
    return [tuple(y.shape) for y in (found if isinstance(found, tuple | list) else (found,))]


@pytest.mark.parametrize("name", CASES)
def test_shapes_of_every_operator_are_those_of_torch(tmp_path, name):
    torch.manual_seed(1)
    model, *shapes = CASES[name]
    model = lively(copy.deepcopy(model))
    inputs = inputs_of(shapes, 1)
    tersenet.export(model, inputs, tmp_path / "x.terse")
    assert outputs(tmp_path / "x.terse") == torch_outputs(model, inputs)


@pytest.mark.parametrize("name", ZOO)
def test_counts_of_a_network_are_those_of_its_model(tmp_path, name):
    torch.manual_seed(0)
    make, *inputs = ZOO[name]
    model, example = lively(make()), tuple(x(1) for x in inputs)
    tersenet.export(model, example, tmp_path / "x.terse")
    assert outputs(tmp_path / "x.terse") == torch_outputs(model, example)
    whole, table = report(model, example), report(tmp_path / "x.terse")
    found = {row.name.removesuffix(".weight"): row.multiply_adds for row in table}
    counted = {
        row.name: row.multiply_adds for row in whole if row.multiply_adds and row.name in found
    }
    assert counted
    assert {layer: found[layer] for layer in counted} == counted
    # Torch computes the layers of its attention without calling them.
    if not any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        assert table.multiply_adds == whole.multiply_adds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("costs")


@pytest.fixture(scope="module")
def two_layers(folder):
    """A convolution of 54 weights, used at 4 places of 4 x 4, and a linear layer of 60."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Flatten(), nn.Linear(12, 5))
    tersenet.export(model, torch.zeros(1, 2, 4, 4), folder / "network.terse", goal="speed")
    return folder / "network.terse"


def test_the_costs_of_a_file_are_sums_by_hand(two_layers):
    table = report(two_layers, arithmetic="int8", memory="sram")
    convolution, linear = table
    assert (convolution.name, convolution.kind, convolution.shape) == (
        "0.weight",
        "conv",
        (3, 2, 3, 3),
    )
    assert (linear.name, linear.kind, linear.density, linear.k) == ("2.weight", "linear", 1, None)
    assert [row.multiply_adds for row in table] == [54 * 4, 60]
    assert table.multiply_add_bits == 32 * 276
    assert table.arithmetic_pj == pytest.approx(276 * 0.3)
    assert table.memory_pj == 114 * 5
    assert table.other_nbytes == 5 * 4
    assert (
        table.energy_pj
        == tersenet.hardware.energy(table, arithmetic="int8", memory="sram").energy_pj
    )
    assert report(two_layers).arithmetic_pj == pytest.approx(276 * 4.6)


def test_a_compressed_network_counts_its_kept_weights_and_reads_its_bytes(tmp_path):
    small, path = small_net(), tmp_path / "small.terse"
    example = SmallNet.example()[:1]
    tersenet.export(small, example, path, goal="size")
    model, table = report(small, example), report(path)
    rows = {row.name.removesuffix(".weight"): row for row in table}
    for row in model:
        if row.layout != "tied" and row.name != "embedding":
            mine = rows[row.name]
            assert (mine.multiply_adds, mine.bits, mine.k) == (row.multiply_adds, row.bits, row.k)
            assert mine.density == row.density
    # The head is the embedding's weight: one tensor of two uses.
    assert rows["embedding"].kind == "embedding, linear"
    assert table.multiply_adds == model.multiply_adds
    assert table.multiply_add_bits == model.multiply_add_bits
    with tersenet.open(path) as file:
        sizes = [file.info(name)["nbytes"] for name in file]
        assert {row.name: row.nbytes for row in table} == {
            name: file.info(name)["nbytes"] for name in file if len(file.info(name)["shape"]) > 1
        }
    assert table.nbytes == sum(sizes)
    assert table.memory_pj == pytest.approx(sum(row.nbytes for row in table) / 4 * 640)


def test_dense_weights_that_are_coded_have_the_bits_of_float32(tmp_path):
    torch.manual_seed(0)
    tersenet.export(nn.Linear(300, 200), torch.zeros(1, 300), tmp_path / "x.terse", goal="size")
    (row,) = report(tmp_path / "x.terse")
    assert row.coder == "planes" and row.bits_per_weight < 29
    assert row.bits == 32 and row.k is None
    assert row.memory_pj == row.nbytes / 4 * 640


def test_a_weight_that_no_layer_multiplies_costs_its_bytes_alone(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Conv2d(3, 1, 1))
    tersenet.export(model, torch.zeros(1, 2, 4, 4), tmp_path / "x.terse")
    transposed, convolution = table = report(tmp_path / "x.terse")
    assert (transposed.kind, transposed.multiply_adds) == ("conv_transpose", None)
    assert transposed.energy_pj == transposed.memory_pj == 24 * 640
    assert convolution.multiply_adds == 3 * 25
    assert str(table).endswith("memory alone, multiply-adds unknown: 1 of 2 weights")


def test_a_file_without_a_network_says_what_is_needed(folder):
    write_terse(folder / "tensors.terse")
    with pytest.raises(ValueError, match=r"holds no network, .* a file of tersenet.export"):
        report(folder / "tensors.terse")
    with pytest.raises(ValueError, match="an example for a file, expected none"):
        report(folder / "tensors.terse", torch.zeros(1))


def graph(op, ints, shape=(-1, 2, 8), weight="w"):
    node = (op, [0], [weight, "", "", ""] if op == "conv" else [], ints, [0.0, 0.0], "here")
    return [("x", "float32", list(shape))], [node], [1], False


@pytest.mark.parametrize(
    ("op", "ints", "shape"),
    [
        ("conv", [1, 9, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0], (-1, 2, 8)),
        ("conv", [1, 3, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0], (-1, 2, 8)),
        ("conv", [1, 3, 1, -1, 0, 0, 0, 0, 1, 1, 1, 0], (-1, 2, 8)),
        ("conv", [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0], (-1, 2)),
        ("max_pool", [1, 2, 1, 0, 0, 0, 1, 1, 0], (-1, 2, 8)),
        ("reshape", [-1, 17], (-1, 2, 8)),
        ("permute", [0, 1], (-1, 2, 8)),
        ("permute", [0, 1, 3], (-1, 2, 8)),
        ("expand", [-1, 4, 8], (-1, 2, 8)),
        ("slice", [3, 0, 1, 1], (-1, 2, 8)),
        ("slice", [1, 0, 2, 0], (-1, 2, 8)),
        ("reduce", [0, 0, 5], (-1, 2, 8)),
        ("concat", [7], (-1, 2, 8)),
        ("pad", [0, 1, 1], (-1, 2, 8)),
        ("pad", [0, 0, 0, 0, 0, -9, 0], (-1, 2, 8)),
        ("pad", [0, 0, 0, 0, 0, 1 << 63, 0], (-1, 2, 8)),
        ("adaptive_avg_pool", [2, 4], (-1, 2, 8)),
        ("upsample", [0, 0, 1, 4], (-1, 2)),
        ("not_there", [], (-1, 2, 8)),
    ],
)
def test_shapes_that_do_not_fit_are_an_error_that_names_the_node(op, ints, shape):
    with pytest.raises(FormatError, match=rf"node 0 \({op}, here\)"):
        value_shapes(graph(op, ints, shape), {"w": (4, 2, 3)})


class TestPage:
    """What a page tells of a network."""

    @pytest.fixture
    def page(self, folder, two_layers):
        tersenet.report_page(two_layers, folder / "network.html", times=False)
        return Parsed.read(folder / "network.html")

    def test_a_table_has_the_numbers_of_the_report(self, page, two_layers):
        header, *rows = page.tables[0]
        assert header == [
            *("tensor", "used by", "kept", "multiply-adds", "bits", "multiply-add bits"),
            *("arithmetic", "memory", "energy"),
        ]
        assert rows == [
            [
                *(row.name, row.kind, "100.0 %", f"{row.multiply_adds:,}", "32"),
                *(f"{row.multiply_add_bits:,}", joules(row.arithmetic_pj)),
                *(joules(row.memory_pj), joules(row.energy_pj)),
            ]
            for row in report(two_layers)
        ]
        assert rows[0][6:] == ["993.6 pJ", "34.6 nJ", "35.6 nJ"]
        assert "8,832 multiply-add bits" in page.text
        assert "a multiply-add in float32 takes 4.6 pJ, 32 bits from dram 640 pJ" in page.text

    def test_arithmetic_and_memory_are_those_asked_for(self, folder, two_layers):
        path = folder / "int8.html"
        tersenet.report_page(two_layers, path, times=False, arithmetic="int8", memory=2.5)
        page = Parsed.read(path)
        table = report(two_layers, arithmetic="int8", memory=2.5)
        assert [row[8] for row in page.tables[0][1:]] == [joules(row.energy_pj) for row in table]
        assert "in int8 takes 0.3 pJ, 32 bits from memory 2.5 pJ" in page.text
        with pytest.raises(ValueError, match="arithmetic is 'int2'"):
            tersenet.report_page(two_layers, path, arithmetic="int2")

    def test_a_page_of_tensors_has_no_costs(self, folder):
        write_terse(folder / "tensors.terse")
        tersenet.report_page(folder / "tensors.terse", folder / "tensors.html", times=False)
        page = Parsed.read(folder / "tensors.html")
        assert page.tables[0][0][1] == "type"
        assert "multiply-add" not in page.text

    def test_energies_have_units(self):
        assert [joules(pj) for pj in (0, 0.25, 999.94, 999.96, 34_560, 1.5e9, 2e18)] == [
            *("0 pJ", "0.25 pJ", "999.9 pJ", "1.0 nJ", "34.6 nJ", "1.5 mJ", "2000000.0 J"),
        ]


class TestCommand:
    """`tersenet report --costs`."""

    def test_it_shows_the_report(self, two_layers):
        status, told, err = call("report", two_layers, "--costs")
        assert (status, err) == (0, "")
        table = report(two_layers)
        for row in table:
            line = next(line for line in told.splitlines() if line.split()[:1] == [row.name])
            cells = line.split()
            assert cells[-5:] == [
                *("32", f"{row.multiply_add_bits:,}", f"{row.arithmetic_pj:,.0f}"),
                *(f"{row.memory_pj:,.0f}", f"{row.energy_pj:,.0f}"),
            ]
        assert told.splitlines()[-1] == str(table).splitlines()[-1]
        assert "= 74,230 pJ" in told

    def test_numbers_come_as_json_too_and_a_page_beside_them(self, folder, two_layers):
        page = folder / "both.html"
        options = ("--costs", "--json", "--arithmetic", "int8", "--memory", "2.5", "-o", page)
        status, told, err = call("report", two_layers, *options, "--no-times")
        assert status == 0
        table = report(two_layers, arithmetic="int8", memory=2.5)
        assert json.loads(told) == json.loads(json.dumps(table.to_dict()))
        assert err == f"tersenet: {page}: {page.stat().st_size:,} bytes\n"
        assert "in int8 takes 0.3 pJ" in Parsed.read(page).text

    def test_torch_is_not_needed(self, two_layers):
        code = (
            "import sys; sys.modules['torch'] = None; "
            "from tersenet.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        found = process("report", two_layers, "--costs", code=code)
        assert (found.returncode, found.stderr) == (0, "")
        assert "= 74,230 pJ" in found.stdout

    def test_names_that_cannot_be_printed_are_marked(self, tmp_path):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.add_module("\x1b[2J[b]", nn.Linear(4, 3))

            def forward(self, x):
                return self._modules["\x1b[2J[b]"](x)

        tersenet.export(Odd(), torch.zeros(1, 4), tmp_path / "x.terse")
        status, told, _ = call("report", tmp_path / "x.terse", "--costs")
        assert status == 0
        assert "\x1b" not in told
        assert "\N{REPLACEMENT CHARACTER}[2J[b].weight" in told

    @pytest.mark.parametrize(
        ("source", "options", "message"),
        [
            ("network.terse", [], "report: nothing to write, expected -o PAGE.html, or --costs"),
            ("network.terse", ["--json"], "--json without --costs"),
            ("tensors.terse", ["--costs"], "holds no network, "),
            ("sweep.sqlite", ["--costs"], "--costs need a file of tersenet.export"),
            ("network.terse", ["--costs", "--memory", "disk"], "memory is 'disk', expected one of"),
            ("network.terse", ["--costs", "--arithmetic", "int2"], "arithmetic is 'int2'"),
            ("network.terse", ["--costs", "--limit", "tensors=1"], "limit"),
            ("no.terse", ["--costs"], "No such file"),
        ],
    )
    def test_what_is_missing_is_one_line(self, folder, two_layers, source, options, message):
        write_terse(folder / "tensors.terse")
        if not (folder / "sweep.sqlite").exists():
            write_results(folder / "sweep.sqlite", trials=2)
        status, told, err = call("report", folder / source, *options)
        assert (status, told) == (2, "")
        assert message in err
        assert err.startswith("tersenet: ") and err.count("\n") == 1
