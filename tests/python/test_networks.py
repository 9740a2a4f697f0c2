"""Whole networks: architectures with random weights, and trained ones on real inputs."""

import networks
import numpy as np
import pytest
import torch
import trained
from exported import check, lively

import tersenet

HAS_DATA = trained.data().is_dir()


def floats(*shape):
    return lambda batch: torch.randn(batch, *shape)


def ids(high, *shape):
    return lambda batch: torch.randint(high, (batch, *shape))


SMALL_VGG = tuple(w if isinstance(w, str) else w // 8 for w in networks.VGG19)
ZOO = {
    "vgg19": (lambda: networks.VGG(SMALL_VGG), floats(3, 32, 32)),
    "vgg19_hidden": (lambda: networks.VGG(SMALL_VGG, (64,)), floats(3, 32, 32)),
    "resnet20": (lambda: networks.CifarResNet(20), floats(3, 32, 32)),
    "resnet18": (lambda: networks.ResNet(width=8, classes=10), floats(3, 64, 64)),
    "resnet_bottleneck": (
        lambda: networks.ResNet((1, 2, 1, 1), width=8, is_bottleneck=True, classes=10),
        floats(3, 64, 64),
    ),
    "mobilenet_v2": (lambda: networks.MobileNetV2(0.25, 10, 64), floats(3, 64, 64)),
    "densenet": (networks.DenseNet, floats(3, 16, 16)),
    "unet": (networks.UNet, floats(3, 16, 16)),
    "unet_bilinear": (lambda: networks.UNet(is_bilinear=True), floats(3, 16, 16)),
    "deepdta": (lambda: networks.DeepDTA(8, 64), ids(65, 40), ids(26, 60)),
    "encoder": (networks.Encoder, ids(100, 16)),
    "causal_transformer": (networks.CausalTransformer, ids(100, 16)),
    "llama": (lambda: networks.Llama(layers=2), ids(512, 16)),
}


@pytest.mark.parametrize("name", ZOO)
def test_a_network_is_as_exact_as_torch(tmp_path, name):
    torch.manual_seed(0)
    make, *inputs = ZOO[name]
    model = lively(make())
    path = tmp_path / "x.terse"
    tersenet.export(model, tuple(x(1) for x in inputs), path)
    network = tersenet.Network.load(path)
    for batch in (1, 3):
        check(network, model, tuple(x(batch) for x in inputs))


@pytest.mark.parametrize("name", ["vgg19_hidden", "resnet20", "unet", "deepdta", "llama"])
def test_a_pruned_and_quantized_network_runs_from_its_compressed_weights(tmp_path, name):
    torch.manual_seed(0)
    make, *inputs = ZOO[name]
    model = lively(make())
    small = tersenet.compress(model, tersenet.Plan.of(sparsity=0.85, quantizer="cws", k=32))
    plain = tersenet.decompress(small)
    example = tuple(x(1) for x in inputs)
    sizes = [
        tersenet.export(each, example, tmp_path / f"{number}.terse")
        for number, each in enumerate((small, plain, model))
    ]
    assert sizes[0] < sizes[2] / 2.5
    assert sizes[1] < sizes[2] / 2.5
    batch = tuple(x(3) for x in inputs)
    for number in (0, 1):
        for resident in ("compressed", "cached", "dense"):
            network = tersenet.Network.load(tmp_path / f"{number}.terse", resident)
            check(network, plain, batch)


TRAINED = {
    "resnet20": (trained.resnet, lambda: trained.normalized(trained.cifar10(100)[0])),
    "resnet56": (
        lambda: trained.resnet(56),
        lambda: trained.normalized(trained.cifar10(50)[0]),
    ),
    "resnet8": (trained.resnet8, lambda: trained.cifar10(100)[0]),
    "ds_cnn": (trained.ds_cnn, lambda: trained.keywords(100)),
    "mobilenet": (trained.mobilenet, lambda: torch.rand(4, 3, 96, 96)),
    "autoencoder": (trained.autoencoder, lambda: 5 * torch.randn(20, 640)),
    "squeezenet": (trained.squeezenet, lambda: 50 * torch.randn(2, 3, 227, 227)),
    "res8": (trained.res8, lambda: 5 * torch.randn(4, 101, 40)),
    "lenet": (trained.lenet, lambda: trained.mnist(200)[0]),
    "stories": (trained.llama, lambda: trained.stories(8, 32)),
}


@pytest.mark.skipif(not HAS_DATA, reason="TERSENET_DATA names no folder")
@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_network_is_as_exact_and_decides_the_same(tmp_path, name):
    torch.manual_seed(0)
    make, inputs = TRAINED[name]
    model, x = make(), inputs()
    tersenet.export(model, x[:1], tmp_path / "x.terse")
    network = tersenet.Network.load(tmp_path / "x.terse")
    check(network, model, (x,))
    with torch.no_grad():
        expected = model(x).numpy()
    axis = 2 if name == "stories" else 1
    assert np.array_equal(network.run(x.numpy()).argmax(axis), expected.argmax(axis))


@pytest.mark.skipif(not HAS_DATA, reason="TERSENET_DATA names no folder")
def test_the_weights_are_the_trained_ones():
    images, classes = trained.cifar10(200)
    keywords = trained.keywords(200)
    with np.load(trained.data() / "mlperf_tiny" / "kws01_features.npz") as stored:
        labels = stored["labels"][:200]
    digits, names = trained.mnist(200)
    cases = (
        (trained.resnet(), trained.normalized(images), classes, 0.88),
        (trained.resnet8(), images, classes, 0.82),
        (trained.ds_cnn(), keywords, labels, 0.87),
        (trained.lenet(), digits, names, 0.98),
    )
    for model, x, expected, least in cases:
        with torch.no_grad():
            assert (model(x).argmax(1).numpy() == expected).mean() >= least


@pytest.mark.skipif(not HAS_DATA, reason="TERSENET_DATA names no folder")
def test_the_language_model_runs_from_compressed_layers(tmp_path):
    model = trained.llama()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            scale = parameter.detach().abs().amax() / 31
            parameter.data = (parameter / scale).round() * scale
    model.output.weight = model.tok_embeddings.weight
    small = tersenet.compress(model)
    assert not tersenet.left_dense(small)
    tokens = trained.stories(4, 32)
    tersenet.export(small, tokens, tmp_path / "x.terse")
    check(tersenet.Network.load(tmp_path / "x.terse"), model, (tokens,))
    with tersenet.open(tmp_path / "x.terse") as file:
        assert "output.weight" not in file
