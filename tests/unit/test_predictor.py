"""The predictor: the same answers in any batch, order and form of input, in bounded memory."""

import dataclasses
import io
import itertools
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support import COLOURS, SHAPES, drawing, png, tiny_config, tiny_tokenizer, train_tiny, write_shards
from torch.nn import functional as F

import opencoca
from opencoca import checkpoint, recipes
from opencoca.config import GenerationConfig, PixelConfig
from opencoca.data.shards import ShardWriter
from opencoca.data.tokenizer import train_tokenizer
from opencoca.errors import CheckpointError, ConfigError, DataError
from opencoca.eval.held_out import load_held_out
from opencoca.infer import stream
from opencoca.infer.generate import generate
from opencoca.infer.predictor import Predictor
from opencoca.loading import load, newest_run
from opencoca.model.init import build
from opencoca.train import loop

CONFIG, TOKENIZER = recipes.tiny.tiny(), tiny_tokenizer()
PICTURES = [drawing(colour, shape) for colour in COLOURS for shape in SHAPES][:11]
TEXTS = ["red square", "blue", "a green circle on the left of a picture", "pink bar", "\u00e9", "yellow triangle"]


@pytest.fixture(scope="module")
def model():
    return build(CONFIG.model, seed=2)


@pytest.fixture
def predictor(model):
    return Predictor(model, TOKENIZER, CONFIG, batch_size=4)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- embeddings -------------------------------------------------------------------------------------------------


def test_embeddings_are_unit_norm_float32_on_the_cpu(predictor):
    for embeds, count in ((predictor.embed_images(PICTURES), 11), (predictor.embed_texts(TEXTS), 6)):
        assert embeds.shape == (count, CONFIG.model.embed_dim) and embeds.dtype == torch.float32
        assert embeds.device.type == "cpu" and not embeds.requires_grad
        close(embeds.norm(dim=-1), torch.ones(count))
        assert (embeds @ embeds.T - torch.eye(count)).abs().max() < 1  # no two are alike


@pytest.mark.parametrize("batch_size", [1, 2, 5, 11, 100])
def test_batches_of_any_size_and_order_give_the_same_embeddings(model, batch_size):
    """Measured worst case 1.6e-7."""
    whole, other = Predictor(model, TOKENIZER, CONFIG), Predictor(model, TOKENIZER, CONFIG, batch_size=batch_size)
    order = torch.randperm(len(PICTURES), generator=torch.Generator().manual_seed(1))
    close(other.embed_images([PICTURES[i] for i in order]), whole.embed_images(PICTURES)[order])
    order = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(2))
    close(other.embed_texts([TEXTS[i] for i in order]), whole.embed_texts(TEXTS)[order])
    encoded = other.encode_images(PICTURES)
    close(encoded.embed, whole.embed_images(PICTURES))
    close(encoded.tokens, whole.encode_images(PICTURES).tokens, atol=1e-4)


def test_all_forms_of_a_picture_agree(predictor, tmp_path):
    image = drawing("green", "circle", size_px=40)
    image.save(tmp_path / "a.png")
    forms = [image, np.asarray(image), png(image), tmp_path / "a.png", str(tmp_path / "a.png")]
    expected = predictor.embed_images(image)
    assert expected.shape == (1, CONFIG.model.embed_dim)
    for form in forms:
        assert torch.equal(predictor.embed_images(form), expected)
    close(predictor.embed_images(forms), expected.expand(len(forms), -1))
    close(predictor.embed_images(tuple(forms[:2])), expected.expand(2, -1))
    stacked = np.stack([np.asarray(image)] * 3)
    close(predictor.embed_images(stacked), expected.expand(3, -1))
    close(predictor.embed_images(i for i in forms), expected.expand(len(forms), -1))
    close(predictor.embed_images(image.convert("RGBA")), expected)


def test_one_text_is_a_list_of_one(predictor):
    assert torch.equal(predictor.embed_texts("red square"), predictor.embed_texts(["red square"]))


def test_nothing_gives_nothing(predictor):
    width = CONFIG.model.embed_dim
    assert predictor.embed_images([]).shape == predictor.embed_texts([]).shape == (0, width)
    assert predictor.caption([]) == [] and predictor.classify([], ["a", "b"]).shape == (0, 2)
    encoded = predictor.encode_images([])
    assert encoded.embed.shape == (0, width) and encoded.tokens.shape == (0, 5, width)


