"""Generated stereograms of planes, for training and testing a stereo network, and two real pairs.

::

    scene      a background plane and a few shapes (ellipses and rectangles) on planes before it
    plane i    disparity d = a + b x + c y, of the left image's pixel x, y; a texture of its own
    left       at x, y:   the plane of the largest disparity whose shape is there
    right      at x', y:  likewise, each plane at its x = (x' + a + c y) / (1 - b), where x - d = x'
    valid      where the plane that the left pixel shows is also what the right image shows at x - d

Both images are computed from the same planes, at any fraction of a pixel, so no image is warped and
what is hidden in one of them is known exactly. Textures are random dots of one to three pixels, and
noise of several scales; dots tell disparities by correspondence alone (Julesz 1960), noise is nearer
to what photographs show. Each image gets a gain, an offset and noise of its own.

Images are grey, about -1 to 1: [batch, 2, height, width], the left one first. Targets are disparities
in pixels and 1 where valid, else 0: [batch, 2, height, width].

Source of the real pairs: teddy and cones, D. Scharstein and R. Szeliski 2003, "High-accuracy stereo
depth maps using structured light".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import trained
from torch import Tensor

PAIRS = ("teddy", "cones")
HEIGHT, WIDTH = 64, 96
MAX_DISPARITY = 20.0

_SHAPES = 5  # at most, before the background
_MARGIN = 32  # of the textures, beyond the image
_HIDES = 0.5  # pixels of disparity by which another plane is before this one
_PAIR_HEIGHT, _PAIR_WIDTH = 124, 148  # a third of a real pair, whose disparities then fit


@dataclass(frozen=True)
class _Planes:
    """Planes of a batch of scenes: coefficients and shapes, each [batch, planes]."""

    a: Tensor
    b: Tensor
    c: Tensor
    centre_x: Tensor
    centre_y: Tensor
    half_width: Tensor
    half_height: Tensor
    turn: Tensor
    is_round: Tensor

    def left_x(self, right_x: Tensor, y: Tensor) -> Tensor:
        """Return the x in the left image, for each plane, of [batch, height, width] in the right."""
        a, b, c = (part[:, :, None, None] for part in (self.a, self.b, self.c))
        return (right_x[:, None] + a + c * y) / (1 - b)

    def disparity(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the disparity of each plane at left x [batch, planes, height, width], or -inf."""
        parts = {name: part[:, :, None, None] for name, part in vars(self).items()}
        across, down = x - parts["centre_x"], y - parts["centre_y"]
        cosine, sine = parts["turn"].cos(), parts["turn"].sin()
        u = (cosine * across + sine * down) / parts["half_width"]
        v = (cosine * down - sine * across) / parts["half_height"]
        is_inside = torch.where(parts["is_round"], u * u + v * v, u.abs().maximum(v.abs())) < 1
        found = parts["a"] + parts["b"] * x + parts["c"] * y
        return torch.where(is_inside, found, -math.inf)


class Stereograms:
    """Batches of new stereograms; an iteration gives the same again for the same seed.

    Example:
        >>> images, targets = next(iter(Stereograms(1, batch_size=2, seed=0)))
        >>> images.shape, targets.shape
        (torch.Size([2, 2, 64, 96]), torch.Size([2, 2, 64, 96]))
    """

    def __init__(self, batches: int, *, batch_size: int, seed: int) -> None:
        """Say how many there are in an iteration."""
        self._batches, self._batch_size, self._seed = batches, batch_size, seed

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over (images, targets) of each batch."""
        generator = torch.Generator().manual_seed(self._seed)
        for _ in range(self._batches):
            yield stereograms(self._batch_size, generator)


def stereograms(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return so many stereograms and their targets."""
    planes, textures = _scenes(count, generator), _textures(count, generator)
    y = torch.arange(HEIGHT, dtype=torch.float32)[:, None].expand(HEIGHT, WIDTH)
    x = torch.arange(WIDTH, dtype=torch.float32).expand(count, HEIGHT, WIDTH)
    every = x[:, None].expand(-1, planes.a.shape[1], -1, -1)
    disparity, front = planes.disparity(every, y).max(1)
    left = _sampled(textures, front, x)

    behind = planes.left_x(x, y)
    front = planes.disparity(behind, y).argmax(1)
    right = _sampled(textures, front, behind.gather(1, front[:, None])[:, 0])

    seen_at = x - disparity
    nearest = planes.disparity(planes.left_x(seen_at, y), y).amax(1)
    is_valid = (nearest < disparity + _HIDES) & (seen_at >= 0)
    images = torch.stack([_exposed(image, generator) for image in (left, right)], 1)
    return images, torch.stack([disparity, is_valid.float()], 1)


