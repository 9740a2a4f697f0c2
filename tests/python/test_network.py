"""Networks from files: run without torch, checked inputs, every way to hold the weights."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported import Call, check, lively
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import SmallNet, small_net
from torch import Tensor, nn

import tersenet

RESIDENT = ("compressed", "cached", "dense")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "small.terse"
    tersenet.export(small_net(), SmallNet.example(), path, metadata={"epoch": "3"})
    return path


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("resident", RESIDENT)
def test_every_way_to_hold_the_weights_computes_the_same(path, resident, mmap):
    network = tersenet.Network.load(path, resident, mmap=mmap)
    check(network, tersenet.decompress(small_net()), (SmallNet.example(),))


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5])
def test_hardly_pruned_layers_compute_the_same(tmp_path, resident, sparsity):
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 70, 3, stride=2), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(70 * 7 * 7, 66), nn.GELU(), nn.Linear(66, 10)]
    model = nn.Sequential(*layers).eval()
    plan = tersenet.Plan.of(sparsity=sparsity, quantizer="uq", k=32)
    small = tersenet.compress(model, plan)
    x = torch.randn(130, 3, 16, 16)
    tersenet.export(small, x[:2], tmp_path / "dense.terse")
    network = tersenet.Network.load(tmp_path / "dense.terse", resident)
    check(network, tersenet.decompress(small), (x,))
    expected = network.run(x.numpy(), threads=1)
    for threads in (2, 3, 8):
        assert np.array_equal(network.run(x.numpy(), threads=threads), expected)


def test_compressed_weights_take_the_least_memory(path):
    compressed, dense = (tersenet.Network.load(path, r) for r in ("compressed", "dense"))
    assert compressed.nbytes < dense.nbytes
    names = [place for place, _, _ in dense.layers()]
    assert names == ["embedding", "conv1", "conv2", "body.0", "body.2", "head"]
    assert {layout for _, layout, _ in dense.layers()} == {"dense"}


@pytest.mark.skipif(tersenet._core.SIMD == "scalar", reason="kept weights are as fast there")
def test_weights_that_are_all_there_are_not_kept_again_for_a_small_map(tmp_path):
    torch.manual_seed(5)
    model = nn.Conv2d(64, 64, 3, padding=1).eval()
    x = torch.randn(1, 64, 4, 4)
    tersenet.export(model, x, tmp_path / "dense.terse")
    network = tersenet.Network.load(tmp_path / "dense.terse", "cached")
    check(network, model, (x,))
    assert network.nbytes < 1.1 * 4 * model.weight.numel()


def test_an_archive_of_a_file_is_held_in_a_layout_that_multiplies(tmp_path):
    net = tersenet.decompress(small_net())
    with torch.no_grad():
        net.head.weight[:] = net.head.weight[:1]  # rows alike
    small = tersenet.compress(net)
    tersenet.export(small, SmallNet.example(), tmp_path / "small.terse", goal="size")
    with tersenet.open(tmp_path / "small.terse") as file:
        assert "archive" in {file.info(name).get("layout") for name in file}
    network = tersenet.Network.load(tmp_path / "small.terse", "compressed")
    assert "archive" not in {layout for _, layout, _ in network.layers()}
    check(network, net, (SmallNet.example(),))


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("goal", [None, "size", "speed"])
def test_rows_that_share_a_common_part_compute_the_same(tmp_path, resident, goal):
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(90, 300), nn.GELU(), nn.Linear(300, 200), nn.ReLU6())
    with torch.no_grad():
        for layer in (net[0], net[2]):
            patterns = torch.round(layer.weight[:7] * 60) / 60
            alike = patterns[torch.randint(7, (len(layer.weight),))]
            is_own = torch.rand(alike.shape) < 0.05
            layer.weight[:] = torch.where(is_own, torch.round(layer.weight * 60) / 60, alike)
    small = tersenet.compress(net)
    assert {layer.matrix.layout for layer in small if hasattr(layer, "matrix")} == {"grouped"}
    x = torch.randn(130, 90)
    tersenet.export(small, x[:2], tmp_path / "x.terse", goal=goal)
    network = tersenet.Network.load(tmp_path / "x.terse", resident)
    expected = "dense" if resident == "dense" else "grouped"
    assert {layout for _, layout, _ in network.layers()} == {expected}
    for batch in (1, 2, 16, 33, 130):
        check(network, net, (x[:batch],))
        y = network.run(x[:batch].numpy(), threads=1)
        for threads in (2, 3, 8):
            assert np.array_equal(network.run(x[:batch].numpy(), threads=threads), y)


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("k", [7, 200])
def test_slices_of_rows_compute_the_same(tmp_path, resident, k):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(90, 300), nn.GELU(), nn.Linear(300, 200), nn.ReLU6())
    small = tersenet.compress(
        net, tersenet.Plan.of(sparsity=0.7, quantizer="uq", k=k), layout="sell"
    )
    x = torch.randn(40, 90)
    tersenet.export(small, x[:2], tmp_path / "x.terse", goal=None)
    network = tersenet.Network.load(tmp_path / "x.terse", resident)
    layouts = {layout for _, layout, _ in network.layers()}
    if resident == "compressed" and tersenet._core.SIMD.startswith("avx512") and k <= 32:
        assert layouts == {"sell"}
    plain = tersenet.decompress(small)
    for batch in (1, 2, 7, 8, 9, 40):
        check(network, plain, (x[:batch],))
        y = network.run(x[:batch].numpy(), threads=1)
        for threads in (2, 3, 8):
            assert np.array_equal(network.run(x[:batch].numpy(), threads=threads), y)


def test_an_embedding_whose_rows_alone_are_taken_is_not_in_slices(tmp_path):
    torch.manual_seed(6)
    net = nn.Sequential(nn.Embedding(300, 64), nn.Linear(64, 200)).eval()
    with torch.no_grad():
        for layer in net:
            values = torch.randint(1, 9, layer.weight.shape) / 8
            layer.weight[:] = torch.where(torch.rand(values.shape) < 0.2, values, 0)
    small = tersenet.compress(net, goal="speed")
    assert small[0].matrix.layout != "sell"
    ids = torch.randint(300, (5, 7))
    tersenet.export(small, ids, tmp_path / "x.terse", goal="size")
    network = tersenet.Network.load(tmp_path / "x.terse", "cached")
    layouts = {name: layout for name, layout, _ in network.layers()}
    assert layouts["0"] != "sell"
    if tersenet._core.SIMD.startswith("avx512"):
        assert layouts["1"] == "sell"
    check(network, tersenet.decompress(small), (ids,))


def test_threads_change_no_bit(path):
    network = tersenet.Network.load(path)
    ids = np.tile(SmallNet.example().numpy(), (8, 1))
    expected = network.run(ids, threads=1)
    for threads in (2, 3, None):
        assert np.array_equal(network.run(ids, threads=threads), expected)


class Blocks(nn.Module):
    """Convolutions one after the other, with what may stand between them."""

    def __init__(self, kinds: tuple[str, ...], width: int) -> None:
        super().__init__()
        self.kinds = kinds
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, 2 if kind == "stride" else 1, padding=1) for kind in kinds
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in kinds)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = middle = F.relu(self.first(x))
        for kind, conv, norm in zip(self.kinds, self.convs, self.norms, strict=True):
            y = norm(conv(x))
            if kind == "pool":
                y = F.max_pool2d(F.relu(y), 2)
            elif kind == "residual":
                y = F.relu(y + x)
            elif kind == "branch":
                y = F.gelu(conv(F.max_pool2d(y, 2))) * F.max_pool2d(y, 2)
            elif kind == "norm":
                y = F.layer_norm(y, y.shape[-1:])
            elif kind == "middle":
                middle = y = F.hardswish(y)
            x = y
        return (x, middle) if "middle" in self.kinds else x.flatten(1)


@settings(max_examples=25)
@given(
    kinds=st.lists(
        st.sampled_from(["plain", "pool", "residual", "branch", "norm", "middle", "stride"]),
        min_size=1,
        max_size=5,
    ),
    width=st.sampled_from([1, 7, 24, 40]),
    side=st.sampled_from([(32, 32), (32, 16), (36, 28)]),
    batch=st.sampled_from([1, 8, 12, 16, 24]),
    resident=st.sampled_from(RESIDENT),
    seed=st.integers(0, 1 << 30),
)
def test_what_stands_between_convolutions_of_a_batch_computes_the_same(
    tmp_path_factory, kinds, width, side, batch, resident, seed
):
    assume(sum(kind in ("pool", "branch", "stride") for kind in kinds) <= 3)  # each halves the map
    torch.manual_seed(seed)
    plan = tersenet.Plan.of(sparsity=0.7, quantizer="cws", k=16)
    small = tersenet.compress(lively(Blocks(tuple(kinds), width)), plan)
    path = tmp_path_factory.mktemp("blocks") / "blocks.terse"
    x = torch.randn(batch, 3, *side)
    tersenet.export(small, x[:1], path)
    network = tersenet.Network.load(path, resident)
    check(network, tersenet.decompress(small), (x,))
    one, *more = (network.run(x.numpy(), threads=threads) for threads in (1, 2, 3, 8))
    for other in more:
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_many_threads_share_a_network(path):
    network = tersenet.Network.load(path)
    batches = [SmallNet.example().numpy()[: 1 + i % 4] for i in range(32)]
    expected = [network.run(ids) for ids in batches]
    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(pool.map(network.run, batches), expected, strict=True):
            assert np.array_equal(found, right)


def test_results_go_where_asked(path):
    network = tersenet.Network.load(path)
    ids = SmallNet.example().numpy()
    expected = network.run(ids)
    out = np.empty_like(expected)
    assert network.run(ids, out=out) is out
    wrong = {
        "float64": out.astype(float),
        ">f4": out.astype(">f4"),
        "Tensor": torch.from_numpy(out),
    }
    for found, array in wrong.items():
        for wrongly in (array, [array]):
            with pytest.raises(ValueError, match=f"out: array 0 is {found}, expected an array of"):
                network.run(ids, out=wrongly)
    assert np.array_equal(out, expected)
    with pytest.raises(ValueError, match="out: shapes"):
        network.run(ids, out=out[:1])


@pytest.mark.parametrize("threads", [1, 2])
def test_results_in_another_order_of_memory_are_refused(tmp_path, threads):
    tersenet.export(Call(lambda x: x + 1), torch.ones(1, 3), tmp_path / "x.terse")
    network = tersenet.Network.load(tmp_path / "x.terse")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for out in (np.zeros((2, 3), np.float32, order="F"), np.zeros((2, 6), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match="out: array 0 is strided, expected C-contiguous"):
            network.run(x, threads=threads, out=out)
        assert not out.any()


def test_several_outputs_go_where_asked(tmp_path):
    model = Call(lambda x: (x + 1, x.sum(1)))
    tersenet.export(model, torch.ones(1, 3), tmp_path / "x.terse")
    network = tersenet.Network.load(tmp_path / "x.terse")
    out = [np.zeros((2, 3), np.float32), np.zeros(2, np.float32)]
    network.run(np.ones((2, 3), np.float32), out=out)
    assert out[0].tolist() == [[2, 2, 2]] * 2
    assert out[1].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((), r"0 inputs, expected 2 \(x, y\)"),
        ((np.ones((2, 3)),) * 3, "3 inputs, expected 2"),
        ((np.ones((2, 4)), np.ones((2, 3))), r"input x has shape \[2, 4\], expected \[batch, 3\]"),
        ((np.ones(3), np.ones((2, 3))), r"input x has shape \[3\]"),
        ((np.ones((2, 3)), np.ones((4, 3))), "input y has a batch of 4, expected 2"),
        ((np.ones((2, 3)), np.ones((2, 3), complex)), "input y"),
        ((np.ones((2, 3)), np.full((2, 3), "a")), "input y"),
    ],
)
def test_wrong_inputs_are_named(tmp_path, arrays, message):
    class Sum(nn.Module):
        def forward(self, x, y):
            return x + y

    model = Sum()
    tersenet.export(model, (torch.ones(1, 3), torch.ones(1, 3)), tmp_path / "x.terse")
    with pytest.raises(ValueError, match=message):
        tersenet.Network.load(tmp_path / "x.terse").run(*arrays)


def test_ids_must_be_integers_that_exist(path):
    network = tersenet.Network.load(path)
    with pytest.raises(ValueError, match="ids"):
        network.run(np.zeros((1, 7), np.float32))
    with pytest.raises(ValueError, match="60"):
        network.run(np.full((1, 7), 60))


def test_a_file_without_a_network_says_so(tmp_path):
    tersenet.save({"w": np.ones(3)}, tmp_path / "x.terse")
    with pytest.raises(ValueError, match=r"x\.terse: .*tersenet\.export"):
        tersenet.Network.load(tmp_path / "x.terse")


def test_an_unknown_way_to_hold_weights_is_an_error(path):
    with pytest.raises(ValueError, match="'fast', expected one of 'compressed'"):
        tersenet.Network.load(path, "fast")


def test_limits_hold(path):
    with pytest.raises(tersenet.FormatError):
        tersenet.Network.load(path, limits=tersenet.Limits(max_tensors=1))


def test_a_damaged_file_is_an_error(path, tmp_path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.terse").write_bytes(data)
    with pytest.raises(tersenet.FormatError):
        tersenet.Network.load(tmp_path / "x.terse")


def test_it_describes_itself(path):
    network = tersenet.Network.load(path)
    assert network.inputs == {"ids": ("int64", (None, 7))}
    assert "ids: int64 [batch, 7]" in repr(network)
    with tersenet.open(path) as file:
        assert file.metadata() == {"epoch": "3"}


def test_a_process_without_torch_runs_the_file(path, tmp_path):
    ids = SmallNet.example().numpy()
    np.save(tmp_path / "ids.npy", ids)
    program = f"""
        import sys
        for name in ("torch", "typer", "rich", "safetensors", "scipy"):
            sys.modules[name] = None
        import numpy as np, tersenet
        network = tersenet.Network.load({str(path)!r})
        np.save({str(tmp_path / "y.npy")!r}, network.run(np.load({str(tmp_path / "ids.npy")!r})))
        try:
            tersenet.export
        except ModuleNotFoundError as error:
            assert "pip install 'tersenet[torch]'" in str(error), error
        else:
            raise AssertionError("no error")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), tersenet.Network.load(path).run(ids))
