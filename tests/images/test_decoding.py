"""Every mode becomes RGB exactly, or is refused; broken files are named."""

import os

import numpy as np
import pytest
import tifffile
from pictures import tissue, write_patches
from PIL import Image, ImageFile

import shazam_fast as sf
from shazam_fast.images.decoding import decode

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
ALPHA = np.dstack([RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.full((8, 8), 255, np.uint8)])


def grey(image):
    return np.dstack([np.asarray(image)] * 3)


def without_alpha(image):
    return np.asarray(image.convert("RGBA"))[..., :3]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.ascontiguousarray(ALPHA[..., :3])), np.asarray),
        (Image.fromarray(GREY), grey),
        (Image.fromarray(GREY > 128), lambda image: grey(image) * np.uint8(255)),
        (Image.fromarray(GREY).quantize(256), lambda image: np.asarray(image.convert("RGB"))),
        (Image.fromarray(ALPHA), without_alpha),
        (Image.fromarray(np.ascontiguousarray(ALPHA[..., [0, 3]])), without_alpha),
    ],
    ids=lambda given: getattr(given, "mode", ""),
)
def test_modes_become_rgb_exactly(tmp_path, image, expected):
    image.save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(decode(tmp_path / "x.png")), expected(image))


def refuses(path, message):
    with pytest.raises(sf.ImageError, match=message) as caught:
        decode(path)
    assert str(path) in str(caught.value)


def test_a_transparent_pixel_is_refused(tmp_path):
    pixels = ALPHA.copy()
    pixels[3, 4, 3] = 254
    Image.fromarray(pixels).save(tmp_path / "x.png")
    refuses(tmp_path / "x.png", r"transparent pixels \(alpha down to 254\)")


def test_a_transparent_colour_of_a_palette_is_refused_where_it_is_used(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "used.png", transparency=0)
    refuses(tmp_path / "used.png", "transparent pixels")
    image.save(tmp_path / "unused.png", transparency=2)
    assert np.asarray(decode(tmp_path / "unused.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("count", [5, 6])
def test_further_channels_are_refused_though_pillow_drops_them(tmp_path, count):
    pixels = RNG.integers(0, 256, (8, 8, count), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", metadata=None)
    assert Image.open(tmp_path / "x.tif").mode == "RGB"
    refuses(tmp_path / "x.tif", f"{count} channels, of which only 3 would be read")


def test_a_second_channel_beside_grey_is_refused(tmp_path):
    pixels = RNG.integers(0, 256, (8, 8, 2), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", planarconfig="contig", metadata=None)
    refuses(tmp_path / "x.tif", "2 channels, of which only 1 would be read")


def test_pages_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.stack([GREY] * 5), photometric="minisblack")
    refuses(tmp_path / "x.tif", "5 pages .* of which only the first would be read")


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_animations_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(np.ascontiguousarray(ALPHA[..., :3])).rotate(90 * i) for i in range(3)]
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:])
    refuses(tmp_path / f"x{suffix}", "3 pages")


def test_smaller_copies_of_the_page_are_passed_over(tmp_path):
    pixels = np.ascontiguousarray(ALPHA[..., :3])
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(pixels, photometric="rgb", metadata=None)
        file.write(pixels[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
    assert Image.open(tmp_path / "x.tif").n_frames == 2
    assert np.array_equal(np.asarray(decode(tmp_path / "x.tif")), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_refused(tmp_path, suffix):
    grey_16 = Image.fromarray(GREY.astype(np.uint16) << 8)
    grey_16.save(tmp_path / f"grey{suffix}")
    refuses(tmp_path / f"grey{suffix}", "more than 8 bits per channel")


def test_16_bits_of_colour_are_refused_though_pillow_cuts_them(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", ALPHA[..., :3].astype(np.uint16) << 8, photometric="rgb")
    assert Image.open(tmp_path / "x.tif").mode == "RGB"
    refuses(tmp_path / "x.tif", "more than 8 bits per channel")


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_jpeg_2000_is_refused_though_pillow_cuts_it(tmp_path, bits):
    codecs = pytest.importorskip("imagecodecs")
    pixels = RNG.integers(0, 1 << bits, (16, 16, 3), dtype=np.uint16)
    (tmp_path / "x.jp2").write_bytes(codecs.jpeg2k_encode(pixels, level=0, codecformat="jp2", bitspersample=bits))
    assert Image.open(tmp_path / "x.jp2").mode == "RGB"
    refuses(tmp_path / "x.jp2", "more than 8 bits per channel")


def test_jpeg_2000_of_8_bits(tmp_path):
    codecs = pytest.importorskip("imagecodecs")
    pixels = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "x.jp2").write_bytes(codecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="jp2"))
    assert np.array_equal(np.asarray(decode(tmp_path / "x.jp2")), pixels)


def test_signed_values_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", GREY.astype(np.int8), photometric="minisblack", metadata=None)
    assert Image.open(tmp_path / "x.tif").mode == "L"
    refuses(tmp_path / "x.tif", "signed values")


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


def test_a_setting_that_hides_truncation(tmp_path, monkeypatch):
    (path,) = write_patches(tmp_path, 1)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refuses(path, "LOAD_TRUNCATED_IMAGES is set")


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe", "device", "folder"):
        refuses(tmp_path / f"{name}.png", "a regular file expected")
    refuses(tmp_path / "gone.png", "file not found")


def test_a_link_is_followed(tmp_path):
    (path,) = write_patches(tmp_path, 1)
    (tmp_path / "link.png").symlink_to(path)
    assert np.array_equal(np.asarray(decode(tmp_path / "link.png")), np.asarray(decode(path)))
