"""The command line: what each command answers, and what it says of bad input."""

import contextlib
import io as text_io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tersenet import cli, io
from tersenet.compression import compress
from tersenet.plan import Plan

pytest.importorskip("typer")

from typer.testing import CliRunner

from tersenet.commands import app


def tensors():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    sparse = normal(40, 30) * (normal(40, 30) > 1.2)
    sparse[0, :4] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-42])
    return {
        "conv.weight": normal(16, 8, 3, 3),
        "conv.bias": normal(16),
        "fc.weight": normal(120, 100).bfloat16(),
        "head.weight": normal(50, 120).half(),
        "norm.weight": normal(16).double(),
        "embed_tokens.weight": normal(64, 8),
        "given": sparse,
        "given_half": sparse.half(),
        "ids": torch.arange(7),
        "flag": torch.tensor(True),
        "none.weight": torch.zeros(0, 4),
        "bytes": torch.arange(16, dtype=torch.uint8).reshape(4, 4),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    weights = tensors()
    layers = {n: t for n, t in weights.items() if n != "given" and n != "given_half"}
    save_file(weights, folder / "all.safetensors", metadata={"format": "pt"})
    save_file(layers, folder / "layers.safetensors")
    tied = layers | {"tied.weight": layers["conv.weight"]}
    torch.save(tied, folder / "plain.pt")
    optimizer = {"state": {0: torch.ones(3)}, "lr": 0.1}
    nested = {"epoch": 3, "optimizer": optimizer, "state_dict": tied | {"note": "text"}}
    torch.save(nested, folder / "nested.ckpt")
    torch.save(layers, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    np.save(folder / "matrix.npy", layers["conv.weight"].numpy())
    np.save(folder / "objects.npy", np.array([None, "a"], dtype=object), allow_pickle=True)
    (folder / "text.terse").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "text.safetensors").write_text("<!DOCTYPE html><html>not found</html>")
    (folder / "text.pt").write_text("hello")
    status, _, _ = call("compress", folder / "all.safetensors", "-o", folder / "all.terse")
    assert status == 0
    data = (folder / "all.terse").read_bytes()
    (folder / "cut.terse").write_bytes(data[: len(data) // 2])
    flipped = bytearray(data)
    flipped[-len(data) // 3] ^= 16
    (folder / "flipped.terse").write_bytes(flipped)
    return folder


def call(*arguments):
    out, err = text_io.StringIO(), text_io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


def process(*arguments, code="from tersenet.cli import main; import sys; sys.exit(main())"):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def bits(tensor):
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def test_compress_and_decompress_keep_every_bit(folder, tmp_path):
    status, _, err = call("decompress", folder / "all.terse", "-o", tmp_path / "b.safetensors")
    assert (status, err) == (0, "")
    found, expected = load_file(tmp_path / "b.safetensors"), tensors()
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], expected[name]) for name in expected)
    with io.open(folder / "all.terse") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.info("given")["coder"] == "planes"  # its values are all different
        assert file.info("norm.weight")["kind"] == "array"


def test_an_unpruned_checkpoint_gets_smaller_and_comes_back(tmp_path):
    generator = torch.Generator().manual_seed(1)
    weights = {
        "fc.weight": torch.randn(400, 300, generator=generator) / 16,
        "fc.bias": torch.randn(400, generator=generator) / 16,
        "head.weight": (torch.randn(400, 300, generator=generator) / 16).bfloat16(),
        "tiny": torch.ones(3),
    }
    source, target = tmp_path / "a.safetensors", tmp_path / "a.terse"
    save_file(weights, source)
    sizes = {}
    for goal in ("speed", "size"):
        status, shown, err = call("compress", source, "-o", target, "--goal", goal)
        assert (status, err) == (0, "")
        assert ("plain, planes" in shown) == (goal == "size")
        assert call("verify", target)[0] == 0
        assert call("decompress", target, "-o", tmp_path / "b.safetensors")[0] == 0
        found = load_file(tmp_path / "b.safetensors")
        assert all(same_bits(found[name], weights[name]) for name in weights)
        sizes[goal] = target.stat().st_size
        rows = json.loads(call("inspect", target, "--json")[1])["tensors"]
        coders = {name: row.get("coder") for name, row in rows.items()}
        coded = "planes" if goal == "size" else None
        assert coders == dict.fromkeys(weights, coded) | {"tiny": None}
        shares = {name: row["nbytes"] / row["dense_nbytes"] for name, row in rows.items()}
        if goal == "size":
            assert shares["fc.weight"] < 0.84
            assert shares["fc.bias"] < 0.9
            assert shares["head.weight"] < 0.68
            assert "plain, planes" in call("inspect", target)[1]
    assert sizes["size"] < 0.8 * sizes["speed"]


def test_a_named_layout_needs_only_to_be_smaller_than_dense(tmp_path):
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(300, 300, generator=generator)
    save_file({"fc.weight": weights * (weights.abs() > 1.6)}, tmp_path / "a.safetensors")
    kinds = {}
    for layout in ("auto", "csr"):
        target = tmp_path / f"{layout}.terse"
        options = ["-o", target, "--layout", layout]
        assert call("compress", tmp_path / "a.safetensors", *options)[0] == 0
        with io.open(target) as file:
            kinds[layout] = file.info("fc.weight")["kind"]
    assert kinds == {"auto": "array", "csr": "matrix"}
    assert (tmp_path / "auto.terse").stat().st_size < (tmp_path / "csr.terse").stat().st_size


@pytest.mark.parametrize("threads", [1, 3])
def test_sparsity_and_k_are_reached(folder, tmp_path, threads):
    out = tmp_path / "o.terse"
    options = ["--sparsity", 0.9, "--quantizer", "cws", "--k", 8, "--threads", threads]
    status, shown, err = call("compress", folder / "layers.safetensors", "-o", out, *options)
    assert (status, err) == (0, "")
    assert "fc.weight" in shown
    with io.open(out) as file:
        for name, size in (("conv.weight", 1152), ("fc.weight", 12000), ("head.weight", 6000)):
            matrix = file.get(name)
            assert matrix.nnz == size - round(0.9 * size)
            assert len(matrix.codebook) == 8
        assert file.info("fc.weight")["dtype"] == "bfloat16"
        assert file.info("conv.weight")["shape"] == (16, 8, 3, 3)
        assert same_bits(torch.tensor(file.get("conv.bias")), tensors()["conv.bias"])
        assert file.info("embed_tokens.weight")["kind"] == "array"


def test_the_number_of_threads_does_not_change_a_byte(folder, tmp_path):
    files = []
    for threads in (1, 2, 5):
        out = tmp_path / f"{threads}.terse"
        options = ["--sparsity", 0.8, "--quantizer", "pws", "--k", 5, "--threads", threads]
        assert call("compress", folder / "layers.safetensors", "-o", out, *options)[0] == 0
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 16, 3)
        self.fc = torch.nn.Linear(100, 120)
        self.head = torch.nn.Linear(120, 50)

    def forward(self, x):
        return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantizer", ["cws", "uq", "ecsq", "pws"])
