"""What the predictor takes: pictures in any form, endless streams in bounded memory, several threads at once."""

import io
import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from tests import predictors
from tests.predictors import CONFIG, PICTURES, TOKENIZER, close
from tests.support import drawing, png

from opencoca.config import PixelConfig
from opencoca.errors import DataError
from opencoca.infer import stream
from opencoca.infer.predictor import Predictor

model, predictor = predictors.model, predictors.predictor


def test_tensors_open_files_and_buffers_are_pictures_too(predictor, tmp_path):
    image = drawing("blue", "triangle", size_px=20)
    array, expected = np.asarray(image), predictor.embed_images(image)
    first = torch.from_numpy(array.copy()).permute(2, 0, 1)
    image.save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        assert torch.equal(predictor.embed_images(file), expected)
    for form in (first, first.permute(1, 2, 0), bytearray(png(image)), memoryview(png(image)), io.BytesIO(png(image))):
        assert torch.equal(predictor.embed_images(form), expected)
    close(predictor.embed_images(torch.stack([first] * 5)), expected.expand(5, -1))
    close(predictor.embed_images(np.array([str(tmp_path / "a.png")] * 5)), expected.expand(5, -1))
    grey = np.asarray(image.convert("L"))
    assert torch.equal(predictor.embed_images(torch.from_numpy(grey.copy())), predictor.embed_images(grey))
    with pytest.raises(DataError, match=r"images\[1\] is float32 \[3, 20, 20\]"):
        predictor.embed_images([image, first.float()])


@pytest.mark.parametrize("images", [None, 3, np.zeros((), np.uint8), torch.tensor(1)])
def test_what_cannot_be_pictures_is_refused(predictor, images):
    with pytest.raises(DataError, match="images can't be"):
        predictor.embed_images(images)


def test_arrays_that_are_not_pictures_are_named(predictor):
    nan = np.full((4, 4, 3), np.nan, np.float32)
    for images, words in (
        ([PICTURES[0], nan], r"images\[1\] is float32"),
        (np.zeros((2, 0, 4, 3), np.uint8), "0 pixels"),
    ):
        with pytest.raises(DataError, match=words):
            predictor.caption(images)
    with pytest.raises(DataError, match=r"a picture can't be a NoneType"):
        predictor.embed_images([PICTURES[0], None])


def test_a_buffer_that_a_generator_fills_again_gives_every_picture(predictor):
    def frames():
        buffer = np.empty((16, 16, 3), np.uint8)
        for picture in PICTURES:
            buffer[:] = np.asarray(picture)
            yield buffer

    close(predictor.embed_images(frames()), predictor.embed_images(PICTURES))


def test_captions_of_an_endless_stream_come_in_order_and_batch_by_batch(model):
    """No more than two batches are ever pulled ahead of what was given out."""
    predictor, pulled = Predictor(model, TOKENIZER, CONFIG, batch_size=4), 0

    def endless():
        nonlocal pulled
        for i in itertools.count():
            pulled += 1
            yield PICTURES[i % 11]

    expected = predictor.caption(PICTURES, beams=1, max_tokens=5)
    stream = predictor.describe(endless(), beams=1, max_tokens=5)
    for given in range(100):
        assert next(stream).captions[0].text == expected[given % 11]
        assert pulled <= given + 1 + 2 * 4
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert pulled <= 100 + 2 * 4


def test_memory_stays_flat_over_many_pictures(model):
    """Pictures of 300 kB each: the peak doesn't grow with their number (measured 12.3 and 12.4 MB)."""
    predictor = Predictor(model, TOKENIZER, CONFIG, batch_size=16)

    def peak(count):
        frames = (np.full((320, 320, 3), i % 251, np.uint8) for i in range(count))
        tracemalloc.start()
        captions = predictor.caption(frames, beams=1, max_tokens=2)
        assert len(captions) == count
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    assert peak(400) < 1.2 * peak(80)


def test_several_threads_get_what_one_gets(model, tmp_path):
    """Four threads share a predictor, and even the image objects, which Pillow reads when they are first used."""
    predictor, paths = Predictor(model, TOKENIZER, CONFIG, batch_size=3), []
    for i, picture in enumerate(PICTURES):
        paths.append(tmp_path / f"{i}.png")
        picture.resize((64, 64)).save(paths[-1])

    def work(images):
        captions = predictor.captions(images, beams=2, max_tokens=4)
        sampled = predictor.caption(images, temperature=1.0, max_tokens=4, seed=3)
        labels = predictor.classify(images, ["red", "blue"], unknown=True)
        return captions, sampled, labels, predictor.score(images, "red square")

    expected = work(paths)
    state = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state()
    shared = [Image.open(path) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in [pool.submit(work, shared) for _ in range(4)]]
    for captions, sampled, labels, scores in found:
        assert captions == expected[0] and sampled == expected[1]
        assert torch.equal(labels, expected[2]) and torch.equal(scores, expected[3])
    after = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state()
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(state, after, strict=True))  # pyright: ignore[reportArgumentType]
    assert all(parameter.grad is None for parameter in predictor.model.parameters())


def test_bytes_become_the_same_floats_on_a_device(monkeypatch):
    squares = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pixels = PixelConfig(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    elsewhere = stream.to_input(squares, pixels, torch.device("meta"))
    assert elsewhere.shape == (2, 3, 8, 8) and elsewhere.dtype == torch.float32
    here = stream.to_input(squares, pixels, torch.device("cpu"))
    assert torch.equal(stream.looked_up(squares, pixels, torch.device("cpu")), here)
