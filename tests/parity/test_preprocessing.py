"""Pictures as OpenCLIP 3.3.0 prepares them at 64 px, and where ours are different on purpose."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from opencoca.config import PixelConfig
from opencoca.data.pixels import normalise, open_picture, to_square

DATA = Path(__file__).parent / "data"
CASES = load_file(DATA / "preprocess_64_cases.safetensors")
CLIP = PixelConfig((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), indexed="nearest")
TOLERANCE = 1e-6  # measured worst: 2.4e-7, one rounding of a value near 2


def ours(picture: Path | bytes | Image.Image, pixels: PixelConfig = CLIP) -> np.ndarray:
    return normalise(to_square(open_picture(picture), 64, pixels), pixels.mean, pixels.std)[0]


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo() -> Image.Image:
    return Image.open(DATA / "images" / "rgb_landscape.png").convert("RGB")


@pytest.mark.parametrize("name", CASES)
def test_opaque_upright_pictures_are_as_openclip_prepares_them(name: str) -> None:
    np.testing.assert_allclose(ours(DATA / "images" / name), CASES[name], rtol=0, atol=TOLERANCE)


def test_all_the_fixtures_are_there() -> None:
    assert {path.name for path in (DATA / "images").iterdir()} == set(CASES) and len(CASES) == 8


def test_colour_tables_are_scaled_smoothly_by_default() -> None:
    """OpenCLIP scales the indices, which only the nearest pixel allows; a model of ours sees what RGB would give."""
    path = DATA / "images" / "palette.png"
    smooth = PixelConfig(CLIP.mean, CLIP.std)
    assert np.abs(ours(path, smooth) - CASES["palette.png"]).max() > 0.5
    assert np.array_equal(ours(path, smooth), ours(Image.open(path).convert("RGB"), smooth))


def test_transparency_lies_on_white_where_openclip_shows_hidden_colours() -> None:
    image = photo().convert("RGBA")
    image.paste((255, 0, 0, 0), (0, 0, image.width // 2, image.height))  # red that nobody sees
    on_white = photo()
    on_white.paste((255, 255, 255), (0, 0, image.width // 2, image.height))
    assert np.array_equal(ours(file_of(image)), ours(on_white))
    dropped = np.asarray(Image.open(io.BytesIO(file_of(image))).convert("RGB"))
    assert (dropped[0, 0] == (255, 0, 0)).all(), "dropping alpha, as there, would bring the red out"


def test_exif_rotation_is_applied_where_openclip_leaves_the_picture_on_its_side() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8  # stored a quarter turn clockwise
    stored = photo().transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(ours(file_of(stored, exif=exif)), ours(photo()))
    assert not np.array_equal(ours(stored), ours(photo()))


def test_16_bit_grey_keeps_its_range_where_openclip_clips_it() -> None:
    grey = np.asarray(photo().convert("L"))
    deep = file_of(Image.fromarray(grey.astype(np.uint16) * 257))
    assert np.array_equal(ours(deep), ours(Image.fromarray(grey)))
    clipped = np.asarray(Image.open(io.BytesIO(deep)).convert("L"))
    assert (clipped == 255).mean() > 0.9, "converting it as it is, as there, would make it white"


def test_inks_are_converted_before_they_are_scaled() -> None:
    """OpenCLIP scales the inks: up to 15 of 255 levels apart on strong edges, next to nothing elsewhere."""
    inks = Image.open(DATA / "images" / "photo.jpg").convert("CMYK")
    assert np.array_equal(ours(inks), ours(inks.convert("RGB")))
    there = inks.resize((93, 64), Image.Resampling.BICUBIC).convert("RGB").crop((14, 0, 78, 64))
    assert np.abs(ours(inks) - ours(there)).mean() < 0.02
