"""Heads for tasks: built from the configuration, initialised, carried by checkpoints, and used by the Predictor."""

import dataclasses
import json
import math

import pytest
import torch
from tests.support import drawing, png, tiny_tokenizer

import opencoca
from opencoca import checkpoint, recipes
from opencoca.config import Config, HeadConfig, ModelConfig
from opencoca.errors import ConfigError, DataError
from opencoca.infer import heads
from opencoca.infer.predictor import Predictor
from opencoca.model.coca import CoCa
from opencoca.model.init import build, init_weights

LABELS = ("bar", "circle", "square", "triangle")
RECOGNITION = HeadConfig("recognition", LABELS)
VQA = HeadConfig("vqa", ("no", "red", "yes"), "decoder")
PAIR = HeadConfig("nlvr2", ("false", "true"), "decoder", pictures=2)
PICTURES = [png(drawing(colour, shape)) for colour in ("red", "blue") for shape in LABELS]


def tiny(*with_heads: HeadConfig) -> ModelConfig:
    config = recipes.tiny.tiny().model
    text = dataclasses.replace(config.text, context_length=64)  # its tokenizer has no words of questions
    return dataclasses.replace(config, text=text, heads=with_heads)


def predictor(*with_heads: HeadConfig) -> Predictor:
    config = dataclasses.replace(recipes.tiny.tiny(), model=tiny(*with_heads))
    return Predictor(build(config.model, 3).requires_grad_(False), tiny_tokenizer(), config)


def test_weights_have_the_names_of_their_heads() -> None:
    model = build(tiny(RECOGNITION, VQA, PAIR))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name.startswith("tasks.")}
    vision, text = model.config.vision.width, model.config.text.width
    assert shapes["tasks.recognition.classifier.weight"] == (4, vision)
    assert shapes["tasks.vqa.classifier.weight"] == (3, text)
    assert shapes["tasks.nlvr2.classifier.weight"] == (2, 2 * text)
    assert shapes["tasks.vqa.pooler.queries_QD"] == (1, text)


def test_a_model_without_heads_has_no_weights_for_them() -> None:
    assert not [name for name in build(tiny()).state_dict() if name.startswith("tasks")]


@pytest.mark.parametrize("name", ["recognition", "norm", "encoder", "biased"])
def test_every_weight_is_initialised_whatever_the_head_is_called(name: str) -> None:
    model = CoCa(tiny(HeadConfig(name, LABELS), VQA))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    init_weights(model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    weight = model.tasks[name].classifier.weight
    assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.3)
    assert (model.tasks[name].pooler.norm_out.weight == 1).all()


def test_a_head_changes_no_other_weight() -> None:
    plain, headed = build(tiny(), 5), build(tiny(RECOGNITION), 5)
    own = dict(headed.named_parameters())
    assert all(torch.equal(tensor, own[name]) for name, tensor in plain.named_parameters())


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "Upper", "labels": LABELS}, "small letters"),
        ({"name": "a.b", "labels": LABELS}, "small letters"),
        ({"name": "one", "labels": ("only",)}, "1 labels; it takes two"),
        ({"name": "one", "labels": ("a", "b", "a")}, "'a'"),
        ({"name": "one", "labels": LABELS, "pictures": 0}, "pictures 0"),
    ],
)
def test_heads_that_make_no_sense_are_refused(fields: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        HeadConfig(**fields)


def test_two_heads_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two heads have one name"):
        tiny(VQA, VQA)


def test_a_name_of_torchs_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="'keys'"):
        build(tiny(HeadConfig("keys", LABELS)))


def test_older_configurations_have_no_heads() -> None:
    values = recipes.tiny.tiny().to_dict()
    del values["model"]["heads"]
    assert Config.from_dict(values).model.heads == ()


def test_padding_is_not_pooled() -> None:
    model = build(tiny(VQA))
    tokens_BSD = torch.randn(2, 7, model.config.text.width)
    keep_BS = torch.arange(7) < torch.tensor([[7], [4]])
    whole = model.tasks["vqa"](tokens_BSD, keep_BS)
    assert torch.allclose(whole[1], model.tasks["vqa"](tokens_BSD[1:, :4])[0], atol=1e-6)
    assert torch.allclose(whole[0], model.tasks["vqa"](tokens_BSD[:1])[0], atol=1e-6)
    changed = torch.where(keep_BS[..., None], tokens_BSD, 1e6)
    assert torch.allclose(model.tasks["vqa"](changed, keep_BS), whole, atol=1e-5)


def test_the_pictures_of_a_statement_are_pooled_alone_and_in_order() -> None:
    head = build(tiny(PAIR)).tasks["nlvr2"]
    first, second = torch.randn(2, 1, 5, tiny().text.width)
    pooled = [head.pooler(one)[:, 0] for one in (first, second)]
    assert torch.allclose(head(torch.cat((first, second))), head.classifier(torch.cat(pooled, dim=1)), atol=1e-6)
    assert not torch.allclose(head(torch.cat((first, second))), head(torch.cat((second, first))), atol=1e-3)


def test_checkpoints_carry_heads(tmp_path) -> None:
    made = predictor(RECOGNITION, VQA)
    checkpoint.save(tmp_path / "model", made.config, made.tokenizer, dict(made.model.named_parameters()))
    loaded = opencoca.load(tmp_path / "model", device="cpu")
    assert loaded.config.model.heads == (RECOGNITION, VQA)
    assert torch.equal(loaded.recognise(PICTURES), made.recognise(PICTURES))
    assert torch.equal(loaded.judge(PICTURES, "is it red?"), made.judge(PICTURES, "is it red?"))