def middlebury(name: str) -> tuple[Tensor, Tensor]:
    """Return a real pair at a third of its size, as a batch of one stereogram.

    Valid is where the disparity is known and the right image's disparity agrees within a pixel.

    Raises:
        FileNotFoundError: if the folder that TERSENET_DATA names does not hold it.
    """
    with np.load(trained.data() / "stereo_middlebury2003" / f"{name}.npz") as stored:
        views = [stored[side].astype(np.float32).mean(2) for side in ("left", "right")]
        left, right = (stored[f"disp_{side}_x4"] / np.float32(4) for side in ("left", "right"))
    rows, columns = np.indices(left.shape)
    seen_at = np.rint(columns - left).astype(int)
    other = right[rows, seen_at.clip(0)]
    is_valid = (left > 0) & (other > 0) & (seen_at >= 0) & (abs(other - left) <= 1)
    height, width = 3 * _PAIR_HEIGHT, 3 * _PAIR_WIDTH
    images = torch.from_numpy(np.stack(views))[None, :, :height, :width]
    images = F.avg_pool2d(images, 3)
    deviation, mean = torch.std_mean(images, (2, 3), keepdim=True)
    at = np.s_[1:height:3, 1:width:3]  # the middles of what is averaged
    target = np.stack([left[at] / 3, is_valid[at]]).astype(np.float32)
    return (images - mean) / (2 * deviation), torch.from_numpy(target)[None]


def _scenes(count: int, generator: torch.Generator) -> _Planes:
    """Draw planes, the background first; those of no use get a shape of no size."""
    shape = (count, 1 + _SHAPES)

    def drawn(least: float, most: float) -> Tensor:
        return least + (most - least) * torch.rand(shape, generator=generator)

    is_background = torch.arange(1 + _SHAPES) == 0
    middle = torch.where(is_background, drawn(1, 9), 0)
    middle = torch.where(is_background, middle, middle[:, :1] + drawn(1, MAX_DISPARITY - 11))
    is_flat = drawn(0, 1) < 0.4
    b = torch.where(is_flat, 0, drawn(-0.06, 0.06))
    c = torch.where(is_flat, 0, drawn(-0.06, 0.06))
    centre_x, centre_y = drawn(0, WIDTH), drawn(0, HEIGHT)
    half_width, half_height = drawn(5, 26), drawn(5, 20)
    is_used = drawn(0, 1) < 0.75
    half_width = torch.where(is_used, half_width, 1e-3)
    half_width = torch.where(is_background, 1e6, half_width)
    half_height = torch.where(is_background, 1e6, half_height)
    # the middle of a plane has its disparity, whatever its slope; no pixel leaves the range
    at_x = torch.where(is_background, WIDTH / 2, centre_x)
    at_y = torch.where(is_background, HEIGHT / 2, centre_y)
    reach = torch.where(is_background, WIDTH / 2, half_width) * b.abs()
    reach = reach + torch.where(is_background, HEIGHT / 2, half_height) * c.abs()
    middle = middle.maximum(reach).minimum(MAX_DISPARITY - reach)
    return _Planes(
        middle - b * at_x - c * at_y,
        b,
        c,
        centre_x,
        centre_y,
        half_width,
        half_height,
        drawn(0, math.pi),
        (drawn(0, 1) < 0.5) & ~is_background,
    )


def _textures(count: int, generator: torch.Generator) -> Tensor:
    """Draw a texture for each plane: [batch, planes, height, width and margins]."""
    width, number = WIDTH + 2 * _MARGIN, count * (1 + _SHAPES)

    def noise(scale: int) -> Tensor:
        size = (number, 1, HEIGHT // scale + 2, width // scale + 2)
        return torch.randn(size, generator=generator)

    def enlarged(small: Tensor, scale: int, mode: str) -> Tensor:
        large = F.interpolate(small, scale_factor=scale, mode=mode)
        return large[:, :, :HEIGHT, :width]

    dots = [enlarged(noise(scale).sign(), scale, "nearest") for scale in (1, 2, 3)]
    smooth = [enlarged(noise(scale), scale, "bilinear") for scale in (2, 4, 8)]
    weights = torch.rand(number, 3, 1, 1, 1, generator=generator)
    mixed = sum(weights[:, i] * part for i, part in enumerate(smooth))
    mixed = mixed / weights.square().sum(1).sqrt()
    kind = torch.randint(0, 6, (number, 1, 1, 1), generator=generator)
    texture = mixed
    for number_of, part in enumerate(dots):
        texture = torch.where(kind == number_of, part * 0.7, texture)
    contrast = 0.2 + 0.6 * torch.rand(kind.shape, generator=generator)
    level = 0.6 * torch.rand(kind.shape, generator=generator) - 0.3
    return (level + contrast * texture).view(count, 1 + _SHAPES, HEIGHT, width)


def _sampled(textures: Tensor, front: Tensor, x: Tensor) -> Tensor:
    """Return [batch, height, width]: the texture of the plane in front, at left x, on its row."""
    # by half a pixel on, so that neither image is sharper where disparities are whole
    at = (x + _MARGIN + 0.5).clamp(0, textures.shape[3] - 1.001)
    before = at.floor()
    number = torch.arange(len(textures))[:, None, None]
    row = torch.arange(HEIGHT)[:, None]
    column = before.long()
    first, second = (textures[number, front, row, column + step] for step in (0, 1))
    return first + (at - before) * (second - first)


def _exposed(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return an image as a camera of its own would give it."""
    gain, offset = torch.rand(2, len(image), 1, 1, generator=generator) * 0.2 - 0.1
    noise = 0.03 * torch.randn(image.shape, generator=generator)
    return image * (1 + gain) + offset + noise