@pytest.mark.parametrize(("pruning", "codebook"), [("layer", "layer"), ("global", "kind")])
def test_a_file_is_compressed_as_its_model_is(tmp_path, dtype, quantizer, pruning, codebook):
    torch.manual_seed(0)
    model = Net().to(dtype)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    plan = Plan.of(
        sparsity=0.75,
        quantizer=quantizer,
        k=6,
        seed=4,
        pruning_scope=pruning,
        codebook_scope=codebook,
    )
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    io.save(compress(model, plan), tmp_path / "model.terse", goal="size")
    out = tmp_path / "file.terse"
    assert (
        call("compress", tmp_path / "net.pt", "-o", out, "--plan", tmp_path / "plan.toml")[0] == 0
    )
    found, expected = io.load(out), io.load(tmp_path / "model.terse")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(found[name], value)
        else:
            assert found[name] == value
    loaded = io.load(out, into=Net().to(dtype))
    assert type(loaded.fc).__name__ == "CompressedLinear"


def test_a_global_scope_prunes_the_least_of_all_layers(folder, tmp_path):
    out = tmp_path / "o.terse"
    options = ["--sparsity", 0.5, "--pruning-scope", "global"]
    assert call("compress", folder / "layers.safetensors", "-o", out, *options)[0] == 0
    names = ["conv.weight", "fc.weight", "head.weight"]
    call("decompress", out, "-o", tmp_path / "b.safetensors")
    found, before = load_file(tmp_path / "b.safetensors"), tensors()
    sizes = sum(before[name].numel() for name in names)
    kept = sum(int(found[name].count_nonzero()) for name in names)
    assert kept == sizes - round(0.5 * sizes)
    least = min(found[name][found[name] != 0].abs().min().item() for name in names)
    most = max(before[name][found[name] == 0].abs().max().item() for name in names)
    assert most <= least


