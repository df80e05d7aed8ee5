"""The predictor's captions, likelihoods and answers: options, prompts, samples, the same in any batch."""

import dataclasses
import typing

import pytest
import torch
from tests import predictors
from tests.predictors import CONFIG, PICTURES, TEXTS, TOKENIZER, close

from opencoca.config import GenerationConfig
from opencoca.errors import ConfigError, DataError
from opencoca.infer.captioning import GenerationChanges, changed
from opencoca.infer.generate import generate
from opencoca.infer.predictor import Predictor
from opencoca.model.init import build
from opencoca.types import ImageFeatures

model, predictor = predictors.model, predictors.predictor


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
        ids = [best.ids for best, *_ in predictor.caption_features(features, beams=1, max_tokens=most)]
        assert max(map(len, ids)) <= min(most, CONFIG.model.text.context_length - 2)


@pytest.mark.parametrize("options", [{"beams": 0}, {"max_tokens": 0}, {"beams": 1000}])
def test_bad_generation_settings_are_refused(predictor, options):
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        predictor.caption(PICTURES[:1], **options)


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


# --- options, prompts, several captions -------------------------------------------------------------------------


def test_the_options_are_the_fields_of_the_configuration():
    assert typing.get_type_hints(GenerationChanges) == typing.get_type_hints(GenerationConfig)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam": 2}, "unknown option 'beam'; did you mean 'beams'\\? the options are max_tokens, min_tokens, beams"),
        ({"zzz": 2}, "unknown option 'zzz'; the options are"),
        ({"num_captions": 2}, "`captions` gives several"),
        ({"beams": "3"}, "option beams is '3'; give int"),
        ({"beams": True}, "option beams is True"),
        ({"beam_scores": "x"}, "give 'log_prob' or 'logit'"),
        ({"beams": 0}, "beams 0"),
        ({"top_p": 0}, "top_p 0"),
        ({"prompt": ["a", "b"]}, "there are 2 prompts for 1 pictures"),
        ({"prompt": 3}, "prompts can't be a int"),
        ({"prompt": [3]}, "a prompt must be a string, got 3"),
    ],
)
def test_bad_options_are_refused_before_any_work(predictor, monkeypatch, options, words):
    monkeypatch.setattr(predictor, "encode_squares", lambda squares: pytest.fail("a picture was encoded"))
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        predictor.caption(PICTURES[:1], **options)
    assert "\n" not in str(caught.value)


def test_changes_rule_out_contradicting_defaults():
    defaults = GenerationConfig(beams=6, num_beam_groups=3, min_tokens=5, temperature=0.5)
    assert changed(defaults, {}) == defaults
    assert changed(defaults, {"beams": 4}) == dataclasses.replace(defaults, beams=4, num_beam_groups=1, temperature=0.0)
    assert changed(defaults, {"max_tokens": 3}).min_tokens == 3
    assert changed(defaults, {"beams": 3, "temperature": 0.2}).temperature == 0.2
    with pytest.raises(ConfigError, match="min_tokens 4"):
        changed(defaults, {"max_tokens": 3, "min_tokens": 4})


def test_the_models_own_defaults_count(model):
    config = dataclasses.replace(CONFIG, generation=GenerationConfig(beams=1, max_tokens=3))
    short = Predictor(model, TOKENIZER, config)
    assert short.caption(PICTURES) == short.caption(PICTURES, beams=1, max_tokens=3)
    assert short.caption(PICTURES) != short.caption(PICTURES, max_tokens=9)


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 3}, {"temperature": 1.0}])
def test_captions_go_on_with_their_prompt(predictor, options):
    prompts = ["red square", " the picture ", "", "blue"] * 2
    captions = predictor.caption(PICTURES[:8], prompt=prompts, max_tokens=12, **options)
    for caption, prompt in zip(captions, prompts, strict=True):
        assert caption.startswith(prompt.strip())
    alone = [
        predictor.caption(one, prompt=[text], max_tokens=12, **options)
        for one, text in zip(PICTURES[:8], prompts, strict=True)
    ]
    assert [text for (text,) in alone] == captions
    stream = predictor.describe(iter(PICTURES[:8]), prompt=prompts[:3], max_tokens=12, **options)
    with pytest.raises(DataError, match="3 prompts and more pictures"):
        list(stream)


