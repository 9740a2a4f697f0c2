"""Trained networks, and inputs for them, from the folder that TERSENET_DATA names.

Each function returns a model in evaluation mode, or a batch of inputs, and raises
FileNotFoundError where the folder is not there; its README says where everything is from.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from networks import (
    CifarResNet,
    HonkRes8,
    LeNet5,
    Llama,
    SqueezeNet,
    TinyAutoencoder,
    TinyDSCNN,
    TinyMobileNet,
    TinyResNet8,
)
from torch import Tensor, nn


def data() -> Path:
    """Return the folder of data and trained weights."""
    return Path(os.environ.get("TERSENET_DATA") or "absent")


def _stored(name: str) -> dict[str, Tensor]:
    path = data() / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: set TERSENET_DATA")
    from safetensors.torch import load_file

    return load_file(path)


def _loaded(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if "num_batches_tracked" not in name]
    assert not missing, missing
    assert not unexpected, unexpected
    return model.eval()


def _in_order(model: nn.Module, stored: dict[str, Tensor], prefixes: list[list[str]]) -> nn.Module:
    """Load tensors whose names are their layers' kinds and numbers, kind by kind."""
    kinds = (nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Linear)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]
    tensors = {}
    for sources in prefixes:
        for source in sources:
            own = {k: v for k, v in stored.items() if k.rpartition(".")[0] == source}
            weight = own[f"{source}.weight"]
            name, layer = next(
                (n, m)
                for n, m in layers
                if m.weight.shape == weight.shape
                and ("running_mean" in "".join(own)) == hasattr(m, "running_mean")
            )
            layers.remove((name, layer))
            tensors.update({f"{name}.{k.rpartition('.')[2]}": v for k, v in own.items()})
    return _loaded(model, tensors)


def _numbered(name: str, count: int) -> list[str]:
    return [name, *(f"{name}_{number}" for number in range(1, count))]


def resnet(depth: int = 20) -> nn.Module:
    """Return a ResNet of CIFAR-10; inputs `cifar10`."""
    return _loaded(CifarResNet(depth), _stored(f"resnet_cifar10/resnet{depth}.safetensors"))


def resnet8() -> nn.Module:
    """Return ResNet-8 of CIFAR-10; inputs 0 to 255."""
    stored = _stored("mlperf_tiny/ic_resnet8_cifar10.safetensors")
    names = [*_numbered("conv2d", 9), *_numbered("batch_normalization", 7), "dense"]
    return _in_order(TinyResNet8(), stored, [names])


def ds_cnn() -> nn.Module:
    """Return DS-CNN; inputs `keywords`."""
    stored = _stored("mlperf_tiny/kws_dscnn_speechcommands.safetensors")
    names = ["conv0", "bn0"]
    for number in range(1, 5):
        names += [f"{name}{number}" for name in ("dw", "dwbn", "pw", "pwbn")]
    return _in_order(TinyDSCNN(), stored, [[*names, "fc"]])


def mobilenet() -> nn.Module:
    """Return MobileNetV1-0.25 of visual wake words."""
    stored = _stored("mlperf_tiny/vww_mobilenetv1_025_96.safetensors")
    names = [_numbered("conv2d", 14), _numbered("depthwise_conv2d", 13)]
    return _in_order(
        TinyMobileNet(), stored, [*names, _numbered("batch_normalization", 27), ["dense"]]
    )


def autoencoder() -> nn.Module:
    """Return the dense autoencoder of machine sounds."""
    stored = _stored("mlperf_tiny/ad_autoencoder_toycar.safetensors")
    names = [*_numbered("dense", 10), *_numbered("batch_normalization", 9)]
    return _in_order(TinyAutoencoder(), stored, [names])