def test_memory_is_bounded_by_the_batch(model, monkeypatch):
    predictor, seen = Predictor(model, TOKENIZER, CONFIG, batch_size=3), []
    image, text = model.encode_image, model.encode_text
    monkeypatch.setattr(model, "encode_image", lambda pixels: seen.append(len(pixels)) or image(pixels))
    monkeypatch.setattr(model, "encode_text", lambda ids, valid: seen.append(len(ids)) or text(ids, valid))
    predictor.embed_images(PICTURES)
    predictor.caption(PICTURES, beams=1)
    predictor.classify(PICTURES, [f"label {i}" for i in range(7)], templates=("{}", "a {}"))
    assert max(seen) == 3 and sum(seen) == 11 + 11 + 11 + 14


def test_pictures_are_opened_batch_by_batch(predictor, tmp_path):
    """The first batch's results are there before the last picture is opened."""
    paths = []
    for i in range(9):
        paths.append(tmp_path / f"{i}.png")
        PICTURES[i].save(paths[-1])
    stream = predictor._encoded(paths)
    assert len(next(stream).embed) == 4
    paths[8].unlink()
    assert len(next(stream).embed) == 4
    with pytest.raises(DataError, match=r"8\.png"):
        next(stream)


def test_a_picture_that_cannot_be_read_is_named(predictor, tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png"):
        predictor.caption([PICTURES[0], tmp_path / "empty.png"])
    with pytest.raises(DataError, match=r"missing\.png"):
        predictor.embed_images(tmp_path / "missing.png")
    with pytest.raises(DataError, match="float64"):
        predictor.embed_images(np.zeros((4, 4, 3)))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(model, batch_size):
    with pytest.raises(ConfigError, match="batch_size"):
        Predictor(model, TOKENIZER, CONFIG, batch_size=batch_size)


def test_a_foreign_tokenizer_is_refused(model):
    with pytest.raises(ConfigError, match=r"has 282 pieces and the model 320"):
        Predictor(model, train_tokenizer(["red square on the left", "blue bar"] * 9, 300, "bpe"), CONFIG)


# --- classify ---------------------------------------------------------------------------------------------------


def test_probabilities_follow_from_the_embeddings(predictor, model):
    labels = ["red square", "blue bar", "pink circle"]
    found = predictor.classify(PICTURES, labels)
    close(found.sum(dim=-1), torch.ones(11))
    scale = model.log_scale.detach().exp()
    assert scale.item() == pytest.approx(1 / 0.07)
    expected = (scale * predictor.embed_images(PICTURES) @ predictor.embed_texts(labels).T).softmax(-1)
    close(found, expected)
    assert found.std(dim=0).max() > 1e-3  # pictures differ
    close(predictor.classify(PICTURES, labels[::-1]), found.flip(1))
    assert predictor.classify(PICTURES[0], ["only"]).tolist() == [[1.0]]


def test_templates_are_averaged(predictor):
    templates = ("{}", "a picture of {} on the left", "small {} {}")
    a, b, c = (predictor.embed_texts(t.replace("{}", "pink bar"))[0] for t in templates)
    close(predictor.embed_labels(["red", "pink bar"], templates)[1], F.normalize((a + b + c) / 3, dim=-1))
    assert torch.equal(predictor.embed_labels(["red"]), predictor.embed_labels(["red"], ("{}",)))
    assert predictor.embed_labels(["50% {0}"], ("a {}",)).isfinite().all()  # labels are no format strings


@pytest.mark.parametrize(
    ("labels", "templates", "words"),
    [
        ([], ("{}",), "at least one label"),
        ("cat", ("{}",), "list"),
        (["cat", "cat"], ("{}",), "cat"),
        (["cat", " "], ("{}",), "empty"),
        (["cat", 3], ("{}",), "3"),
        (["cat"], (), "template"),
        (["cat"], ("a photo",), "a photo"),
        (["cat"], "a photo of {}", "list"),
    ],
)
def test_bad_labels_are_refused(predictor, labels, templates, words):
    with pytest.raises(DataError, match=words) as caught:
        predictor.classify(PICTURES[:1], labels, templates=templates)
    assert "\n" not in str(caught.value)


# --- load -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(write_shards(folder / "data"), optim={"steps": 2, "warmup_steps": 1})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_rate", lambda device, dtype: 1e11)
        train_tiny(config, folder / "runs" / "one")
    torch.set_num_threads(threads)
    return folder / "runs" / "one"


def test_a_run_and_a_model_folder_load_alike(run, tmp_path):
    saved = checkpoint.load(run)
    checkpoint.save(tmp_path / "model", saved.config, saved.tokenizer, saved.weights)
    of_run, of_model = opencoca.load(run, device="cpu"), opencoca.load(str(tmp_path / "model"), device="cpu")
    assert isinstance(of_run, opencoca.Predictor) and not of_run.model.training
    for name, tensor in of_run.model.state_dict().items():
        assert torch.equal(tensor, of_model.model.state_dict()[name])
        assert torch.equal(tensor, saved.weights[name])  # the moving average, not the raw weights
    training = checkpoint.load(run, training=True).training
    assert training is not None and not torch.equal(training["raw.head.weight"], saved.weights["head.weight"])
    assert of_run.caption(PICTURES[:2], beams=1) == of_model.caption(PICTURES[:2], beams=1)


def test_a_model_loads_when_its_files_go_away(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    coca = load(tmp_path / "copy", device="cpu")
    before = coca.embed_images(PICTURES)
    shutil.rmtree(tmp_path / "copy")
    assert torch.equal(coca.embed_images(PICTURES), before)


def test_the_newest_run_is_the_default(run, tmp_path, monkeypatch):
    older = shutil.copytree(run, run.parent / "older")
    os.utime(older / "checkpoints" / "latest", (1, 1))
    assert newest_run(run.parent) == run
    monkeypatch.chdir(run.parent.parent)
    assert opencoca.load(device="cpu").config == checkpoint.load(run).config
    with pytest.raises(CheckpointError, match="coca quickstart"):
        newest_run(tmp_path / "none")


def test_weights_that_do_not_fit_their_configuration_are_refused(run, tmp_path):
    saved = checkpoint.load(run)
    text = dataclasses.replace(saved.config.model.text, unimodal_depth=1)
    config = dataclasses.replace(saved.config, model=dataclasses.replace(saved.config.model, text=text))
    checkpoint.save(tmp_path / "model", config, saved.tokenizer, saved.weights)
    with pytest.raises(CheckpointError, match=r": \d+ foreign \(unimodal\.blocks\.1"):
        opencoca.load(tmp_path / "model")


# --- held-out splits --------------------------------------------------------------------------------------------


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


def test_both_halves_choose_the_caption(predictor):
    """Without a weight the captioner's first; with a huge one the proposed caption that matches the picture best."""
    features = predictor.encode_images(PICTURES)
    settings = GenerationConfig(beams=4, max_tokens=6)
    proposed = generate(predictor.model, features.tokens, TOKENIZER.special, settings, num_captions=4)
    texts = [[TOKENIZER.decode(one.ids).strip() for one in captions] for captions in proposed]

    def chosen(weight):
        captions = predictor.caption_features(features, beams=4, max_tokens=6, match_weight=weight)
        return [best.text for best, *_ in captions]

    assert chosen(0.0) == [some[0] for some in texts]
    matching = []
    for some, image in zip(texts, features.embed, strict=True):
        similarities = predictor.embed_texts(some) @ image
        matching.append(some[int(similarities.argmax())])
    assert chosen(1e6) == matching
    assert matching != [some[0] for some in texts]


# --- any form, in bounded memory --------------------------------------------------------------------------------


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
    stream.close()
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
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(state, after, strict=True))
    assert all(parameter.grad is None for parameter in predictor.model.parameters())


def test_bytes_become_the_same_floats_on_a_device(monkeypatch):
    squares = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pixels = PixelConfig(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    elsewhere = stream.to_input(squares, pixels, torch.device("meta"))
    assert elsewhere.shape == (2, 3, 8, 8) and elsewhere.dtype == torch.float32
    here = stream.to_input(squares, pixels, torch.device("cpu"))
    assert torch.equal(stream.looked_up(squares, pixels, torch.device("cpu")), here)