def test_a_plan_reaches_layers_by_kind_and_name(folder, tmp_path):
    (tmp_path / "plan.toml").write_text(
        '[layers."fc:*"]\nsparsity = 0.9\nquantizer = "uq"\nk = 16\n'
        '[layers.head]\nskip = true\n[layers.embed_tokens]\nsparsity = 0.5\nlayout = "csr"\n'
    )
    out = tmp_path / "o.terse"
    options = ["--plan", tmp_path / "plan.toml"]
    assert call("compress", folder / "layers.safetensors", "-o", out, *options)[0] == 0
    with io.open(out) as file:
        assert file.get("fc.weight").nnz <= 1200
        assert file.info("head.weight")["kind"] == "array"
        assert file.info("conv.weight")["kind"] == "array"
        if file.info("embed_tokens.weight")["kind"] == "matrix":
            assert file.info("embed_tokens.weight")["layout"] == "csr"


@pytest.mark.parametrize(
    ("name", "left_out"),
    [("plain.pt", ""), ("nested.ckpt", "epoch, optimizer, note"), ("old.pth", "")],
)
def test_torch_files_keep_every_bit(folder, tmp_path, name, left_out):
    out = tmp_path / "o.terse"
    status, _, err = call("compress", folder / name, "-o", out)
    assert status == 0
    assert left_out in err
    assert ("left out" in err) == bool(left_out)
    call("decompress", out, "-o", tmp_path / "b.safetensors")
    found = load_file(tmp_path / "b.safetensors")
    for key, tensor in found.items():
        expected = tensors()["conv.weight" if key == "tied.weight" else key]
        assert same_bits(tensor, expected)


def test_tied_tensors_are_stored_once(folder, tmp_path):
    out = tmp_path / "o.terse"
    status, shown, _ = call("compress", folder / "plain.pt", "-o", out)
    assert status == 0
    assert "= conv.weight" in shown
    with io.open(out) as file:
        assert file.info("tied.weight")["alias_of"] == "conv.weight"


def test_inspect_tells_the_header(folder):
    status, out, err = call("inspect", folder / "all.terse", "--json")
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert answer["tensors"]["fc.weight"]["shape"] == [120, 100]
    assert answer["tensors"]["fc.weight"]["dense_nbytes"] == 24_000
    assert answer["file_nbytes"] == (folder / "all.terse").stat().st_size
    assert answer["metadata"] == {"format": "pt"}
    status, out, _ = call("inspect", folder / "all.terse")
    assert status == 0
    assert "fc.weight" in out
    assert "format = pt" in out


def test_inspect_reads_no_weights(folder):
    assert call("inspect", folder / "flipped.terse")[0] == 0


def test_compare_has_a_row_for_every_layout(folder):
    for arguments in (["matrix.npy"], ["layers.safetensors", "--tensor", "fc.weight"]):
        status, out, err = call("compare", folder / arguments[0], *arguments[1:])
        assert (status, err) == (0, "")
        assert "packed" in out
        assert "csr" in out


