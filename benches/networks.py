"""Network architectures as plain torch modules; `trained` has weights for some of them.

Each class is written as its paper has it, with widths as arguments where tests want it small.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG19 = (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4, "M")


class VGG(nn.Module):
    """VGG-BN for 32 × 32 images (Simonyan, Zisserman 2015), with one linear layer or more."""

    def __init__(
        self,
        widths: tuple[int | str, ...] = VGG19,
        hidden: tuple[int, ...] = (),
        classes: int = 10,
        channels: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        head: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            head += [nn.Linear(channels, width), nn.ReLU(), nn.Dropout()]
            channels = width
        self.classifier = nn.Sequential(*head, nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class CifarBlock(nn.Module):
    """Two convolutions and an option-A shortcut: every second pixel, and channels of zeros."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.added = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.added:
            half = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet for CIFAR-10 (He et al. 2016): depth 6 n + 2, that is 20, 32, 44 or 56."""

    def __init__(self, depth: int = 20) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        count = (depth - 2) // 6
        self.layer1 = self._stage(16, 16, 1, count)
        self.layer2 = self._stage(16, 32, 2, count)
        self.layer3 = self._stage(32, 64, 2, count)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(before: int, after: int, stride: int, count: int) -> nn.Sequential:
        first = CifarBlock(before, after, stride)
        return nn.Sequential(first, *(CifarBlock(after, after, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


def _normed(
    before: int, after: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after))


class ResidualBlock(nn.Module):
    """A basic block of two 3 × 3, or a bottleneck of 1 × 1, 3 × 3, 1 × 1, convolutions."""

    def __init__(self, before: int, width: int, stride: int, is_bottleneck: bool) -> None:
        super().__init__()
        after = width * 4 if is_bottleneck else width
        kernels = (1, 3, 1) if is_bottleneck else (3, 3)
        widths = (before, width, width, after) if is_bottleneck else (before, width, width)
        strided = kernels.index(3)
        layers: list[nn.Module] = []
        for number, kernel in enumerate(kernels):
            step = stride if number == strided else 1
            layers += [_normed(widths[number], widths[number + 1], kernel, step), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        is_same = stride == 1 and before == after
        self.shortcut = nn.Identity() if is_same else _normed(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet for ImageNet (He et al. 2016): (2, 2, 2, 2) basic is 18, (3, 4, 6, 3) bottleneck 50."""

    def __init__(
        self,
        counts: tuple[int, ...] = (2, 2, 2, 2),
        *,
        width: int = 64,
        is_bottleneck: bool = False,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        stem = nn.Sequential(_normed(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = [stem]
        before = width
        for stage, count in enumerate(counts):
            for number in range(count):
                stride = 2 if stage and number == 0 else 1
                blocks.append(ResidualBlock(before, width << stage, stride, is_bottleneck))
                before = (width << stage) * (4 if is_bottleneck else 1)
        self.body = nn.Sequential(*blocks)
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project."""

    def __init__(self, before: int, after: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = before * factor
        expand = [_normed(before, wide, 1), nn.ReLU6()] if factor != 1 else []
        depthwise = [_normed(wide, wide, 3, stride, wide), nn.ReLU6()]
        self.body = nn.Sequential(*expand, *depthwise, _normed(wide, after, 1))
        self.is_residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.is_residual else self.body(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018); `multiplier` scales its widths."""

    SETTINGS = (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )

    def __init__(self, multiplier: float = 1.0, classes: int = 1000, last: int = 1280) -> None:
        super().__init__()

        def scaled(width: int) -> int:
            return max(8, int(width * multiplier + 4) // 8 * 8)

        before = scaled(32)
        layers: list[nn.Module] = [_normed(3, before, 3, 2), nn.ReLU6()]
        for factor, width, count, stride in self.SETTINGS:
            for number in range(count):
                step = stride if number == 0 else 1
                layers.append(InvertedResidual(before, scaled(width), step, factor))
                before = scaled(width)
        self.features = nn.Sequential(*layers, _normed(before, last, 1), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al. 2017), small by default: norms come before convolutions."""

    def __init__(
        self, counts: tuple[int, ...] = (3, 3), growth: int = 8, classes: int = 10
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for number, count in enumerate(counts):
            layers = nn.ModuleList()
            for _ in range(count):
                layers.append(self._layer(channels, growth))
                channels += growth
            self.stages.append(layers)
            if number < len(counts) - 1:
                half = channels // 2
                conv = nn.Conv2d(channels, half, 1, bias=False)
                norm = nn.BatchNorm2d(channels)
                self.transitions.append(nn.Sequential(norm, nn.ReLU(), conv, nn.AvgPool2d(2)))
                channels = half
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    @staticmethod
    def _layer(channels: int, growth: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.BatchNorm2d(channels), nn.ReLU()),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            *(nn.BatchNorm2d(4 * growth), nn.ReLU()),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, nn.ModuleList)
            for layer in stage:
                x = torch.cat([x, layer(x)], 1)
            if number < len(self.transitions):
                x = self.transitions[number](x)
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015), upwards by transposed convolutions or by interpolation."""

    def __init__(
        self, widths: tuple[int, ...] = (8, 16, 32), classes: int = 2, *, is_bilinear: bool = False
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.join = nn.ModuleList()
        before = 3
        for width in widths:
            self.down.append(self._double(before, width))
            before = width
        for width in reversed(widths[:-1]):
            if is_bilinear:
                up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
                self.up.append(nn.Sequential(up, nn.Conv2d(before, width, 1)))
            else:
                self.up.append(nn.ConvTranspose2d(before, width, 2, 2))
            self.join.append(self._double(2 * width, width))
            before = width
        self.head = nn.Conv2d(before, classes, 1)

    @staticmethod
    def _double(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            _normed(before, after, 3), nn.ReLU(), _normed(after, after, 3), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for number, stage in enumerate(self.down):
            x = stage(x if number == 0 else F.max_pool2d(x, 2))
            skipped.append(x)
        for up, join, other in zip(self.up, self.join, skipped[-2::-1], strict=True):
            x = join(torch.cat([other, up(x)], 1))
        return self.head(x)


class DeepDTA(nn.Module):
    """DeepDTA (Öztürk et al. 2018): the affinity of a drug (SMILES) and a protein."""

    def __init__(self, filters: int = 32, hidden: int = 1024) -> None:
        super().__init__()
        self.drug = self._branch(65, filters, (4, 6, 8))
        self.protein = self._branch(26, filters, (4, 8, 12))
        self.fc = nn.Sequential(
            *(nn.Linear(6 * filters, hidden), nn.ReLU(), nn.Dropout(0.1)),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.1)),
            *(nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1)),
        )

    @staticmethod
    def _branch(letters: int, filters: int, kernels: tuple[int, ...]) -> nn.ModuleDict:
        convs: list[nn.Module] = []
        before = 128
        for number, kernel in enumerate(kernels, 1):
            convs += [nn.Conv1d(before, filters * number, kernel), nn.ReLU()]
            before = filters * number
        return nn.ModuleDict(
            {"letters": nn.Embedding(letters, 128), "convs": nn.Sequential(*convs)}
        )

    @staticmethod
    def _read(branch: nn.ModuleDict, ids: Tensor) -> Tensor:
        return branch["convs"](branch["letters"](ids).transpose(1, 2)).amax(-1)

    def forward(self, drug: Tensor, protein: Tensor) -> Tensor:
        read = [self._read(self.drug, drug), self._read(self.protein, protein)]
        return self.fc(torch.cat(read, 1))


class Encoder(nn.Module):
    """A classifier of texts: torch's own transformer encoder, and positions."""

    def __init__(
        self, words: int = 100, dim: int = 32, heads: int = 4, layers: int = 2, length: int = 16
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.positions = nn.Embedding(length, dim)
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 5)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1]).expand(ids.shape)
        return self.head(self.encoder(self.words(ids) + self.positions(positions)).mean(1))


class CausalBlock(nn.Module):
    """Attention and a gelu, each after its norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        apart = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = apart.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp(self.norm2(x))


class CausalTransformer(nn.Module):
    """A GPT-like language model whose head is tied to its embedding."""

    def __init__(
        self, words: int = 100, dim: int = 32, heads: int = 4, layers: int = 2, length: int = 16
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.positions = nn.Parameter(torch.randn(length, dim) * 0.1)
        self.blocks = nn.Sequential(*(CausalBlock(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.positions[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class LlamaBlock(nn.Module):
    """Grouped-query attention with rotated positions, and a gated layer."""

    def __init__(self, dim: int, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        width = dim // heads * kv_heads
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, 1e-5), nn.RMSNorm(dim, 1e-5)
        self.wq, self.wo = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wk, self.wv = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.head_dim = dim // heads

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate neighbouring pairs of [batch, heads, length, head_dim]."""
        even, odd = x[..., 0::2], x[..., 1::2]
        pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
        return pairs.flatten(-2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, dim = x.shape
        y = self.attention_norm(x)
        q, k, v = (
            layer(y).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for layer in (self.wq, self.wk, self.wv)
        )
        q, k = self._rotated(q, cos, sin), self._rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.wo(y.transpose(1, 2).reshape(batch, length, dim))
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class Llama(nn.Module):
    """A Llama-type language model (Touvron et al. 2023), tied, with the sizes of stories260K."""

    def __init__(
        self,
        words: int = 512,
        dim: int = 64,
        hidden: int = 172,
        layers: int = 5,
        heads: int = 8,
        kv_heads: int = 4,
    ) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(words, dim)
        blocks = (LlamaBlock(dim, hidden, heads, kv_heads) for _ in range(layers))
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(dim, 1e-5)
        self.output = nn.Linear(dim, words, bias=False)
        self.output.weight = self.tok_embeddings.weight
        self.head_dim = dim // heads

    def forward(self, ids: Tensor) -> Tensor:
        powers = torch.arange(0, self.head_dim, 2) / self.head_dim
        angles = torch.outer(torch.arange(ids.shape[1]), 10000.0**-powers)
        cos, sin = angles.cos(), angles.sin()
        x = self.tok_embeddings(ids)
        if x.dtype == torch.float64:
            cos, sin = cos.double(), sin.double()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output(self.norm(x))


class SameConv2d(nn.Module):
    """A convolution with TensorFlow's "same" padding, for inputs of one size."""

    def __init__(self, conv: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__()
        pads = []
        for n, kernel, stride in zip(
            size[::-1], conv.kernel_size[::-1], conv.stride[::-1], strict=True
        ):
            total = max(0, (-(-n // stride) - 1) * stride + kernel - n)
            pads += [total // 2, total - total // 2]
        self.conv, self.pads = conv, pads

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads))


def _same(
    size: int | tuple[int, int],
    before: int,
    after: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
) -> SameConv2d:
    size = (size, size) if isinstance(size, int) else size
    return SameConv2d(nn.Conv2d(before, after, kernel, stride, groups=groups), size)


class TinyResNet8(nn.Module):
    """The image classifier of MLPerf Tiny: ResNet-8, inputs 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        shapes = (
            *((32, 3, 16, 3, 1), (32, 16, 16, 3, 1), (32, 16, 16, 3, 1)),
            *((32, 16, 32, 3, 2), (16, 32, 32, 3, 1), (32, 16, 32, 1, 2)),
            *((16, 32, 64, 3, 2), (8, 64, 64, 3, 1), (16, 32, 64, 1, 2)),
        )
        self.convs = nn.ModuleList(_same(*shape) for shape in shapes)
        widths = (16, 16, 16, 32, 32, 64, 64)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, 1e-3) for width in widths)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.convs, self.norms
        x = F.relu(norm[0](conv[0](x)))
        x = F.relu(x + norm[2](conv[2](F.relu(norm[1](conv[1](x))))))
        x = F.relu(conv[5](x) + norm[4](conv[4](F.relu(norm[3](conv[3](x))))))
        x = F.relu(conv[8](x) + norm[6](conv[7](F.relu(norm[5](conv[6](x))))))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class TinyDSCNN(nn.Module):
    """The keyword spotter of MLPerf Tiny: DS-CNN, inputs [batch, 1, 49, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            _same((49, 10), 1, 64, (10, 4), (2, 2)),
            *(nn.BatchNorm2d(64, 1e-3), nn.ReLU(), nn.Dropout(0.2)),
        ]
        for _ in range(4):
            layers += [_same((25, 5), 64, 64, 3, groups=64), nn.BatchNorm2d(64, 1e-3), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64, 1e-3), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Dropout(0.4), nn.AvgPool2d((25, 5)), nn.Flatten())
        self.fc = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class TinyMobileNet(nn.Module):
    """The visual wake words of MLPerf Tiny: MobileNetV1-0.25, inputs [batch, 3, 96, 96]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_same(96, 3, 8, 3, 2), nn.BatchNorm2d(8, 1e-3), nn.ReLU()]
        size, before = 48, 8
        settings = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *((128, 1),) * 5)
        for after, stride in (*settings, (256, 2), (256, 1)):
            layers.append(_same(size, before, before, 3, stride, before))
            layers += [nn.BatchNorm2d(before, 1e-3), nn.ReLU(), nn.Conv2d(before, after, 1)]
            layers += [nn.BatchNorm2d(after, 1e-3), nn.ReLU()]
            size, before = size // stride, after
        self.features = nn.Sequential(*layers, nn.AvgPool2d(3), nn.Flatten())
        self.fc = nn.Linear(256, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class TinyAutoencoder(nn.Module):
    """The anomaly detector of MLPerf Tiny: a dense autoencoder, inputs [batch, 640]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after, 1e-3), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 640))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SqueezeNet(nn.Module):
    """SqueezeNet v1.0 (Iandola et al. 2016), inputs [batch, 3, 227, 227]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, 2)
        before = 96
        for number, width in enumerate((16, 16, 32, 32, 48, 48, 64, 64), 2):
            self.add_module(f"squeeze{number}", nn.Conv2d(before, width, 1))
            self.add_module(f"expand1_{number}", nn.Conv2d(width, 4 * width, 1))
            self.add_module(f"expand3_{number}", nn.Conv2d(width, 4 * width, 3, padding=1))
            before = 8 * width
        self.conv10 = nn.Conv2d(512, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, ceil_mode=True)
        for number in range(2, 10):
            x = F.relu(self.get_submodule(f"squeeze{number}")(x))
            one = self.get_submodule(f"expand1_{number}")(x)
            three = self.get_submodule(f"expand3_{number}")(x)
            x = F.relu(torch.cat([one, three], 1))
            if number in (4, 8):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        return F.relu(self.conv10(F.dropout(x, 0.5, self.training))).mean((2, 3))


class HonkRes8(nn.Module):
    """honk's res8 (Tang, Lin 2018), inputs [batch, 101, 40] of one second of speech."""

    def __init__(self, width: int = 45) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        for number in range(1, 7):
            self.add_module(f"conv{number}", nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(width, affine=False))
        self.scales = nn.ParameterList(torch.ones(width) for _ in range(3))
        self.output = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.conv0(x.unsqueeze(1))), (4, 3))
        old = x
        for number in range(1, 7):
            y = F.relu(self.get_submodule(f"conv{number}")(x))
            if number % 2 == 0:
                y = y + old
                old = y
            else:
                y = y * self.scales[number // 2][:, None, None]
            x = self.get_submodule(f"bn{number}")(y)
        return self.output(x.flatten(2).mean(2))


class LeNet5(nn.Module):
    """LeNet-5 as Caffe has it, inputs x / 256."""

    def __init__(self, widths: tuple[int, int, int] = (20, 50, 500)) -> None:
        super().__init__()
        first, second, hidden = widths
        self.conv1, self.conv2 = nn.Conv2d(1, first, 5), nn.Conv2d(first, second, 5)
        self.ip1, self.ip2 = nn.Linear(16 * second, hidden), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv2(F.max_pool2d(self.conv1(x), 2)), 2)
        return self.ip2(F.relu(self.ip1(x.flatten(1))))
