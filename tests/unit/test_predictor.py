"""The predictor: the same embeddings and probabilities in any batch and order, batch by batch."""

import numpy as np
import pytest
import torch
from tests import predictors
from tests.predictors import CONFIG, PICTURES, TEXTS, TOKENIZER, close
from tests.support import drawing, png
from torch.nn import functional as F

from opencoca.data.tokenizer import train_tokenizer
from opencoca.errors import ConfigError, DataError
from opencoca.infer.predictor import Predictor

model, predictor = predictors.model, predictors.predictor


# --- embeddings --------------------------------------------------------------------------------------------------


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


# --- classify ----------------------------------------------------------------------------------------------------


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