def test_verify_tells_fine_from_damaged(folder):
    assert call("verify", folder / "all.terse")[0] == 0
    for name in ("cut.terse", "flipped.terse", "text.terse"):
        status, out, err = call("verify", folder / name)
        assert (status, out) == (1, "")
        assert name in err
        assert err.count("\n") == 1
    assert call("verify", folder / "all.terse", "--limit", "total_nbytes=9999999")[0] == 0
    status, _, err = call("verify", folder / "all.terse", "--limit", "total_nbytes=9")
    assert status == 1
    assert "expected at most 9: raise the limit to read it" in err
    status, _, err = call("verify", folder / "missing.terse")
    assert status == 2
    assert "missing.terse: No such file" in err


BAD = [
    (["compress", "missing.safetensors", "-o", "o.terse"], "missing.safetensors: No such file"),
    (["compress", "text.safetensors", "-o", "o.terse"], "text.safetensors: no valid safetensors"),
    (["compress", "text.pt", "-o", "o.terse"], "text.pt: no torch file"),
    (["compress", "module.pt", "-o", "o.terse"], "expected a state_dict"),
    (["compress", "matrix.npy", "-o", "o.terse"], "ending '.npy', expected one of"),
    (["compress", "layers.safetensors", "-o", "o.zip"], "ending '.zip', expected .terse"),
    (["compress", "layers.safetensors", "-o", "no/o.terse"], "no"),
    (["compress", "layers.safetensors"], "Missing option '-o'"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--quantizer", "kmeans", "--k", "4"],
     "'kmeans', expected one of cws, pws"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--quantizer", "cws"], "expected k"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--k", "4"], "expected a quantizer"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--sparsity", "90"], "sparsity is 90.0"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--sparsity", "x"], "Invalid value for '--sparsity'"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--layout", "zip"], "zip"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--goal", "best"], "goal is 'best'"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--threads", "0"], "threads is 0"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--plan", "none.toml"], "none.toml: No"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--plan", "stray.toml"],
     "pattern 'fcc' matches no layer"),
    (["compress", "layers.safetensors", "-o", "o.terse", "--plan", "stray.toml", "--k", "3"],
     "--k with --plan"),
    (["compress", "all.terse", "-o", "all.terse"], "is the source"),
    (["decompress", "all.terse", "-o", "o.pt"], "ending '.pt', expected .safetensors"),
    (["decompress", "text.terse", "-o", "o.safetensors"], "text.terse: not a tersenet container"),
    (["decompress", "flipped.terse", "-o", "o.safetensors"], "flipped.terse"),
    (["decompress", "all.terse", "-o", "no/o.safetensors"],
     "no/o.safetensors: No such file or directory"),
    (["inspect", "text.terse"], "text.terse: not a tersenet container"),
    (["inspect", "all.terse", "--limit", "weights=3"], "expected NAME=N, with NAME one of header_nb"),
    (["inspect", "all.terse", "--limit", "tensors=1"], "tensors, expected at most 1"),
    (["decompress", "all.terse", "-o", "o.safetensors", "--limit", "tensor_nbytes=0"],
     "bytes decoded, expected at most 0"),
    (["inspect", "missing.terse"], "missing.terse: No such file"),
    (["compare", "layers.safetensors"], "no --tensor, expected one of"),
    (["compare", "layers.safetensors", "--tensor", "nope"], "--tensor nope, expected one of"),
    (["compare", "layers.safetensors", "--tensor", "ids"], "expected at least two dimensions"),
    (["compare", "all.terse"], "ending '.terse', expected .npy"),
    (["compare", "objects.npy"], "objects.npy: no array of numbers"),
    (["compare", "matrix.npy", "--tensor", "a"], "--tensor a, expected none"),
    (["train"], "No such command 'train'"),
    (["demo", "--goal", "best"], "goal is 'best'"),
    ([], "tersenet --help"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), BAD, ids=lambda value: str(value)[:60])
def test_bad_input_is_one_clear_line_and_status_2(folder, monkeypatch, arguments, expected):
    monkeypatch.chdir(folder)
    (folder / "stray.toml").write_text("[layers.fcc]\nsparsity = 0.5\n")
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert expected in err
    assert err.startswith("tersenet: ")
    assert err.count("\n") == 1
    assert not list(folder.glob("o.*"))