def test_a_prompt_that_leaves_no_room_is_refused(predictor):
    long = "red " * 40
    tokens, context = len(TOKENIZER.encode(long.strip())), CONFIG.model.text.context_length
    with pytest.raises(ConfigError, match=f"has {tokens} tokens and at most {context - 3} fit .*shorten it"):
        predictor.caption(PICTURES, prompt=long, max_tokens=1000)
    with pytest.raises(ConfigError, match=r"has 2 tokens and at most 1 fit .*raise max_tokens"):
        predictor.caption(PICTURES, prompt="red square", max_tokens=2)
    assert predictor.caption(PICTURES[0], prompt="red square", max_tokens=3, beams=1)[0].startswith("red square")


def test_several_captions_come_best_first_with_their_likelihood_and_match(predictor):
    best = predictor.captions(PICTURES, num_captions=3, beams=4, max_tokens=5, match_weight=0)
    for picture, some in zip(PICTURES, best, strict=True):
        assert 1 <= len(some) <= 3
        assert len({tuple(one.ids) for one in some}) == len(some)
        image = predictor.embed_images(picture)[0]
        for one in some:
            assert one.match == pytest.approx(float(predictor.embed_texts(one.text)[0] @ image), abs=1e-5)
            assert one.log_prob < 0 and one.text == TOKENIZER.decode(one.ids).strip()
    assert [some[0].text for some in best] == predictor.caption(PICTURES, beams=4, max_tokens=5, match_weight=0)
    ranked = predictor.captions(PICTURES, num_captions=4, beams=4, max_tokens=5, match_weight=1e6)
    assert all(some == sorted(some, key=lambda one: -one.match) for some in ranked)
    sampled = predictor.captions(PICTURES, num_captions=3, temperature=1.0, max_tokens=5)
    assert all(len(some) == 3 for some in sampled)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_captions": 0}, "num_captions 0"),
        ({"num_captions": 2, "beams": 1}, "num_captions 2 is more than beams 1"),
        ({"num_captions": 9, "beams": 8}, "num_captions 9 is more than beams 8"),
    ],
)
def test_more_captions_than_there_can_be_are_refused(predictor, options, words):
    with pytest.raises(ConfigError, match=words):
        predictor.captions(PICTURES, **options)


def test_a_sample_depends_on_the_picture_and_the_seed_alone(model):
    options: GenerationChanges = {"temperature": 1.5, "max_tokens": 6}
    few, many = (Predictor(model, TOKENIZER, CONFIG, batch_size=size) for size in (2, 64))
    captions = many.caption(PICTURES, **options)
    assert few.caption(PICTURES[::-1], **options) == captions[::-1]
    assert [many.caption(picture, **options)[0] for picture in PICTURES] == captions
    assert many.caption(PICTURES, seed=1, **options) != captions  # pyright: ignore[reportCallIssue]
    features = many.encode_images(PICTURES)
    keyed = many.caption_features(features, keys=range(5, 16), **options)
    part = ImageFeatures(features.embed[3:], features.tokens[3:])
    assert many.caption_features(part, keys=range(8, 16), **options) == keyed[3:]
    with pytest.raises(DataError, match="2 keys for 11 pictures"):
        many.caption_features(features, keys=[1, 2])


def test_beams_and_pictures_together_keep_to_the_batch_size(model, monkeypatch):
    predictor, rows = Predictor(model, TOKENIZER, CONFIG, batch_size=9), []
    decode = model.decode_next
    monkeypatch.setattr(model, "decode_next", lambda ids, cache: rows.append(len(ids)) or decode(ids, cache))
    predictor.captions(PICTURES, beams=4, max_tokens=4)
    assert max(rows) == 8
    predictor.captions(PICTURES[:2], beams=20, max_tokens=3)  # one picture at a time is the least
    assert max(rows) == 20


