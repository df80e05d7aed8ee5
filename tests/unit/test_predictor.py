"""The predictor: the same answers in any batch, order and form of input, in bounded memory."""

import dataclasses
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support import COLOURS, SHAPES, drawing, png, tiny_config, tiny_tokenizer, train_tiny, write_shards
from torch.nn import functional as F

import opencoca
from opencoca import checkpoint, recipes
from opencoca.data.shards import ShardWriter
from opencoca.data.tokenizer import train_tokenizer
from opencoca.errors import CheckpointError, ConfigError, DataError
from opencoca.eval.held_out import load_held_out
from opencoca.infer.generate import n_best
from opencoca.infer.predictor import Predictor
from opencoca.loading import load, newest_run
from opencoca.model.init import build
from opencoca.train import loop

CONFIG, TOKENIZER = recipes.tiny.tiny(), tiny_tokenizer()
PICTURES = [drawing(colour, shape) for colour in COLOURS for shape in SHAPES][:11]
TEXTS = ["red square", "blue", "a green circle on the left of a picture", "pink bar", "\u00e9", "yellow triangle"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


# --- captions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_deterministic_in_any_batch_and_order(model, beams):
    few, many = (Predictor(model, TOKENIZER, CONFIG, batch_size=size) for size in (2, 64))
    captions = many.caption(PICTURES, beams=beams, max_tokens=8)
    assert len(captions) == 11 and all(isinstance(caption, str) for caption in captions)
    assert many.caption(PICTURES, beams=beams, max_tokens=8) == captions
    assert few.caption(PICTURES[::-1], beams=beams, max_tokens=8) == captions[::-1]
    assert len(set(captions)) > 1
    assert many.caption(PICTURES[3], beams=beams, max_tokens=8) == [captions[3]]


def test_captions_keep_to_their_length(predictor):
    for most in (1, 4, 1000):
        features = predictor.encode_images(PICTURES)
        ids = [one.ids for _, one in predictor.caption_features(features, beams=1, max_tokens=most)]
        assert max(map(len, ids)) <= min(most, CONFIG.model.text.context_length - 2)


@pytest.mark.parametrize("options", [{"beams": 0}, {"max_tokens": 0}, {"beams": 1000}])
def test_bad_generation_settings_are_refused(predictor, options):
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        predictor.caption(PICTURES[:1], **options)


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
    for path in (tmp_path / "copy").rglob("*.safetensors"):
        path.write_bytes(b"\0" * path.stat().st_size)
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
    with pytest.raises(CheckpointError, match=r"0 missing, \d+ foreign \(unimodal\.blocks\.1"):
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
    proposed = n_best(predictor.model, features.tokens, predictor.tokenizer.special, 6, 4)
    texts = [[predictor.tokenizer.decode(one.ids).strip() for one in captions] for captions in proposed]

    def chosen(weight):
        return [text for text, _ in predictor.caption_features(features, beams=4, max_tokens=6, match_weight=weight)]

    assert chosen(0.0) == [some[0] for some in texts]
    matching = []
    for some, image in zip(texts, features.embed, strict=True):
        similarities = predictor.embed_texts(some) @ image
        matching.append(some[int(similarities.argmax())])
    assert chosen(1e6) == matching
    assert matching != [some[0] for some in texts]
