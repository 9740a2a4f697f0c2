"""The demo: quick, on few epochs, but every step of it."""

import io as io_text

import pytest
import torch

pytest.importorskip("sklearn")

from rich.console import Console

from tersenet import demo, io


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "digits.terse"


@pytest.fixture(scope="module")
def result(kept):
    return demo.run(seed=1, keep=kept, epochs=2)


def test_the_parts_of_the_digits_share_no_image():
    parts = demo.digits()
    rows = [image.numpy().tobytes() for images, _ in parts for image in images]
    assert len(rows) == 1797
    assert [len(labels) for _, labels in parts] == [1079, 359, 359]
    assert all(images.shape[1:] == (1, 8, 8) for images, _ in parts)


def test_the_file_answers_like_the_model_it_was_made_from(result):
    assert result.equal == result.images == 359
    assert result.compressed.accuracy == result.exported.accuracy == result.shared_accuracy
    assert result.dense.accuracy > 0.85
    assert result.shared_accuracy > 0.7


def test_the_numbers_are_those_of_the_file(result, kept):
    assert result.compressed.file_nbytes == kept.stat().st_size
    assert result.compressed.file_nbytes < result.dense.file_nbytes / 10
    assert result.exported.file_nbytes < result.dense.file_nbytes / 10
    weights = sum(4 * p.numel() for p in demo.DigitsNet().parameters())
    assert result.dense.weights_nbytes == weights == 4 * 283_786
    assert weights < result.dense.file_nbytes < weights + 2000
    assert result.compressed.weights_nbytes < weights / 10
    assert result.exported.weights_nbytes < weights / 10
    sides = (result.dense, result.compressed, result.exported)
    assert all(ms > 0 for side in sides for ms in side.ms.values())


def test_the_kept_file_has_the_sparsity_of_the_plan(result, kept):
    with io.open(kept) as file:
        info = file.info("fc1.weight")
        assert info["nnz"] <= 0.05 * 256 * 1024 + 1
        assert len(file.get("fc1.weight").codebook) <= 16
        file.verify()


def test_the_table_shows_every_number(result):
    console = Console(width=140, record=True, file=io_text.StringIO())
    console.print(demo.table(result))
    text = console.export_text()
    for expected in (
        f"{result.dense.accuracy:.2%}",
        f"{result.compressed.file_nbytes:,}",
        f"{result.compressed.weights_nbytes:,}",
        f"{result.dense.ms[1]:.3f}",
        f"{result.compressed.ms[64]:.3f}",
        f"{result.exported.file_nbytes:,}",
        f"{result.exported.weights_nbytes:,}",
        f"{result.exported.ms[64]:.3f}",
        "359 of 359",
    ):
        assert expected in text


def test_threads_and_generator_are_left_as_they_were():
    before = torch.get_num_threads(), torch.get_rng_state()
    demo.run(epochs=0)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_folder_that_is_missing_is_told_before_the_training(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        demo.run(keep=tmp_path / "missing" / "digits.terse")