def test_one_pass_describes_and_embeds_and_passes_over_what_cannot_be_read(predictor, model, monkeypatch, tmp_path):
    seen, image, bad = [], model.encode_image, []
    monkeypatch.setattr(model, "encode_image", lambda pixels: seen.append(len(pixels)) or image(pixels))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    given = [*PICTURES[:3], tmp_path / "broken.png", *PICTURES[3:]]
    prompts = [*(f"red {i}" for i in range(3)), "bad", *(f"red {i}" for i in range(3, 11))]
    found = list(
        predictor.describe(
            given, prompt=prompts, on_bad=lambda picture, error: bad.append((picture, str(error))), max_tokens=12
        )
    )
    assert seen == [4, 4, 3] and [one.picture for one in found] == PICTURES
    assert bad[0][0] == tmp_path / "broken.png" and "broken.png" in bad[0][1] and len(bad) == 1
    assert all(one.captions[0].text.startswith(f"red {i}") for i, one in enumerate(found))
    close(torch.stack([one.embed for one in found]), predictor.embed_images(PICTURES))


# --- likelihoods and answers ------------------------------------------------------------------------------------


SCORED = [*TEXTS[:2], "a green bar", *TEXTS[3:]]


def test_scores_are_the_likelihoods_of_whole_texts(predictor, model):
    """Against the model's own logits, one text at a time. Measured worst case 4e-6 nats."""
    found = predictor.score_matrix(PICTURES, SCORED)
    assert found.shape == (11, 6) and found.dtype == torch.float64
    features = predictor.encode_images(PICTURES)
    for column, text in enumerate(SCORED):
        ids, valid = TOKENIZER.encode_batch([text] * 11, CONFIG.model.text.context_length)
        with torch.no_grad():
            decoded = model.decode(features.tokens, model.encode_text(ids, valid).tokens[:, :-1])
            log_p = model.caption_logits(decoded).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].sum(1)
        close(found[:, column], log_p.double(), atol=1e-4)
    close(predictor.score(PICTURES[:6], SCORED), found[:6].diag(), atol=1e-5)
    close(predictor.score(PICTURES, "blue"), found[:, 1], atol=1e-5)
    one = predictor.captions(PICTURES[0], beams=3, max_tokens=5, match_weight=0)[0][0]
    if len(one.ids) < 5:  # the end was reached
        assert predictor.score(PICTURES[0], one.text).item() == pytest.approx(one.log_prob, abs=1e-4)


def test_scores_need_one_text_each_that_fits(predictor):
    with pytest.raises(DataError, match="there are 6 texts for 11 pictures"):
        predictor.score(PICTURES, SCORED)
    with pytest.raises(DataError, match=r"has \d+ tokens and the context has room for \d+; shorten it"):
        predictor.score(PICTURES[:1], "red " * 99)
    assert predictor.score([], []).shape == (0,) and predictor.score_matrix([], SCORED).shape == (0, 6)
    assert predictor.score_matrix(PICTURES, []).shape == (11, 0)


def test_an_image_is_encoded_once_however_many_texts_it_has(model, monkeypatch):
    predictor, seen = Predictor(model, TOKENIZER, CONFIG, batch_size=3), []
    image, decode = model.encode_image, model.decode_ids
    monkeypatch.setattr(model, "encode_image", lambda pixels: seen.append(len(pixels)) or image(pixels))
    rows = []
    monkeypatch.setattr(model, "decode_ids", lambda tokens, ids: rows.append(len(ids)) or decode(tokens, ids))
    predictor.score_matrix(PICTURES, SCORED)
    assert sum(seen) == 11 and sum(rows) == 66 and max(rows) <= 3


def test_answers_go_on_after_the_question():
    text = dataclasses.replace(CONFIG.model.text, context_length=48)
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, text=text))
    predictor = Predictor(build(config.model, seed=1), TOKENIZER, config)
    room: GenerationChanges = {"max_tokens": 30, "beams": 1}
    questions = ["what?", " red? "] * 5 + ["blue?"]
    answers = predictor.answer(PICTURES, questions, **room)
    whole = predictor.caption(PICTURES, prompt=[f"question: {q.strip()} answer:" for q in questions], **room)
    for answer, caption, question in zip(answers, whole, questions, strict=True):
        start = f"question: {question.strip()} answer:"
        assert caption.startswith(start) and caption.removeprefix(start).strip() == answer
    assert len(set(answers)) > 1
    assert predictor.answer(PICTURES[:2], "what?", **room) == predictor.answer(PICTURES[:2], ["what?"] * 2, **room)
    for bad in ("", ["what?", " "], [None, "what?"]):
        with pytest.raises(DataError, match="question"):
            predictor.answer(PICTURES[:2], bad)
    with pytest.raises(DataError, match="3 questions for 11"):
        predictor.answer(PICTURES, ["a?"] * 3)
