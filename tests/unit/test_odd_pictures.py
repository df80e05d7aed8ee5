"""Odd pictures on their way through the loader: the pixels that are in them, or a counted skip, with either decoder."""

import resource
import time

import numpy as np
import pytest
from tests.odd_pictures import WIDTH, bombs, odd_pictures
from tests.pairs import make, photo
from tests.support import png

from opencoca.config import PixelConfig
from opencoca.data.decode import decode_square
from opencoca.data.sample import Sample
from opencoca.errors import DataError

FILL = 201


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_sixty_odd_pictures_give_their_pixels_or_a_counted_skip(decoder):
    odd = odd_pictures()
    assert len(odd) == 60
    items = [Sample(picture.name, picture.content, "red", {}) for picture in odd]
    spare = Sample("spare", png(photo(24, 24)), "red", {})
    pixels = PixelConfig(fit="pad", fill=FILL, decoder=decoder)
    for item, picture in zip(items, odd, strict=True):
        loader = make([item, spare], batch_size=2, image_size_px=WIDTH, pixels=pixels)
        batch = loader.batch(0)
        if picture.expected is None:
            assert batch.keys == ("spare", "spare") and [key for key, _ in loader.skipped] == [item.key], item.key
            continue
        assert sorted(batch.keys) == sorted([item.key, "spare"]) and not loader.counts, item.key
        read = batch.pixels[batch.keys.index(item.key)].permute(1, 2, 0).numpy()
        high = picture.expected.shape[0]
        top = (WIDTH - high) // 2
        assert np.abs(read[top : top + high].astype(int) - picture.expected).max() <= picture.tolerance, item.key
        assert (read[:top] == FILL).all() and (read[top + high :] == FILL).all()


@pytest.mark.parametrize("name", bombs())
@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_bombs_are_refused_from_their_headers(name, decoder):
    content = bombs()[name]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(DataError, match=r"pixels"):
        decode_square(content, 32, PixelConfig(decoder=decoder))
    assert time.perf_counter() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
