"""Every mode becomes RGB exactly, or is refused; broken files are named."""

import numpy as np
import pytest
import tifffile
from pictures import tissue, write_patches
from PIL import Image

import shazam_fast as sf
from shazam_fast.images.decoding import decode

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
ALPHA = np.dstack([RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.repeat([[0, 255]], 32, 0).reshape(8, 8)])


def grey(image):
    return np.dstack([np.asarray(image)] * 3)


def over_white(image):
    pixels = np.asarray(image.convert("RGBA"))
    return np.where(pixels[..., 3:] == 0, 255, pixels[..., :3])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(ALPHA[..., :3].astype(np.uint8)), np.asarray),
        (Image.fromarray(GREY), grey),
        (Image.fromarray(GREY > 128), lambda image: grey(image) * np.uint8(255)),
        (Image.fromarray(GREY).quantize(256), lambda image: np.asarray(image.convert("RGB"))),
        (Image.fromarray(ALPHA.astype(np.uint8)), over_white),
        (Image.fromarray(np.ascontiguousarray(ALPHA[..., [0, 3]].astype(np.uint8))), over_white),
    ],
    ids=lambda given: getattr(given, "mode", ""),
)
def test_modes_become_rgb_exactly(tmp_path, image, expected):
    image.save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(decode(tmp_path / "x.png")), expected(image))


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "x.png", transparency=0)
    assert np.asarray(decode(tmp_path / "x.png")).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def refuses(path, message):
    with pytest.raises(sf.ImageError, match=message) as caught:
        decode(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_refused(tmp_path, suffix):
    grey_16 = Image.fromarray(GREY.astype(np.uint16) << 8)
    grey_16.save(tmp_path / f"grey{suffix}")
    refuses(tmp_path / f"grey{suffix}", "16 or more bits")


def test_16_bits_of_colour_are_refused_though_pillow_cuts_them(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", ALPHA[..., :3].astype(np.uint16) << 8, photometric="rgb")
    assert Image.open(tmp_path / "x.tif").mode == "RGB"
    refuses(tmp_path / "x.tif", "16 or more bits")


def test_floats_are_refused(tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "x.tif")
    refuses(tmp_path / "x.tif", "mode F has no exact 8-bit RGB")


def test_cmyk_is_refused(tmp_path):
    tissue().convert("CMYK").save(tmp_path / "x.jpg")
    refuses(tmp_path / "x.jpg", "mode CMYK has no exact 8-bit RGB")


def test_an_empty_file(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    refuses(tmp_path / "x.png", "empty file")


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "x.png").write_text("<html>not found</html>")
    refuses(tmp_path / "x.png", "not an image")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_truncated_image(tmp_path, suffix):
    (path,) = write_patches(tmp_path, 1, suffix=suffix)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refuses(path, "cannot be decoded|not an image")