def squeezenet() -> nn.Module:
    """Return SqueezeNet, pruned to a third and with at most 256 values in a layer."""
    path = data() / "squeezenet_imagenet_compressed" / "squeezenet_v10_deepcompressed.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: set TERSENET_DATA")
    model, tensors = SqueezeNet(), {}
    with np.load(path) as stored:
        for key in stored.files:
            if not key.endswith(".indices"):
                continue
            source = key.removesuffix(".indices")
            name = source
            if "/" in source:
                fire, part = source.split("/")
                kind = {"squeeze1x1": "squeeze", "expand1x1": "expand1_", "expand3x3": "expand3_"}
                name = kind[part] + fire.removeprefix("fire")
            shape = model.get_submodule(name).weight.shape
            weight = stored[f"{source}.codebook"][stored[key]].reshape(shape)
            tensors[f"{name}.weight"] = torch.from_numpy(weight.astype(np.float32))
            tensors[f"{name}.bias"] = torch.from_numpy(stored[f"{source}.bias"].astype(np.float32))
    return _loaded(model, tensors)


def res8() -> nn.Module:
    """Return honk's res8."""
    stored = _stored("kws_honk_res8/res8.safetensors")
    names = {f"scale{2 * number + 1}.scale": f"scales.{number}" for number in range(3)}
    tensors = {names.get(name, name): tensor for name, tensor in stored.items()}
    return _loaded(
        HonkRes8(), {k: v.reshape(-1) if k in names.values() else v for k, v in tensors.items()}
    )


def lenet() -> nn.Module:
    """Return LeNet-5; inputs `mnist`."""
    return _loaded(LeNet5(), _stored("lenet5_mnist/lenet5_caffe.safetensors"))


def llama() -> nn.Module:
    """Return the language model stories260K; inputs `stories`."""
    stored = _stored("stories260k/stories260k.safetensors")
    tensors = {"norm.weight": stored["norm"], "tok_embeddings.weight": stored["tok_embeddings"]}
    tensors["output.weight"] = stored["tok_embeddings"]
    for name in ("attention_norm", "ffn_norm", "wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        for number, tensor in enumerate(stored[name]):
            tensors[f"layers.{number}.{name}.weight"] = tensor
    return _loaded(Llama(), tensors)


def cifar10(count: int, part: str = "test") -> tuple[Tensor, np.ndarray]:
    """Return the first images [count, 3, 32, 32] of 0 to 255, of "train" or "test", and classes."""
    from PIL import Image

    images = []
    for start in range(0, count, 1000):
        path = data() / "cifar10" / f"{part}_{start // 1000:02}.webp"
        tiles = np.asarray(Image.open(path).convert("RGB")).reshape(25, 32, 40, 32, 3)
        images.append(tiles.transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)[: count - start])
    with np.load(data() / "cifar10" / "labels.npz") as labels:
        joined = np.concatenate(images).astype(np.float32)
        return torch.from_numpy(joined), labels[part][:count]


def normalized(images: Tensor) -> Tensor:
    """Return images of 0 to 255 as the ResNets of CIFAR-10 take them."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return (images / 255 - mean) / deviation


def mnist(count: int) -> tuple[Tensor, np.ndarray]:
    """Return test images [count, 1, 28, 28] of x / 256, and their classes."""
    folder = data() / "mnist"
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 1, 28, 28)[:count]
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read()[8:], np.uint8)[:count]
    return torch.from_numpy(images.astype(np.float32) / 256), labels


def keywords(count: int) -> Tensor:
    """Return keyword features [count, 1, 49, 10]."""
    with np.load(data() / "mlperf_tiny" / "kws01_features.npz") as stored:
        quantized = stored["mfcc_int8"][:count].astype(np.float32)
        features = (quantized - stored["input_zero_point"]) * stored["input_scale"]
    return torch.from_numpy(features.astype(np.float32).reshape(-1, 1, 49, 10))


def stories(count: int, length: int) -> Tensor:
    """Return token sequences [count, length] sampled from stories260K."""
    with np.load(data() / "stories260k" / "self_samples.npz") as stored:
        return torch.from_numpy(stored["tokens"][:count, :length].astype(np.int64))
