"""Pictures of the kinds that break things: each is refused in one line that names it, and no damage gets through."""

import functools
import io
import os
import struct
import sys
import warnings

import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.picture_files import encoded, noise, png_with_header

from opencoca.data.pixels import FORMATS, open_picture
from opencoca.errors import DataError, TooLargeError


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PCX", "EPS"])
def test_other_formats_are_refused(format):
    with pytest.raises(DataError, match=r"is not a JPEG, PNG, .* picture, or is damaged; convert"):
        open_picture(encoded(Image.new("RGB", (16, 16)), format))


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


def test_huge_pictures_are_refused_from_the_header():
    for width, height in ((13_000, 13_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(TooLargeError, match=r"pixels(, more than 64,000,000)?; make it smaller"):
                open_picture(png_with_header(width, height))
    with pytest.raises(TooLargeError, match="60 x 40 pixels, more than 2,399"):
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
