"""Pictures of every kind that people have, and of the kinds that break things."""

import functools
import io
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opencoca.config import PixelConfig
from opencoca.data.pixels import FORMATS, normalise, open_picture, to_square
from opencoca.errors import ConfigError, DataError

noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
CROP, PAD, SQUASH = PixelConfig(), PixelConfig(fit="pad"), PixelConfig(fit="squash")


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def opened(image, format="PNG", **options):
    return np.asarray(open_picture(encoded(image, format, **options)))


def png_with_header(width, height, *chunks, bits=8, colour=2):
    """A PNG that claims any size and holds the chunks given, none by default."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*c) for c in chunks) + chunk(b"IEND", b"")


def png_of_16_bits(values):
    """A PNG of uint16 [H,W,C], which Pillow can't write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    return png_with_header(values.shape[1], values.shape[0], (b"IDAT", zlib.compress(rows)), bits=16, colour=colour)


def test_every_kind_of_source_gives_the_same(tmp_path):
    image = Image.fromarray(noise)
    path = tmp_path / "a picture.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image, noise):
        result = open_picture(source)
        assert result.mode == "RGB" and np.array_equal(np.asarray(result), noise)


@pytest.mark.parametrize("format", FORMATS)
def test_allowed_formats(format):
    result = opened(Image.new("RGB", (9, 5), (200, 30, 40)), format)
    assert result.shape == (5, 9, 3) and np.abs(result.astype(int) - (200, 30, 40)).max() < 8


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PCX", "EPS"])
def test_other_formats_are_refused(format):
    with pytest.raises(DataError, match=r"is not a JPEG, PNG, .* picture, or is damaged; convert"):
        open_picture(encoded(Image.new("RGB", (16, 16)), format))


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        result = opened(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (result == (255, 0, 0)).all(), format


@pytest.mark.parametrize(
    ("orientation", "corner"),  # where the black corner, stored at the top left, belongs
    [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0)), (5, (0, 0)), (6, (0, -1)), (7, (-1, -1)), (8, (-1, 0))],
)
def test_exif_rotation_is_applied(orientation, corner):
    image = Image.new("RGB", (32, 16), "white")
    image.paste((0, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = opened(image, "JPEG", exif=exif, quality=95)
    assert result.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    corners = {at: result[at].max() for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
    assert corners.pop(corner) < 20 and min(corners.values()) > 235


def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(Image.fromarray(noise), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_picture(data).size == (60, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_becomes_white(mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))  # hidden black
    image.paste((255, 0, 0, 255), (2, 0, 4, 2))
    options = {}
    if mode in ("L", "RGB"):
        image = image.convert(mode)
        options["transparency"] = 0 if mode == "L" else (0, 0, 0)
    result = opened(image.convert(mode) if mode != "P" else image.quantize(4), "PNG", **options)
    assert (result[:, :2] == 255).all()
    assert (result[:, 2:] != 255).any()


def test_half_transparent_is_half_white():
    assert np.abs(opened(Image.new("RGBA", (2, 2), (0, 0, 0, 128))).astype(int) - 127).max() <= 1
    assert np.abs(np.asarray(open_picture(np.full((2, 2, 4), (0, 0, 0, 128), np.uint8))).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert opened(Image.fromarray(values), format)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_of_every_kind(channels):
    """A ramp of grey or of colours, half of it see-through where there is alpha."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None].repeat(4, axis=0)
    colours = ramp if channels < 3 else np.concatenate([ramp, ramp[:, ::-1], ramp], axis=2)
    alpha = np.full_like(ramp, 65535)
    alpha[:2] = 0
    values = np.concatenate([colours, alpha], axis=2) if channels in (2, 4) else colours
    result = np.asarray(open_picture(png_of_16_bits(values)))
    expected = np.broadcast_to(colours // 257, (4, 256, 3)).astype(int)
    assert np.abs(result[2:].astype(int) - expected[2:]).max() <= 1
    assert (result[:2] == 255).all() if channels in (2, 4) else np.abs(result[:2].astype(int) - expected[:2]).max() <= 1


def test_wide_and_float_grey_is_scaled_not_clipped():
    wide = Image.fromarray(np.array([[-100_000, 0, 100_000]], np.int32))
    assert np.asarray(open_picture(wide))[0, :, 0].tolist() == [0, 128, 255]
    unit = Image.fromarray(np.array([[0, 0.5, 1, np.nan]], np.float32))
    assert np.asarray(open_picture(unit))[0, :, 0].tolist() == [0, 128, 255, 0]
    flat = Image.fromarray(np.full((2, 2), 7e9, np.float32))
    assert np.asarray(open_picture(flat)).shape == (2, 2, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_are_converted(mode):
    image = Image.new("RGB", (4, 4), "white").convert("L" if mode == "1" else "RGB")
    image = image.convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4), (255, 128, 128))
    assert np.asarray(open_picture(image)).min() >= 254


def test_cmyk_jpeg():
    result = opened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert result[0, 0, 0] > 200 and result[0, 0, 1:].max() < 60


def test_the_inverted_inks_of_adobe():
    """Adobe writes ink 0 as 255 and says so in a marker; a reader that overlooks it shows the negative."""
    image = Image.new("CMYK", (32, 16), (0, 0, 0, 0))
    image.paste((0, 255, 255, 0), (16, 0, 32, 16))
    data = encoded(image, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == "CMYK" and "adobe" in stored.info
        stored.tile = [tile._replace(args=("CMYK", "")) for tile in stored.tile]
        assert stored.getpixel((4, 4)) == (255, 255, 255, 255), "the file itself holds inverted inks"
    result = np.asarray(open_picture(data)).astype(int)
    assert result[4, 4].min() > 245 and result[4, 28, 0] > 245 and result[4, 28, 1:].max() < 10


def test_avif_is_read_where_pillow_can():
    assert "AVIF" in FORMATS, "the wheels of Pillow that we install have its decoder"
    square = opened(Image.fromarray(noise).resize((64, 64)), "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(square.astype(int) - np.asarray(Image.fromarray(noise).resize((64, 64)))).mean() < 3
    transparent = opened(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), "AVIF")
    assert (transparent == 255).all()


def box_of(*brands):
    """The first box of a file of the HEIF family, with brands of 4 letters, the major one first."""
    content = b"ftyp" + brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
    return struct.pack(">I", len(content) + 4) + content


def test_heic_without_its_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # an import of it fails, as it does where it isn't installed
    for brands in ((b"heic", b"mif1", b"heic"), (b"mif1", b"heic", b"miaf"), (b"heix",)):
        path = tmp_path / "IMG_0001.HEIC"
        path.write_bytes(box_of(*brands) + bytes(200))
        with pytest.raises(DataError, match=r"IMG_0001.HEIC is a HEIC picture; pip install 'opencoca\[heif\]'"):
            open_picture(path)
    for brands in ((b"mif1", b"avif", b"heic"), (b"isom", b"mp42"), (b"avif",)):
        with pytest.raises(DataError, match=r"is not a JPEG|is damaged"):
            open_picture(box_of(*brands) + bytes(200))


def test_heic_is_read_with_its_package():
    image = Image.new("RGB", (64, 32), (200, 30, 40))
    image.paste((20, 60, 220), (32, 0, 64, 32))
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=95)
    data = file.getvalue()
    result = np.asarray(open_picture(data)).astype(int)
    assert np.abs(result[:, 4:28] - (200, 30, 40)).max() < 8 and np.abs(result[:, 36:60] - (20, 60, 220)).max() < 8
    with pytest.raises(DataError, match="64 x 32 pixels, more than 100"):
        open_picture(data, max_pixels=100)
    for part in (0.02, 0.5, 0.9):
        with pytest.raises(DataError):
            open_picture(data[: int(len(data) * part)])


def test_huge_pictures_are_refused_from_the_header():
    for width, height in ((13_000, 13_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DataError, match=r"pixels.*make it smaller"):
                open_picture(png_with_header(width, height))
    with pytest.raises(DataError, match="60 x 40 pixels, more than 2399"):
        open_picture(noise, max_pixels=2399)
    assert open_picture(encoded(Image.fromarray(noise)), max_pixels=2400).size == (60, 40)


def test_bad_paths_are_named_with_the_repair(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture at all")
    (tmp_path / "cut.jpg").write_bytes(encoded(Image.fromarray(noise), "JPEG")[:900])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, message in {
        "none.png": "does not exist; check the path",
        "empty.png": r"is empty \(0 bytes\); copy or download it again",
        "text.png": "is not a JPEG, .* convert or replace it",
        "cut.jpg": "is truncated or damaged .*; copy or download it again",
        "pipe.png": "is not a plain file; give a picture file",
        "loop.png": "can't be opened|does not exist",
        "": "is a folder; give a picture file in it",
        "nul\0.png": "can't be opened|does not exist",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            open_picture(tmp_path / name)
        assert str(tmp_path / name).rstrip("/") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the super-user may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(Image.fromarray(noise)))
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(DataError, match=r"secret.png can't be read \(permission denied\)"):
        open_picture(tmp_path / "secret.png")


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_pictures_are_refused(format):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(noise), format, **options)
    for part in (0.02, 0.3, 0.7):
        with pytest.raises(DataError):
            open_picture(data[: int(len(data) * part)])


def test_bad_values_in_memory_are_refused():
    for source, message in [
        (b"", "is empty"),
        (noise / 255, r"float64 \[40, 60, 3\]; give uint8"),
        (noise[:, :, :2], r"uint8 \[40, 60, 2\]"),
        (noise[None], r"uint8 \[1, 40, 60, 3\]"),
        (noise[:0], "60 x 0 pixels"),
        (Image.new("RGB", (0, 4)), "0 x 4 pixels"),
        (None, "can't be a NoneType"),
        ([noise], "can't be a list"),
    ]:
        with pytest.raises(DataError, match=message):
            open_picture(source)


def test_an_error_uses_the_given_name():
    with pytest.raises(DataError, match=r"^upload 3 is empty"):
        open_picture(b"", name="upload 3")


@functools.cache
def small_picture(format):
    if format == "HEIF":
        file = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(noise[:12, :12])).save(file)
        return file.getvalue()
    return encoded(Image.fromarray(noise[:12, :12]), format)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*FORMATS, "HEIF"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.data(),
)
def test_damaged_bytes_give_a_picture_or_a_data_error(format, changes, data):
    content = bytearray(small_picture(format))
    for at, value in changes:
        content[at % len(content)] = value
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert open_picture(content, max_pixels=1_000_000).mode == "RGB"
        except DataError as error:
            assert "in memory" in str(error)


def test_an_image_of_the_caller_is_left_alone():
    image = Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    open_picture(image)
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (1, 2, 3, 4)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (96, 96), (97, 33), (31, 200), (500, 333), (20, 400)])
def test_crop_is_resize_then_centre_crop(size):
    image = Image.fromarray(noise).resize(size)
    width, height = size
    wide, high = int(96 * width / min(size)), int(96 * height / min(size))
    left, top = round((wide - 96) / 2.0), round((high - 96) / 2.0)
    expected = image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + 96, top + 96))
    square = to_square(image, 96, CROP)
    assert square.shape == (96, 96, 3) and square.dtype == np.uint8
    # The very long one is resampled in one step: measured 1 on this smooth picture, up to 20 on noise that saturates.
    assert np.abs(square.astype(int) - np.asarray(expected)).max() <= (1 if max(size) > 16 * min(size) else 0)


def test_crop_keeps_the_centre_and_pad_keeps_everything():
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (100, 0, 200, 100))
    cropped = to_square(image, 20, CROP)
    assert (cropped[:, 2:18] == (0, 0, 255)).all()
    padded = to_square(image, 30, PAD)
    assert padded.shape == (30, 30, 3) and (padded[:10] == 255).all() and (padded[20:] == 255).all()
    assert (padded[10:20, 1:8] == (255, 0, 0)).all() and (padded[10:20, 12:18] == (0, 0, 255)).all()


def test_extreme_shapes_cost_no_memory():
    for size in ((1, 200_000), (200_000, 1), (1, 1)):
        for pixels in (CROP, PAD, SQUASH):
            square = to_square(Image.new("RGB", size, "red"), 32, pixels)
            assert square.shape == (32, 32, 3) and (square == (255, 0, 0)).all(axis=2).any()


def test_squash_keeps_everything_and_no_proportion():
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (150, 0, 300, 100))
    square = to_square(image, 30, SQUASH)
    assert (square[:, :13] == (255, 0, 0)).all() and (square[:, 17:] == (0, 0, 255)).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_the_filter_is_the_one_asked_for(fit):
    image = Image.fromarray(noise[:, :40])
    for resample, wanted in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        square = to_square(image, 17, PixelConfig(fit=fit, resample=resample))
        assert np.array_equal(square, np.asarray(image.resize((17, 17), wanted)))


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (33, 97), (500, 333), (7, 5)])
def test_pad_is_scaled_then_centred_in_the_fill(size):
    image = Image.fromarray(noise).resize(size)
    ratio = max(size) / 32
    wide, high = round(size[0] / ratio), round(size[1] / ratio)
    left, top = (32 - wide) // 2, (32 - high) // 2
    square = to_square(image, 32, PixelConfig(fit="pad", fill=7))
    expected = image.resize((wide, high), Image.Resampling.BICUBIC)
    assert np.array_equal(square[top : top + high, left : left + wide], np.asarray(expected))
    outside = np.ones((32, 32), bool)
    outside[top : top + high, left : left + wide] = False
    assert outside.any() and (square[outside] == 7).all()


@pytest.mark.parametrize("mode", ["P", "1"])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_indexed_pictures_can_be_scaled_as_clip_does(mode, fit):
    image = Image.fromarray(noise[:, :40])
    image = image.quantize(8) if mode == "P" else image.convert("1")
    picture, colours = open_picture(image), {tuple(c) for c in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    nearest = to_square(picture, 30, PixelConfig(fit=fit, indexed="nearest"))
    assert {tuple(c) for c in nearest.reshape(-1, 3).tolist()} <= colours
    smooth = to_square(picture, 30, PixelConfig(fit=fit))
    assert np.array_equal(smooth, to_square(Image.fromarray(np.asarray(picture)), 30, PixelConfig(fit=fit)))
    assert not np.array_equal(smooth, nearest)


def test_a_transparent_colour_table_is_scaled_smoothly_whatever_is_asked():
    image = Image.fromarray(noise[:, :40]).quantize(8)
    picture = open_picture(encoded(image, transparency=0))
    assert (np.asarray(picture) == 255).all(axis=2).any()
    assert np.array_equal(
        to_square(picture, 30, PixelConfig(indexed="nearest")), to_square(picture, 30, PixelConfig(indexed="smooth"))
    )


def drawn():
    """Four fields of colour, none like another, 64 by 48."""
    image = Image.new("RGB", (64, 48), (250, 240, 230))
    for colour, box in (
        ((200, 30, 40), (0, 0, 32, 24)),
        ((30, 60, 200), (32, 0, 64, 24)),
        ((20, 90, 20), (0, 24, 32, 48)),
    ):
        image.paste(colour, box)
    return image


def on_glass(image):
    """The picture with its lower right field see-through, and its hidden colour black."""
    glass = image.convert("RGBA")
    glass.paste((0, 0, 0, 0), (32, 24, 64, 48))
    return glass


def upside_down(image):
    """The picture stored upside down, with the EXIF entry that says so."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(image.rotate(180), "JPEG", quality=95, subsampling=0, exif=exif)


MODES = {
    "grey": lambda image: encoded(image.convert("L")),
    "grey JPEG": lambda image: encoded(image.convert("L"), "JPEG", quality=95),
    "palette": lambda image: encoded(image.quantize(16)),
    "palette with transparency": lambda image: encoded(on_glass(image).quantize(16)),
    "grey with alpha": lambda image: encoded(on_glass(image).convert("LA")),
    "colour with alpha": lambda image: encoded(on_glass(image)),
    "inks": lambda image: encoded(image.convert("CMYK"), "JPEG", quality=95),
    "inks in TIFF": lambda image: encoded(image.convert("CMYK"), "TIFF"),
    "16-bit grey": lambda image: encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)),
    "16-bit colour": lambda image: png_of_16_bits(np.asarray(image).astype(np.uint16) * 257),
    "upside down": upside_down,
    "animated GIF": lambda image: encoded(
        image.quantize(16), "GIF", save_all=True, append_images=[Image.new("P", image.size)]
    ),
    "animated WebP": lambda image: encoded(
        image, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", image.size)]
    ),
    "animated PNG": lambda image: encoded(image, save_all=True, append_images=[Image.new("RGB", image.size)]),
    "AVIF": lambda image: encoded(image, "AVIF", quality=95, subsampling="4:4:4"),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_reaches_the_model_upright_and_in_its_colours(mode):
    image, levels = drawn(), np.zeros((1, 3, 2, 2))
    if "alpha" in mode or "transparency" in mode:
        image.paste((255, 255, 255), (32, 24, 64, 48))
    if "grey" in mode:
        image = image.convert("L").convert("RGB")
    data = MODES[mode](drawn())
    levels = normalise(to_square(open_picture(data), 32, CROP), (0, 0, 0), (1, 1, 1))[0] * 255
    expected = to_square(image, 32, CROP).transpose(2, 0, 1)
    away = [slice(2, 14), slice(18, 30)]  # from the edges of the fields, where lossy formats smear
    worst = max(np.abs(levels[:, y, x] - expected[:, y, x]).max() for y in away for x in away)
    assert worst <= (8 if b"JFIF" in data or b"Adobe" in data or mode == "AVIF" else 2)


def test_one_pixel_fills_the_square():
    for data in (encoded(Image.new("RGB", (1, 1), (10, 200, 30))), encoded(Image.new("P", (1, 1)), "GIF")):
        for pixels in (CROP, PAD, SQUASH):
            square = to_square(open_picture(data), 16, pixels)
            assert square.shape == (16, 16, 3) and (square == square[0, 0]).all()


def test_an_unknown_fit_and_an_impossible_fill_are_refused():
    with pytest.raises(DataError, match="fit is 'stretch'; choose 'crop', 'pad' or 'squash'"):
        to_square(Image.new("RGB", (4, 4)), 4, PixelConfig(fit="stretch"))
    for fill in (-1, 256):
        with pytest.raises(ConfigError, match=f"fill {fill} must be a level from 0"):
            PixelConfig(fill=fill)


def test_normalise_is_the_formula():
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    batch = np.stack([noise, noise[::-1]])
    result = normalise(batch, mean, std)
    assert result.dtype == np.float32 and result.shape == (2, 3, 40, 60) and result.flags.c_contiguous
    expected = ((batch / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-7)
    assert np.array_equal(normalise(noise, mean, std), result[:1])
    with pytest.raises(DataError, match="give uint8"):
        normalise(batch.astype(np.float32), mean, std)
    with pytest.raises(DataError, match="give uint8"):
        normalise(batch.transpose(0, 3, 1, 2), mean, std)
