"""Held-out splits: read whole, and a damaged picture is named."""

import io

import numpy as np
import pytest
from PIL import Image
from tests.support import SHAPES, write_shards
from tests.tiny import CONFIG

from opencoca.data.shards import ShardWriter
from opencoca.errors import DataError
from opencoca.eval.held_out import load_held_out


def test_a_held_out_split_is_read_whole(tmp_path):
    held_out = load_held_out(write_shards(tmp_path), "val", 16, CONFIG.pixels)
    assert len(held_out) == 12 == len(held_out.captions) == len(held_out.attributes)
    assert held_out.pictures.shape == (12, 16, 16, 3) and held_out.pictures.dtype == np.uint8
    for i in held_out.where(shape="bar"):
        assert "bar" in held_out.captions[i]
    assert sum(len(held_out.where(shape=shape)) for shape in SHAPES) == 12 and len(held_out.where(shape="x")) == 0
    with pytest.raises(DataError, match="its splits are: train, val"):
        load_held_out(tmp_path, "test", 16, CONFIG.pixels)


def test_a_damaged_held_out_picture_is_named(tmp_path):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    with ShardWriter(tmp_path) as writer:
        writer.add("val", "good", file.getvalue(), "noise")
        writer.add("val", "bad-one", file.getvalue()[:1000], "noise")
    with pytest.raises(DataError, match="bad-one"):
        load_held_out(tmp_path, "val", 16, CONFIG.pixels)
