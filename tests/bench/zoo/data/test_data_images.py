"""Pixels: resizing, decoding, normalising."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_files import write_folder
from PIL import Image

from bench.zoo.data.images import ArrayImages, FileImages, in_memory, resize_images
from bench.zoo.data.normalize import NORMALIZATIONS, normalization
from energy_model.errors import ArgumentError, StorageError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)


def test_bilinear_is_pillows(pixels):
    for array in (pixels, pixels[..., 0]):
        out = resize_images(array, 9, "bilinear")
        for before, after in zip(array, out, strict=True):
            wanted = Image.fromarray(before).resize((9, 9), Image.Resampling.BILINEAR)
            assert np.array_equal(after, np.asarray(wanted))


def test_padding_keeps_every_pixel(pixels):
    out = resize_images(pixels, 11, "pad")
    assert out.shape == (4, 11, 11, 3)
    assert np.array_equal(out[:, 2:8, 1:9], pixels)
    assert out.sum(dtype=np.int64) == pixels.sum(dtype=np.int64)


def test_padding_to_a_smaller_size_cuts_the_border(pixels):
    assert np.array_equal(resize_images(pixels, 4, "pad"), pixels[:, 1:5, 2:6])


def test_the_same_size_is_the_same_array(pixels):
    square = pixels[:, :, :6]
    assert resize_images(square, 6, "bilinear") is square


def test_images_come_channels_first(pixels):
    colour, grey = in_memory(pixels), in_memory(pixels[..., 0])
    assert (colour.shape, grey.shape) == ((3, 6, 8), (1, 6, 8))
    assert colour.take(torch.tensor([2]))[0, 1].tolist() == pixels[2, :, :, 1].tolist()
    assert grey.take(torch.tensor([3, 0]))[0, 0].tolist() == pixels[3, :, :, 0].tolist()


def test_what_is_taken_is_a_copy(pixels):
    images = ArrayImages(torch.from_numpy(pixels.copy()))
    images.take(torch.tensor([0])).zero_()
    assert images.pixels[0].any()


@pytest.mark.parametrize("workers", [1, 3])
def test_files_are_decoded_in_order(tmp_path, workers):
    write_folder(tmp_path, ["train"], count=6, size=(40, 20))
    paths = sorted(tmp_path.rglob("*.png"))
    images = FileImages(paths, 16, workers)
    out = images.take(torch.tensor([11, 0, 7, 7]))
    assert (out.shape, images.shape, out.dtype) == ((4, 3, 16, 16), (3, 16, 16), torch.uint8)
    assert out[:, 0, 5, 5].tolist() == [11, 0, 7, 7]


def test_files_keep_their_aspect_and_their_centre(tmp_path):
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 255  # the middle half of a wide image is all of its square
    Image.fromarray(picture).save(tmp_path / "wide.png")
    out = FileImages([tmp_path / "wide.png"], 20, 1).take(torch.tensor([0]))
    assert (out == 255).all()


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("broken.png", "absent.png"):
        with pytest.raises(StorageError, match=name):
            FileImages([tmp_path / name], 16, 1).take(torch.tensor([0]))


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_normalising_is_torchvisions_bit_for_bit(name):
    found = NORMALIZATIONS[name]
    channels = len(found.mean)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, channels, 16, 16)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (found.mean, found.std))
    scale = 1 if name == "raw" else 255
    assert torch.equal(found(pixels), (pixels.float() / scale - mean) / std)


def test_the_values_that_the_trained_weights_expect():
    black_white = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    wanted = {
        "mnist": [-0.42421, 2.82149],
        "centered": [-0.5, 0.5],
        "none": [0.0, 1.0],
        "raw": [0.0, 255.0],
    }
    for name, values in wanted.items():
        out = normalization(name, 1)(black_white).flatten().tolist()
        assert out == pytest.approx(values, abs=1e-4)
    assert normalization("imagenet", 3).mean == (0.485, 0.456, 0.406)


def test_a_normalisation_of_other_channels_is_refused():
    with pytest.raises(ArgumentError, match="3 channels, the images have 1"):
        normalization("imagenet", 1)
    assert normalization("mnist", 3).mean == (0.1307,)