def test_the_source_is_never_overwritten(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"fc.weight": torch.ones(4, 4)}, path)
    (tmp_path / "link.terse").symlink_to(path)
    before = path.read_bytes()
    status, _, err = call("compress", path, "-o", tmp_path / "link.terse")
    assert status == 2
    assert "is the source" in err
    assert path.read_bytes() == before


def test_an_old_file_stays_when_compressing_fails(folder, tmp_path):
    out = tmp_path / "o.terse"
    out.write_text("old")
    save_file({"fc.weight": torch.full((40, 40), float("nan"))}, tmp_path / "nan.safetensors")
    options = ["--quantizer", "cws", "--k", 4]
    status, _, err = call("compress", tmp_path / "nan.safetensors", "-o", out, *options)
    assert status == 2
    assert "fc.weight: cws: weights hold 1600 non-finite values" in err
    assert out.read_text() == "old"
    assert call("compress", folder / "layers.safetensors", "-o", out)[0] == 0
    assert call("verify", out)[0] == 0


def test_debug_shows_the_traceback(folder):
    status, _, err = call("--debug", "inspect", folder / "text.terse")
    assert status == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("tersenet: ")


def test_version_and_help(folder):
    from tersenet import __version__

    assert call("--version") == (0, f"tersenet {__version__}\n", "")
    runner = CliRunner()
    for arguments in (["--help"], ["compress", "--help"], ["demo", "--help"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_exit_statuses_of_a_process(folder):
    assert process("verify", folder / "all.terse").returncode == 0
    damaged = process("verify", folder / "cut.terse")
    assert (damaged.returncode, damaged.stdout) == (1, "")
    wrong = process("inspect", folder / "text.terse")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_help_loads_no_torch():
    code = (
        "import sys; from tersenet.cli import main; status = main(['--help']); "
        "sys.exit(3 if 'torch' in sys.modules else status)"
    )
    assert process(code=code).returncode == 0


def test_safetensors_need_no_torch(folder, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from tersenet.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    options = ["--sparsity", "0.9", "--quantizer", "cws", "--k", "8"]
    out = tmp_path / "o.terse"
    done = process("compress", folder / "layers.safetensors", "-o", out, *options, code=code)
    assert (done.returncode, done.stderr) == (0, "")
    refused = process("compress", folder / "plain.pt", "-o", out, code=code)
    assert refused.returncode == 2
    assert refused.stderr == "tersenet: torch is not installed: pip install 'tersenet[torch]'\n"


@pytest.mark.parametrize("package", ["typer", "rich", "sklearn"])
def test_a_missing_extra_is_named(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None; "
        "from tersenet.cli import main; sys.exit(main(['demo']))"
    )
    found = process(code=code)
    extra = "demo" if package == "sklearn" else "cli"
    assert found.returncode == 2
    assert found.stderr.endswith(
        f"tersenet: {package} is not installed: pip install 'tersenet[{extra}]'\n"
    )
    assert "Traceback" not in found.stderr


def test_an_interrupt_is_status_2(folder, monkeypatch, tmp_path):
    from tersenet import file_compression

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(file_compression, "compress_file", interrupt)
    status, _, err = call("compress", folder / "plain.pt", "-o", tmp_path / "o.terse")
    assert (status, err) == (2, "tersenet: interrupted\n")


def test_the_demo_prints_one_table(tmp_path):
    status, out, err = call("demo", "--epochs", 1, "--keep", tmp_path / "digits.terse")
    assert (status, err) == (0, "")
    assert "test accuracy" in out
    assert "ms an image, batch 64" in out
    assert call("verify", tmp_path / "digits.terse")[0] == 0


def test_weights_that_become_zero_are_counted(tmp_path):
    weights = torch.tensor([[1e-3, 1.0, 2.0, 3.0]] * 64)
    save_file({"fc.weight": weights}, tmp_path / "a.safetensors")
    options = ["--quantizer", "uq", "--k", 3]
    status, out, _ = call(
        "compress", tmp_path / "a.safetensors", "-o", tmp_path / "a.terse", *options
    )
    assert status == 0
    assert "64 weights became zero when they were quantized" in out
