"""Decoding for training: Pillow's is inference's to the bit; simplejpeg's is close to it, as safe, and never silent."""

import importlib.util
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from tests.pairs import jpeg, make, photo
from tests.support import png

from opencoca.config import PixelConfig
from opencoca.data import decode
from opencoca.data.augment import Box
from opencoca.data.decode import decode_square, require_decoder
from opencoca.data.pixels import MAX_PIXELS, normalise, normalised, open_picture, to_square
from opencoca.data.sample import Sample
from opencoca.errors import ConfigError, DataError

FITS = ("crop", "pad", "squash")
SCALED = PixelConfig(decoder="simplejpeg")


def middle(width: int, height: int) -> Box:
    return Box(width // 4, height // 8, width // 2, height // 2)


def turned(image: Image.Image, orientation: int) -> bytes:
    """A JPEG of the image with an orientation in its EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(image, exif=exif)


def difference(content: bytes, size_px: int, crop=None, **fields) -> float:
    """Mean absolute difference of the two decoders' squares, in levels of 256."""
    pillow = decode_square(content, size_px, PixelConfig(**fields), crop)
    scaled = decode_square(content, size_px, PixelConfig(decoder="simplejpeg", **fields), crop)
    assert pillow.shape == scaled.shape == (size_px, size_px, 3) and scaled.dtype == np.uint8
    return float(np.abs(pillow.astype(int) - scaled).mean())


@pytest.mark.parametrize("fit", FITS)
def test_pillow_decodes_as_inference_does(fit):
    pixels = PixelConfig(fit=fit)
    for content in (jpeg(photo(300, 200)), png(photo(90, 120)), turned(photo(300, 200), 6)):
        assert np.array_equal(decode_square(content, 32, pixels), to_square(open_picture(content), 32, pixels))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (640, 64), (512, 512)])
@pytest.mark.parametrize("crop", [None, middle])
def test_a_scaled_jpeg_looks_the_same(size, fit, crop):
    """Measured: at most 1.7 levels of 256."""
    assert difference(jpeg(photo(*size)), 32, crop, fit=fit) < 2.5


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("crop", [None, middle])
def test_scaled_jpegs_stand_upright(orientation, crop):
    """Measured: at most 0.4 levels; upside down they differ by more than 60. 0 and 9 mean nothing."""
    content = turned(photo(320, 200), orientation)
    assert difference(content, 32, crop) < 1
    wrong = decode_square(content, 32, SCALED)[::-1]
    assert np.abs(wrong.astype(int) - decode_square(content, 32, PixelConfig())).mean() > 30


@pytest.mark.parametrize("size", [(32, 40), (31, 31), (5, 9), (36, 33)])
def test_what_is_small_is_decoded_whole(size):
    """And then to the bit as Pillow does it."""
    assert difference(jpeg(photo(*size)), 32) == 0


def test_kinds_of_jpeg():
    image = photo(256, 160)
    for content in (jpeg(image, progressive=True), jpeg(image, subsampling=0), jpeg(image.convert("L"))):
        assert 0 < difference(content, 32) < 2.5
    for content in (jpeg(image.convert("CMYK")), jpeg(image, keep_rgb=True), png(image)):
        assert difference(content, 32) == 0  # these take Pillow's way


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("crop", [None, middle])
def test_nothing_is_enlarged_and_little_is_decoded_in_vain(monkeypatch, fit, crop):
    import simplejpeg

    sizes, decoder = [], simplejpeg.decode_jpeg

    def spy(*args, **kw):
        sizes.append((result := decoder(*args, **kw)).shape[:2])
        return result

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    for width, height in ((800, 600), (600, 800), (640, 64), (100, 1000)):
        decode_square(jpeg(photo(width, height)), 32, PixelConfig(fit=fit, decoder="simplejpeg"), crop)
        high, wide = sizes.pop()
        box = middle(width, height) if crop else Box(0, 0, width, height)
        across, down = box.width * wide / width, box.height * high / height
        sides = (across, down) if crop or fit == "squash" else ((min if fit == "crop" else max)(across, down),)
        whole = (wide, high) == (width, height)
        assert whole or min(sides) >= 31.9
        assert min(sides) < 40 or min(wide, high) * 8 <= min(width, height) + 8 or whole


@pytest.mark.parametrize("cut", [0, 1, 3, 20, 200, 1000, -300, -2])
def test_damaged_jpegs_end_as_with_pillow(cut):
    content = jpeg(photo(200, 160))[:cut]
    outcomes = []
    for pixels in (PixelConfig(), SCALED):
        try:
            outcomes.append(decode_square(content, 32, pixels, name="it").tobytes())
        except DataError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_a_jpeg_with_noise_inside_is_read_or_refused_like_pillows():
    """Where the scaled decoder isn't content, Pillow has the last word: nothing is lost that inference reads."""
    whole, generator = bytearray(jpeg(photo(200, 160))), np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(whole)
        content[generator.integers(2, len(content))] ^= 1 << int(generator.integers(8))
        results = []
        for pixels in (PixelConfig(), SCALED):
            try:
                results.append(decode_square(bytes(content), 32, pixels).shape)
            except DataError:
                results.append(None)
        assert results[0] == results[1]


def huge(side: int) -> bytes:
    """A small JPEG whose header promises side x side pixels."""
    content = bytearray(jpeg(photo(64, 64)))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(content)


@pytest.mark.parametrize("side", [8001, 30000, 65000])
def test_a_bomb_is_refused_from_its_header(side):
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"pixels|{MAX_PIXELS}"):
        decode_square(huge(side), 32, SCALED, name="it")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_missing_decoder_is_named(monkeypatch):
    require_decoder(PixelConfig())
    require_decoder(SCALED)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_decoder(PixelConfig())
    with pytest.raises(ConfigError, match=r"pip install 'opencoca\[train\]', or set pixels.decoder=pillow"):
        make([Sample("a", jpeg(photo(20, 20)), "red", {})], pixels=SCALED)


def test_the_loader_takes_the_decoder_that_it_is_told(monkeypatch):
    items = [Sample(f"k{i}", jpeg(photo(200, 160, seed=i)), "red", {}) for i in range(4)]
    monkeypatch.setattr(decode, "open_picture", None)  # so that Pillow's way fails
    assert make(items, pixels=SCALED).batch(0).pixels.shape == (4, 3, 16, 16)
    with pytest.raises(TypeError):
        make(items).batch(0)


# --- what the model gets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PixelConfig(), PixelConfig(mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))])
def test_pixels_are_normalised_on_the_device_as_before(config):
    pictures_BHWC = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)
    pictures_BHWC[0, :16, :16, :] = np.arange(256).reshape(16, 16, 1)  # every level in every channel
    pixels = torch.from_numpy(pictures_BHWC).permute(0, 3, 1, 2)
    expected = torch.from_numpy(normalise(pictures_BHWC, config.mean, config.std))
    for given in (pixels, pixels.contiguous(), pixels[:, :, :, ::2].repeat_interleave(2, 3)):
        result = normalised(given, config)
        assert result.dtype == torch.float32 and result.is_contiguous()
        assert torch.equal(result[:, :, :, ::2], expected[:, :, :, ::2])
    assert normalised(expected, config) is expected
    for wrong in (pixels[0], pixels.int(), pixels[:, :2]):
        with pytest.raises(DataError, match=r"give uint8 \[B,3,H,W\]"):
            normalised(wrong, config)
