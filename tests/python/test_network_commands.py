"""`tersenet run` and `tersenet bench`: what they answer, and what they say of bad input."""

import contextlib
import io as text_io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from models import SmallNet, small_net
from torch import nn

import tersenet
from tersenet import benchmark, cli

pytest.importorskip("typer")

A, B = np.arange(-6, 6).reshape(4, 3), np.arange(20).reshape(4, 5) % 7


class Two(nn.Module):
    """Two inputs, two outputs; whole numbers, so that every answer is exact."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(5, 4, bias=False)
        self.a.weight.data = torch.tensor(A, dtype=torch.float32)
        self.b.weight.data = torch.tensor(B, dtype=torch.float32)

    def forward(self, x, y):
        a = self.a(x)
        return a + self.b(y), a


X, Y = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 5), np.float32)
EXPECTED = (X @ A.T + Y @ B.T, X @ A.T)

MODELS = """
import torch
from torch import nn
import test_network_commands
made = test_network_commands.Two()
def make(): return test_network_commands.Two()
class Holder:
    make = test_network_commands.Two
def needs(argument): pass
number = 3
other = nn.Linear(3, 4)
class Double(test_network_commands.Two):
    def forward(self, x, y): return tuple(2 * z for z in super().forward(x, y))
class Wide(test_network_commands.Two):
    def forward(self, x, y): return (torch.ones(2, 9), torch.ones(2, 4))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    tersenet.export(Two(), (torch.ones(2, 3), torch.ones(2, 5)), folder / "two.terse")
    tersenet.export(small_net(), SmallNet.example(), folder / "small.terse")
    tersenet.save({"w": np.ones(3)}, folder / "weights.terse")
    data = (folder / "small.terse").read_bytes()
    (folder / "cut.terse").write_bytes(data[: len(data) // 2])
    (folder / "empty.terse").touch()
    arrays = {
        "x": X,
        "y": Y,
        "x64": X.astype(np.float64),
        "thirds": X.astype(np.float64) / 3,
        "huge": np.full((2, 3), 1e300),
        "big": X.astype(">f4"),
        "fortran": np.asfortranarray(X),
        "bytes": X.astype(np.uint8),
        "none": X[:0],
        "none_y": Y[:0],
        "wide": np.ones((2, 4), np.float32),
        "three": np.ones((3, 5), np.float32),
        "scalar": np.float32(1),
        "text": np.full((2, 3), "a"),
        "complex": X.astype(np.complex64),
        "ids": SmallNet.example().numpy(),
        "ids32": SmallNet.example().numpy().astype(np.int32),
        "ids_float": SmallNet.example().numpy().astype(np.float64),
        "ids_60": np.full((2, 7), 60),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "objects.npy", np.array([None, "a"], dtype=object), allow_pickle=True)
    np.savez(folder / "named.npz", y=Y, x=X)
    np.savez(folder / "numbered.npz", X, Y)
    np.savez(folder / "other.npz", a=X, b=Y)
    (folder / "named=x.npy").write_bytes((folder / "x.npy").read_bytes())
    (folder / "empty.npy").touch()
    (folder / "word.npy").write_text("hello")
    (folder / "word.npz").write_text("hello")
    (folder / "archive.npy").write_bytes((folder / "named.npz").read_bytes())
    (folder / "cut.npy").write_bytes((folder / "x.npy").read_bytes()[:-4])
    (folder / "folder.npy").mkdir()
    (folder / "peers.py").write_text(MODELS)
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    yield
    for path in [*folder.glob("o.*"), *folder.glob("p.*")]:
        path.unlink()


def call(*arguments):
    out, err = text_io.StringIO(), text_io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


def process(*arguments, code="", **options):
    code += "; import sys; from tersenet.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code.lstrip("; "), *map(str, arguments)]
    return subprocess.run(command, text=True, check=False, timeout=120, **options)


@pytest.mark.parametrize(
    "inputs",
    [
        ["x.npy", "y.npy"],
        ["x=x.npy", "y=y.npy"],
        ["y=y.npy", "x=x.npy"],
        ["y=y.npy", "x.npy"],
        ["named=x.npy", "y.npy"],
        ["named.npz"],
        ["numbered.npz"],
        ["x64.npy", "y.npy"],
        ["big.npy", "y.npy"],
        ["fortran.npy", "y.npy"],
        ["bytes.npy", "y.npy"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("outputs", [["o.npy", "p.npy"], ["o.npz"]], ids=" ".join)
def test_run_writes_what_the_model_returns(inputs, outputs):
    options = [word for path in inputs for word in ("--input", path)]
    options += [word for path in outputs for word in ("--output", path)]
    status, out, err = call("run", "two.terse", *options)
    assert (status, err) == (0, "")
    assert out == f"{', '.join(outputs)}: float32 2x4, float32 2x4\n"
    if outputs == ["o.npz"]:
        with np.load("o.npz") as archive:
            found = [archive["arr_0"], archive["arr_1"]]
    else:
        found = [np.load(path) for path in outputs]
    for array, expected in zip(found, EXPECTED, strict=True):
        assert array.dtype == np.float32
        assert np.array_equal(array, expected)


@pytest.mark.parametrize("ids", ["ids.npy", "ids32.npy"])
@pytest.mark.parametrize("resident", ["compressed", "cached", "dense"])
@pytest.mark.parametrize("threads", [[], ["--threads", 1], ["--threads", 3]], ids=str)
def test_run_gives_the_bits_of_a_network(ids, resident, threads):
    network = tersenet.Network.load("small.terse", resident)
    options = ["-i", ids, "-o", "o.npy", "--resident", resident, *threads]
    assert call("run", "small.terse", *options) == (0, "o.npy: float32 4x60\n", "")
    assert np.array_equal(np.load("o.npy"), network.run(np.load("ids.npy")))


def test_a_batch_of_none_gives_none():
    options = ["-i", "none.npy", "-i", "none_y.npy", "-o", "o.npy", "-o", "p.npy"]
    assert call("run", "two.terse", *options)[0] == 0
    assert np.load("o.npy").shape == np.load("p.npy").shape == (0, 4)


def test_rounding_to_float32_is_told():
    options = ["-i", "thirds.npy", "-i", "y.npy", "-o", "o.npz"]
    status, _, err = call("run", "two.terse", *options)
    assert (status, err) == (0, "tersenet: thirds.npy: float64, rounded to float32\n")
    with np.load("o.npz") as archive:
        x = (X.astype(np.float64) / 3).astype(np.float32)
        assert np.array_equal(archive["arr_1"], tersenet.Network.load("two.terse").run(x, Y)[1])


XY = ["-i", "x.npy", "-i", "y.npy"]
BAD = [
    ([], "Missing argument 'NETWORK.terse'"),
    (["two.terse"], "0 --input, expected 2: x: float32 [batch, 3], y: float32 [batch, 5]"),
    (["two.terse", "-i", "x.npy", "-o", "o.npz"], "two.terse: 1 --input, expected 2: x: float32"),
    (["two.terse", *XY, "-i", "x.npy", "-o", "o.npz"], "two.terse: 3 --input, expected 2"),
    (["two.terse", *XY], "two.terse: 0 --output, expected 2, one for each"),
    (["two.terse", *XY, "-o", "o.npy"], "two.terse: 1 --output, expected 2"),
    (["two.terse", *XY, "-o", "o.npy", "-o", "p.npz"], "expected .npy for each, or one .npz"),
    (["two.terse", *XY, "-o", "o.npy", "-o", "../{folder}/o.npy"], "--output given twice"),
    (["two.terse", *XY, "-o", "o.npy", "-o", "x.npy"], "x.npy is read from"),
    (["two.terse", *XY, "-o", "o.npy", "-o", "folder.npy"], "folder.npy: --output is a directory"),
    (["two.terse", *XY, "-o", "o.npy", "-o", "no/p.npy"], "no/p.npy: --output is in no directory"),
    (["two.terse", *XY, "-o", "o.npy", "-o", "p.txt"], "p.txt: ending '.txt', expected .npy"),
    (["two.terse", *XY, "-o", "o.npz", "--resident", "fast"], "resident is 'fast', expected one"),
    (["two.terse", *XY, "-o", "o.npz", "--threads", "0"], "threads: 0, expected at least 1"),
    (["two.terse", "-i", "z=x.npy", "-i", "y.npy", "-o", "o.npz"], "no input called 'z', expected"),
    (["two.terse", "-i", "x=x.npy", "-i", "x=y.npy", "-o", "o.npz"], "x=y.npy: given twice"),
    (["two.terse", "-i", "named.npz", "-i", "y.npy", "-o", "o.npz"], "named.npz: one of 2 inputs"),
    (["two.terse", "-i", "other.npz", "-o", "o.npz"], "other.npz: holds a, b, expected x, y, or"),
    (["two.terse", "-i", "word.npz", "-o", "o.npz"], "word.npz: no .npz file that can be read"),
    (["two.terse", "-i", "two.terse", "-i", "y.npy", "-o", "o.npz"], "ending '.terse', expected"),
    *(
        (["two.terse", "-i", f"{name}.npy", "-i", "y.npy", "-o", "o.npz"], expected)
        for name, expected in (
            ("missing", "missing.npy: No such file"),
            ("folder", "folder.npy: Is a directory"),
            ("empty", "empty.npy: no array of numbers"),
            ("word", "word.npy: no array of numbers"),
            ("archive", "archive.npy: no array of numbers"),
            ("cut", "cut.npy: no array of numbers"),
            ("objects", "objects.npy: no array of numbers"),
            ("huge", "huge.npy: holds float64 beyond float32"),
            ("wide", "x has shape [2, 4], expected [batch, 3] (x is wide.npy, y is y.npy)"),
            ("scalar", "x has shape [], expected [batch, 3]"),
            ("text", "x is <U1, expected float32"),
            ("complex", "x is complex64, expected float32"),
        )
    ),
    (["two.terse", "-i", "x.npy", "-i", "three.npy", "-o", "o.npz"], "batch of 3, expected 2"),
    (["small.terse", "-i", "ids_float.npy", "-o", "o.npy"], "ids is float64, expected int64"),
    (["small.terse", "-i", "ids_60.npy", "-o", "o.npy"], "id 60, expected in [0, 60)"),
    (["weights.terse", *XY, "-o", "o.npz"], "weights.terse: container: tensors without a network"),
]  # fmt: skip
NO_NETWORK = [
    ("weights.terse", "weights.terse: "),
    ("empty.terse", "empty.terse: not a tersenet container: it is empty"),
    ("cut.terse", "cut.terse: container: ends after"),
    ("x.npy", "x.npy: not a tersenet container: it is a NumPy array file"),
    ("peers.py", "peers.py: not a tersenet container: it is a text file"),
]


def check_one_line(result, expected):
    status, out, err = result
    assert (status, out) == (2, "")
    assert expected in err
    assert err.startswith("tersenet: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "expected"), BAD, ids=lambda value: str(value)[:60])
def test_bad_input_is_one_clear_line_and_leaves_no_file(folder, arguments, expected):
    before = sorted(folder.iterdir()), (folder / "x.npy").read_bytes()
    arguments = [word.replace("{folder}", folder.name) for word in arguments]
    check_one_line(call("run", *arguments), expected)
    assert (sorted(folder.iterdir()), (folder / "x.npy").read_bytes()) == before


@pytest.mark.parametrize("command", [["run", *XY, "-o", "o.npy"], ["bench"]], ids=["run", "bench"])
@pytest.mark.parametrize(("name", "expected"), NO_NETWORK)
def test_a_file_without_a_network_says_what_makes_one(command, name, expected):
    result = call(*command, name)
    check_one_line(result, expected)
    assert "tersenet.export" in result[2]


@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_missing_file_is_named(command):
    check_one_line(call(command, "missing.terse"), "missing.terse: No such file or directory")
    check_one_line(call(command, "folder.npy"), "folder.npy: is a directory")


def test_old_outputs_stay_after_an_error(folder):
    (folder / "o.npy").write_text("old")
    assert call("run", "small.terse", "-i", "ids_60.npy", "-o", "o.npy")[0] == 2
    assert (folder / "o.npy").read_text() == "old"
    assert call("run", "small.terse", "-i", "ids.npy", "-o", "o.npy")[0] == 0
    assert np.load("o.npy").shape == (4, 60)


@pytest.mark.parametrize("command", ["run", "bench"])
def test_help_says_what_makes_the_file(command):
    status, out, _ = call(command, "--help")
    assert status == 0
    assert "tersenet.export" in out


def test_neither_command_loads_torch():
    code = "import sys; sys.modules['torch'] = None"
    options = {"code": code, "capture_output": True}
    done = process("run", "two.terse", *XY, "-o", "o.npy", "-o", "p.npy", **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(np.load("o.npy"), EXPECTED[0])
    done = process("bench", "two.terse", "--seconds", 0, **options)
    assert (done.returncode, done.stderr) == (0, "")
    refused = process("bench", "two.terse", "--torch", "peers:made", **options)
    assert refused.returncode == 2
    assert refused.stderr == "tersenet: torch is not installed: pip install 'tersenet[torch]'\n"


def bench(*arguments):
    status, out, err = call("bench", *arguments, "--seconds", 0, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_bench_measures_every_setting():
    cores = len(os.sched_getaffinity(0))
    answer = bench("small.terse")
    settings = [(t["threads"], t["batch"], t["form"]) for t in answer["timings"]]
    assert settings == [
        (threads, batch, form)
        for threads in sorted({1, cores})
        for batch in (1, 8, 32)
        for form in ("compressed", "cached")
    ]
    for timing in answer["timings"]:
        assert 0 < timing["best_ms"] <= timing["median_ms"]
        assert timing["rounds"] == 5
        expected = timing["batch"] / (timing["median_ms"] / 1000)
        assert timing["examples_per_second"] == pytest.approx(expected)
    assert answer["file_nbytes"] == os.path.getsize("small.terse")
    assert answer["inputs"] == "ids: int64 [batch, 7]"
    assert answer["difference"] is None


def test_bench_takes_the_settings_that_are_given():
    options = ["--batch", 3, "--batch", 2, "--threads", 2, "--resident", "dense"]
    answer = bench("two.terse", *options)
    settings = [(t["threads"], t["batch"], t["form"]) for t in answer["timings"]]
    assert settings == [(2, 3, "dense"), (2, 2, "dense")]


def test_bench_shows_the_bytes_of_each_form():
    answer = bench("small.terse", "--batch", 4, "--threads", 1)
    for form, held in answer["held"].items():
        network = tersenet.Network.load("small.terse", form)
        assert held["loaded_nbytes"] == network.nbytes
        network.run(np.load("ids.npy"))
        assert held["nbytes"] == network.nbytes
    assert answer["held"]["compressed"]["nbytes"] < answer["held"]["cached"]["nbytes"]


def test_bench_keeps_to_its_limits_whenever_it_opens_the_file(monkeypatch):
    opened = []

    def reader(path, **allowed):
        opened.append(allowed)
        return make(path, **allowed)

    make = benchmark._core.Reader
    monkeypatch.setattr(benchmark._core, "Reader", reader)
    bench("small.terse", "--batch", 1, "--threads", 1, "--limit", "tensors=1000")
    assert [allowed["max_tensors"] for allowed in opened] == [1000]


def test_bench_goes_on_until_the_time_is_over():
    networks = {"cached": tersenet.Network.load("two.terse")}
    result = benchmark.measure(networks, batches=[1], threads=[1], seconds=0.2)
    (timing,) = result.timings
    assert 5 < timing.rounds <= 1000
    shares = []
    benchmark.measure(
        networks, batches=[1, 2], threads=[1], seconds=0.01,
        progress=lambda what, done, total: shares.append((what, done / total)),
    )  # fmt: skip
    assert shares[-1] == ("measuring", 1.0)
    assert sorted(shares) == shares


@pytest.mark.parametrize("name", ["peers:made", "peers:make", "peers:Holder.make"])
def test_torch_is_measured_beside_it(name):
    before = torch.get_num_threads()
    answer = bench("two.terse", "--torch", name, "--batch", 2, "--batch", 5, "--threads", 1)
    assert [t["form"] for t in answer["timings"]] == ["compressed", "cached", "torch"] * 2
    assert answer["held"]["torch"]["nbytes"] == 4 * (A.size + B.size)
    assert answer["largest"] > 1
    assert answer["difference"] <= 8 * 2.0**-24 * 100
    assert torch.get_num_threads() == before


def test_another_model_of_torchs_is_told():
    for name, is_other in (("peers:made", False), ("peers:Double", True)):
        options = ["--torch", name, "--seconds", 0, "--threads", 1, "--batch", 2]
        status, out, err = call("bench", "two.terse", *options)
        assert (status, err) == (0, "")
        assert "answers differ from torch's by at most" in out
        assert ("is it the model that was exported?" in out) == is_other


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--batch", "0"], "batch is 0, expected at least 1"),
        (["--batch", "2", "--batch", "-1"], "batch is -1, expected at least 1"),
        (["--batch", "1,8"], "Invalid value for '--batch'"),
        (["--batch", str(1 << 45)], "not enough memory"),
        (["--threads", "0"], "threads is 0, expected at least 1"),
        (["--seconds", "nan"], "seconds is nan, expected at least 0"),
        (["--seconds", "inf"], "seconds is inf, expected at least 0"),
        (["--seed", "-1"], "seed is -1, expected at least 0"),
        (["--resident", "fast"], "resident is 'fast', expected one of"),
        (["--torch", "peers"], "--torch peers: expected MODULE:MODEL"),
        (["--torch", "nowhere:make"], "--torch nowhere:make: no module nowhere"),
        (["--torch", "peers:nothing"], "--torch peers:nothing: peers has no attribute nothing"),
        (["--torch", "peers:number"], "found int, expected a model"),
        (["--torch", "peers:needs"], "calling it without arguments: TypeError"),
        (["--torch", "peers:other"], "the model fails on the network's inputs: TypeError"),
        (["--torch", "peers:Wide"], "gives shapes [[2, 9], [2, 4]], expected [[1, 4], [1, 4]]"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_bench_cannot_measure_is_one_clear_line(options, expected):
    check_one_line(call("bench", "two.terse", *options), expected)


class Tables(nn.Module):
    """Ids that go to two embeddings, once through a reshape."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Embedding(50, 2), nn.Embedding(11, 2)

    def forward(self, ids, x):
        return self.wide(ids).sum(1) + self.narrow(ids.reshape(-1, 2, 2)).sum((1, 2)) + x


def test_inputs_fit_the_smallest_embedding(tmp_path):
    example = (torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 2))
    tersenet.export(Tables(), example, tmp_path / "tables.terse")
    answer = bench(tmp_path / "tables.terse", "--batch", 500, "--threads", 1)
    assert len(answer["timings"]) == 2


def test_random_inputs_have_the_shapes_and_ranges_of_the_graph():
    graph = ([("ids", "int64", [-2, 3]), ("x", "float32", [4, -1])], [], [0], False)
    ids, x = benchmark.random_inputs(graph, {0: 11}, 50, seed=3)
    assert (ids.dtype, ids.shape) == (np.int64, (100, 3))
    assert (ids.min(), ids.max()) == (0, 10)
    assert (x.dtype, x.shape) == (np.float32, (4, 50))
    assert abs(x.mean()) < 0.3
    again = benchmark.random_inputs(graph, {0: 11}, 50, seed=3)
    assert np.array_equal(again[0], ids)
    assert not np.array_equal(benchmark.random_inputs(graph, {0: 11}, 50, seed=4)[1], x)


@pytest.mark.parametrize("width", [100, 60, 30])
def test_no_number_is_cut_on_a_terminal(width):
    """A pseudo-terminal: its lines may be broken there, but nothing is left out."""
    ours, theirs = os.openpty()
    env = {**os.environ, "COLUMNS": str(width), "TERM": "xterm", "NO_COLOR": "1"}
    options = ["--seconds", "0", "--threads", "1", "--batch", "2"]
    done = process(
        "bench", "small.terse", *options, env=env, stdout=theirs, stderr=subprocess.PIPE
    )  # fmt: skip
    os.close(theirs)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, "")
    assert "…" not in text
    for word in ("compressed", "cached", "threads", "second"):
        assert word in text
    network = tersenet.Network.load("small.terse", "compressed")
    assert f"{network.nbytes:,}" in text