def test_probabilities_do_not_depend_on_what_else_is_asked() -> None:
    coca = predictor(RECOGNITION, VQA)
    questions = ["red?", "is it a bar, or is it not?", "red?", "square"] * 2
    together = coca.judge(PICTURES, questions)
    assert together.shape == (8, 3) and together.sum(dim=1).allclose(torch.ones(8))
    alone = torch.cat([coca.judge(one, text) for one, text in zip(PICTURES, questions, strict=True)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert coca.recognise([]).shape == (0, 4) and coca.recognise(PICTURES).shape == (8, 4)


def test_answers_are_the_heads_unless_words_are_wanted() -> None:
    coca = predictor(VQA)
    best = coca.judge(PICTURES, "red?").argmax(dim=1).tolist()
    assert coca.answer(PICTURES, "red?") == [VQA.labels[i] for i in best]
    plain = predictor()
    assert coca.answer(PICTURES, "red?", beams=1) == plain.answer(PICTURES, "red?", beams=1)


def test_statements_about_pairs_are_judged_whatever_the_batches() -> None:
    coca = predictor(VQA, PAIR)
    pairs = [(left, right) for left, right in zip(PICTURES, PICTURES[3:], strict=False)]
    statements = ["both are red", "left is a bar", "right is", "both are", "same"]
    found = coca.judge(pairs, statements)
    tokens = coca.encode_images([picture for pair in pairs for picture in pair]).tokens
    assert torch.allclose(found, heads.answer_logits(coca, PAIR, tokens, statements).softmax(dim=1), atol=1e-6)
    assert not torch.allclose(found, coca.judge([(right, left) for left, right in pairs], statements), atol=1e-4)
    for batch_size in (1, 3, 4):
        small = Predictor(coca.model, coca.tokenizer, coca.config, batch_size)
        for given in (pairs, (list(pair) for pair in pairs)):
            assert torch.allclose(small.judge(given, statements), found, atol=1e-6)
    assert torch.equal(coca.judge(pairs, statements, head="nlvr2"), found)
    assert coca.judge(PICTURES, "red?").shape == (8, 3) and coca.judge(iter(PICTURES), "red?").shape == (8, 3)
    assert predictor(PAIR).judge([], "same").shape == (0, 2)


@pytest.mark.parametrize(
    ("with_heads", "images", "head", "told"),
    [
        ((PAIR,), PICTURES, None, "no head for questions about one picture: its head 'nlvr2' takes 2 .* give pairs"),
        (
            (PAIR, VQA),
            PICTURES,
            "nlvr2",
            "^this model's head 'nlvr2' takes 2 pictures for each, and 1 is given",
        ),
        ((VQA,), [PICTURES[:2]], None, "about 2 pictures: its head 'vqa' takes one picture .* give one picture for"),
        (
            (PAIR, VQA),
            [PICTURES[:2]],
            "vqa",
            "^this model's head 'vqa' takes one picture for each, and 2 are",
        ),
        ((PAIR,), [PICTURES[:3]], None, "and 3 are given; give pairs"),
    ],
)
def test_pictures_that_are_too_few_or_many_for_the_head_are_refused(with_heads, images, head, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        predictor(*with_heads).judge(images, "red?", head=head)


def test_pairs_with_odd_ones_among_them_are_refused() -> None:
    coca = predictor(PAIR, VQA)
    with pytest.raises(DataError, match=r"images\[1\] is one picture and images\[0\] 2; give as many for each"):
        coca.judge([PICTURES[:2], PICTURES[2]], "same")
    with pytest.raises(DataError, match=r"images\[1\] is 3 pictures"):
        coca.judge([PICTURES[:2], PICTURES[:3]], "same")
    with pytest.raises(DataError, match="there are 2 questions for 1 groups of pictures"):
        coca.judge([PICTURES[:2]], ["same", "both"])


def test_what_the_model_has_no_head_for_is_said() -> None:
    with pytest.raises(ConfigError, match="no head for labels of pictures; train one with `coca recognise`"):
        predictor(VQA).recognise(PICTURES)
    with pytest.raises(ConfigError, match="no head for questions"):
        predictor(RECOGNITION, PAIR).judge(PICTURES, "red?")
    with pytest.raises(ConfigError, match="no head 'other' for questions; it has vqa"):
        predictor(VQA).judge(PICTURES, "red?", head="other")
    with pytest.raises(DataError, match="isn't empty"):
        heads.question_ids(predictor(VQA), " ")
    with pytest.raises(DataError, match="and 64 fit"):
        heads.question_ids(predictor(VQA), "is it " * 20)


def test_heads_tell_models_apart() -> None:
    assert len({predictor(*with_heads).fingerprint() for with_heads in ((), (VQA,), (RECOGNITION,))}) == 3


def test_the_fingerprint_of_a_model_without_heads_is_what_it_was_before_there_were_any(monkeypatch) -> None:
    whole, seen = json.dumps, []
    monkeypatch.setattr(json, "dumps", lambda value, **kw: seen.append(value) or whole(value, **kw))
    predictor().fingerprint()
    assert "heads" not in seen[0]["model"]
