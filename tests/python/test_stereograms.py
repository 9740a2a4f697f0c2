"""Stereograms of the benches: both images show the same planes, and what is valid is seen in both."""

import numpy as np
import pytest
import stereo_net
import stereograms
import torch
from exported import lively
from torch import nn

import tersenet


def drawn(seed, count=8):
    return stereograms.stereograms(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
def test_the_right_image_at_x_minus_d_is_the_left_one_where_valid(seed):
    images, targets = drawn(seed)
    left, right = images.numpy().transpose(1, 0, 2, 3)
    disparity, valid = targets.numpy().transpose(1, 0, 2, 3)
    is_valid = valid > 0
    rows = np.arange(stereograms.HEIGHT)
    found, moved = [], []
    for number in range(len(left)):
        for row in rows:
            x = np.arange(stereograms.WIDTH)
            at = x - disparity[number, row]
            seen = np.interp(at, x, right[number, row])
            shifted = np.interp(at - 3, x, right[number, row])
            keep = is_valid[number, row] & (at >= 4)
            found.append((seen - left[number, row])[keep])
            moved.append((shifted - left[number, row])[keep])
    found, moved = np.concatenate(found), np.concatenate(moved)
    # gain, offset, noise and interpolation remain; three pixels off is another texture
    assert np.median(abs(found)) < 0.12
    assert np.abs(found).mean() < np.abs(moved).mean() / 2


@pytest.mark.parametrize("seed", range(4))
def test_disparities_are_in_range_and_what_is_hidden_is_not_valid(seed):
    _, targets = drawn(seed)
    disparity, valid = targets.numpy().transpose(1, 0, 2, 3)
    assert disparity.min() >= -1e-3 and disparity.max() <= stereograms.MAX_DISPARITY + 1e-3
    assert set(np.unique(valid)) == {0.0, 1.0} and 0.7 < valid.mean() < 0.99
    at = np.arange(stereograms.WIDTH) - disparity
    assert not valid[at < 0].any()
    # a pixel before which a nearer one stands, at the same place in the right image: but for the
    # very edges of planes it is hidden
    is_same = abs(at[..., :, None] - at[..., None, :]) < 0.02
    is_behind = (is_same & (disparity[..., None, :] > disparity[..., :, None] + 1)).any(3)
    assert is_behind.sum() > 20
    assert valid[is_behind].mean() < 0.1
    assert valid[~is_behind].mean() > 0.7


def test_the_same_seed_gives_the_same_stereograms_and_another_seed_others():
    first, again, other = (
        list(stereograms.Stereograms(2, batch_size=3, seed=seed)) for seed in (5, 5, 6)
    )
    for (x, y), (x2, y2) in zip(first, again, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert not torch.equal(first[0][0], other[0][0])
    assert not torch.equal(first[0][0], first[1][0])


def test_errors_count_valid_pixels_alone():
    found = torch.tensor([[[[1.0, 5.0], [2.0, 0.0]]]])
    targets = torch.tensor([[[[1.5, 0.0], [5.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]]])

    class Fixed(nn.Module):
        def forward(self, x):
            return found.expand(len(x), -1, -1, -1)

    # distances 0.5 and 3, the others are not valid
    assert stereo_net.end_point_error(Fixed(), [(found, targets)] * 2) == pytest.approx(1.75)
    assert float(stereo_net.disparity_loss(found, targets)) == pytest.approx((0.125 + 2.5) / 2)


def test_a_network_that_is_certain_gives_twice_the_shift():
    net = stereo_net.StereoNet((4, 4, 4, 4)).eval()
    with torch.no_grad():
        net.logits.weight.zero_()
        net.logits.bias.copy_(100.0 * (torch.arange(stereo_net.SHIFTS) == 7))
    with torch.no_grad():
        found = net(torch.randn(1, 2, 20, 36))
    torch.testing.assert_close(found, torch.full((1, 1, 20, 36), 14.0))


def test_correlation_is_of_the_right_pixel_so_far_to_the_left():
    net = stereo_net.StereoNet((4, 4, 4, 4))
    left, right = torch.randn(2, 1, 3, 2, 15, generator=torch.Generator().manual_seed(0))
    found = net._correlated(left, right)
    for d in range(stereo_net.SHIFTS):
        expected = torch.zeros(1, 2, 15)
        expected[:, :, d:] = (left[..., d:] * right[..., : 15 - d]).mean(1)
        torch.testing.assert_close(found[:, d], expected)


@pytest.mark.parametrize("size", [(32, 48), (28, 44)])
def test_a_compressed_stereo_network_runs_from_its_file(size, tmp_path):
    torch.manual_seed(0)
    net = lively(stereo_net.StereoNet((8, 12, 16, 24))).eval()
    plan = tersenet.Plan.of(sparsity=0.8, pruning_scope="global", quantizer="cws", k=8)
    small = tersenet.compress(net, plan)
    x = torch.randn(2, 2, *size)
    tersenet.export(small, x, tmp_path / "stereo.terse", goal="size")
    found = tersenet.Network.load(tmp_path / "stereo.terse").run(x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, small(x).numpy(), atol=1e-3)
