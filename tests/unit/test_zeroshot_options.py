"""Zero-shot options: templates, unknown, independent labels, likelihoods, and calibration."""

import dataclasses
import functools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny
from tests.checkpoints import full_disk
from tests.support import COLOURS, SHAPES, drawing

from opencoca.errors import CheckpointError, ConfigError, DataError
from opencoca.infer import zeroshot
from opencoca.infer.calibration import Calibration, fit
from opencoca.infer.predictor import Predictor
from opencoca.infer.zeroshot import NEUTRAL, TEMPLATES

PICTURES = [drawing(colour, shape) for colour in COLOURS for shape in SHAPES][:9]
LABELS = ["red square", "blue bar", "pink circle"]
predictor = functools.cache(lambda: tiny.predictor(seed=2, batch_size=4))


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- templates --------------------------------------------------------------------------------------------------


def test_named_templates_are_lists_of_sentences():
    for name, templates in TEMPLATES.items():
        assert len(set(templates)) == len(templates) and all(template.count("{}") == 1 for template in templates)
        close(predictor().embed_labels(LABELS, name), predictor().embed_labels(LABELS, templates), atol=0)
    photo = predictor().classify(PICTURES, LABELS, templates="photo")
    assert not torch.allclose(photo, predictor().classify(PICTURES, LABELS))


@pytest.mark.parametrize(
    ("templates", "words"), [("foto", "unknown templates 'foto'; choose plain, photo"), (("{}", 3), "needs {}")]
)
def test_bad_templates_are_refused(templates, words):
    with pytest.raises(DataError, match=words):
        predictor().classify(PICTURES[:1], LABELS, templates=templates)


def test_labels_that_differ_in_space_only_are_the_same():
    with pytest.raises(DataError, match="repeated"):
        predictor().classify(PICTURES[:1], ["cat", "cat "])
    with pytest.raises(DataError, match="must be a list"):
        predictor().classify(PICTURES[:1], 3)  # pyright: ignore[reportArgumentType]


# --- unknown and multi-label ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["contrastive", "score"])
@pytest.mark.parametrize("unknown", [True, "a green bar", ("a green bar", "yellow")])
def test_unknown_is_one_more_label_and_leaves_the_others_odds(method, unknown):
    without = predictor().classify(PICTURES, LABELS, method=method)
    found = predictor().classify(PICTURES, LABELS, unknown=unknown, method=method)
    close(found.sum(dim=1), torch.ones(9))
    assert found.shape == (9, 4) and (found > 0).all()
    close(found[:, :3] / found[:, :3].sum(dim=1, keepdim=True), without)
    assert found[:, 3].logit().std() > 0.01  # pictures differ
    more = predictor().classify(PICTURES, [*LABELS, "yellow triangle"], unknown=unknown, method=method)
    assert (more[:, 4] < found[:, 3]).all()  # another label can only take from it


def test_a_text_for_unknown_counts_like_a_label():
    close(
        predictor().classify(PICTURES, LABELS, unknown="a green bar"),
        predictor().classify(PICTURES, [*LABELS, "a green bar"]),
    )
    kinds = predictor().classify(PICTURES, LABELS, templates="drawing", unknown=True)
    scale, images = predictor().scale, predictor().embed_images(PICTURES)
    neutral = (scale * images @ predictor().embed_labels(NEUTRAL, "drawing").T).exp().mean(dim=1, keepdim=True)
    labels = (scale * images @ predictor().embed_labels(LABELS, "drawing").T).exp()
    close(kinds[:, 3:], neutral / (neutral + labels.sum(dim=1, keepdim=True)))


def test_a_label_that_is_a_general_kind_isnt_held_against_itself():
    found = zeroshot.ZeroShot(predictor(), ["Animal ", "spoon"], unknown=True)
    assert len(found._sentences) == 2 + len(NEUTRAL) - 1 and ["animal"] not in found._sentences


@pytest.mark.parametrize("method", ["contrastive", "score"])
def test_labels_are_judged_independently(method):
    found = predictor().classify(PICTURES, LABELS, multi_label=True, method=method)
    assert found.shape == (9, 3) and ((found > 0) & (found < 1)).all()
    for column, label in enumerate(LABELS):
        alone = predictor().classify(PICTURES, [label], multi_label=True, method=method)
        close(alone[:, 0], found[:, column], atol=1e-4)
        against = predictor().classify(PICTURES, [label], unknown=True, method=method)
        close(alone[:, 0], against[:, 0], atol=1e-4)
    none = predictor().classify(PICTURES, LABELS, multi_label=True, unknown=True, method=method)
    close(none[:, :3], found, atol=1e-4)
    close(none[:, 3], (1 - found).prod(dim=1), atol=1e-4)


def test_likelihoods_rank_labels():
    found = predictor().classify(PICTURES, LABELS, method="score")
    close(found, predictor().score_matrix(PICTURES, LABELS).softmax(dim=1).float(), atol=1e-4)
    both = predictor().classify(PICTURES, LABELS, method="score", templates=("{}", "small {}"))
    scores = predictor().score_matrix(PICTURES, [t.replace("{}", x) for x in LABELS for t in ("{}", "small {}")])
    close(both, (scores.exp().view(9, 3, 2).mean(dim=2).log()).softmax(dim=1).float(), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"unknown": " "}, DataError, "give True, or a text"),
        ({"unknown": ()}, DataError, "give True, or a text"),
        ({"unknown": [3]}, DataError, "give True, or a text"),
        ({"method": "best"}, ConfigError, "choose 'contrastive' or 'score'"),
        ({"calibration": Calibration("score")}, ConfigError, "fit another"),
        ({"calibration": Calibration(), "unknown": True}, ConfigError, "fit another"),
    ],
)
def test_bad_options_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        predictor().classify(PICTURES[:1], LABELS, **options)
    with pytest.raises(DataError, match="a label is named 'unknown'"):
        predictor().classify(PICTURES[:1], ["unknown", "cat"], unknown=True)


def test_nothing_gives_nothing():
    assert predictor().classify([], LABELS, unknown=True).shape == (0, 4)
    assert predictor().classify([], LABELS, multi_label=True).shape == (0, 3)


# --- calibration ------------------------------------------------------------------------------------------------


def drawn(factor, bias, unknown, multi_label, count=3000, labels=4, seed=0):
    """Logits, and truths that are drawn from factor * logits + bias: what a fit should find."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, labels + (unknown or multi_label), generator=draw)
    true = factor * logits
    if unknown or multi_label:
        true[:, -1] += bias
    targets = torch.zeros(count, labels + 1, dtype=torch.bool)
    if multi_label:
        chance = (true[:, :-1] - true[:, -1:]).sigmoid()
        targets[:, :labels] = torch.rand(chance.shape, generator=draw) < chance
        targets[:, labels] = ~targets.any(dim=1)
    else:
        rows = true.softmax(dim=1).multinomial(1, generator=draw)
        targets.scatter_(1, rows, True)
    return logits, targets


@pytest.mark.parametrize(("unknown", "multi_label"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_a_fit_finds_the_factor_and_bias_that_the_truths_were_drawn_with(factor, unknown, multi_label):
    logits, targets = drawn(factor, 1.5, unknown, multi_label)
    found = fit(logits, targets, Calibration(unknown=unknown, multi_label=multi_label))
    assert found.factor == pytest.approx(factor, rel=0.1)
    assert found.bias == pytest.approx(1.5 if unknown or multi_label else 0.0, abs=0.2)
    assert found.nll_after <= found.nll_before and found.pictures == 3000


@given(seed=st.integers(0, 999), count=st.integers(1, 12), right=st.booleans(), unknown=st.booleans())
@settings(deadline=None, max_examples=25)
def test_a_fit_on_few_pictures_is_finite_and_not_worse(seed, count, right, unknown):
    """Also where every picture is right, or every one wrong."""
    logits, targets = drawn(1.0, 0.0, unknown, False, count=count, seed=seed)
    if unknown:
        targets[0] = torch.tensor([False] * 4 + [True])
    if right and not unknown:
        targets = torch.nn.functional.one_hot(logits.argmax(dim=1), 5).bool()
    found = fit(logits, targets, Calibration(unknown=unknown))
    assert math.isfinite(found.bias) and 0.01 <= found.factor <= 100
    assert found.nll_after <= found.nll_before + 1e-6 + 1 / count  # the weak beliefs weigh less than one picture


def test_a_calibrated_predictor_uses_what_was_fitted():
    truths = [LABELS[i % 3] for i in range(9)]
    found = predictor().fit_calibration(PICTURES, LABELS, truths)
    assert found.model == predictor().fingerprint() and found.pictures == 9
    probabilities = predictor().classify(PICTURES, LABELS, calibration=found)
    nll = -probabilities[torch.arange(9), torch.arange(9) % 3].log().mean().item()
    assert nll == pytest.approx(found.nll_after, abs=1e-4) and nll < found.nll_before
    close(probabilities.argmax(dim=1), predictor().classify(PICTURES, LABELS).argmax(dim=1))  # one temperature
    with_unknown = predictor().fit_calibration(PICTURES, LABELS, [*truths[:8], None], unknown=True)
    probabilities = predictor().classify(PICTURES, LABELS, unknown=True, calibration=with_unknown)
    close(probabilities.sum(dim=1), torch.ones(9))
    lists = [[label] if i % 2 else LABELS[:2] for i, label in enumerate(truths)]
    several = predictor().fit_calibration(PICTURES, LABELS, [*lists[:8], []], multi_label=True)
    assert several.nll_after < several.nll_before
    assert predictor().fit_calibration(PICTURES[:1], LABELS, ["red square"], method="score").method == "score"


def test_a_larger_bias_makes_unknown_likelier():
    biased = [Calibration(unknown=True, bias=bias) for bias in (-2.0, 0.0, 2.0)]
    low, same, high = (predictor().classify(PICTURES, LABELS, unknown=True, calibration=one) for one in biased)
    close(same, predictor().classify(PICTURES, LABELS, unknown=True))
    assert (low[:, 3] < same[:, 3]).all() and (same[:, 3] < high[:, 3]).all()


@pytest.mark.parametrize(
    ("truths", "options", "words"),
    [
        (["dog"], {}, "'dog' is not among the labels"),
        ([None], {}, "unknown=True has a column"),
        ([["red square", "blue bar"]], {}, "multi_label=True"),
        (["red square"] * 2, {}, "2 truths for 1 pictures"),
        (["red square"], {"unknown": True}, "no picture is none of the labels"),
    ],
)
def test_bad_truths_are_refused(truths, options, words):
    with pytest.raises(DataError, match=words):
        predictor().fit_calibration(PICTURES[:1], LABELS, truths, **options)
    with pytest.raises(DataError, match="no pictures"):
        predictor().fit_calibration([], LABELS, [])


def test_a_calibration_comes_back_from_its_file_and_only_for_its_model(tmp_path):
    found = Calibration("score", True, False, 1.25, -0.5, 12, 1.0, 0.5, predictor().fingerprint())
    found.save(tmp_path / "one.json")
    assert Calibration.load(tmp_path / "one.json", found.model) == found
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]
    with pytest.raises(CheckpointError, match=r"another model .*fit it"):
        Calibration.load(tmp_path / "one.json", tiny.predictor(seed=9).fingerprint())
    with pytest.raises(CheckpointError, match="can't read"):
        Calibration.load(tmp_path / "none.json", found.model)
    with pytest.raises(CheckpointError, match=r"can't write .*one.json \(No such file.*\); choose another folder$"):
        found.save(tmp_path / "no folder" / "one.json")
    with full_disk(), pytest.raises(CheckpointError, match=r"\(No space left on device\); free some space or choose"):
        found.save(tmp_path / "one.json")
    assert Calibration.load(tmp_path / "one.json", found.model) == found
    whole = json.loads((tmp_path / "one.json").read_text())
    for damage in ({"factor": "1"}, {"factor": 0.0}, {"bias": math.nan}, {"format": "x"}, {"version": 2}):
        (tmp_path / "two.json").write_text(json.dumps(whole | damage))
        with pytest.raises(CheckpointError, match="holds no calibration"):
            Calibration.load(tmp_path / "two.json", found.model)
    for text in ("", "[]", "{}", "3"):
        (tmp_path / "two.json").write_text(text)
        with pytest.raises(CheckpointError, match="holds no calibration"):
            Calibration.load(tmp_path / "two.json", found.model)


def test_logits_that_are_not_finite_are_refused():
    logits, targets = drawn(1.0, 0.0, False, False, count=3)
    logits[1, 1] = math.nan
    with pytest.raises(DataError, match="not finite"):
        fit(logits, targets, Calibration())


def test_the_embeddings_alone_classify_alike():
    found = predictor().label_probabilities(predictor().embed_images(PICTURES), predictor().embed_labels(LABELS))
    close(found, predictor().classify(PICTURES, LABELS))
    other = Predictor(predictor().model, tiny.tokenizer(), dataclasses.replace(tiny.CONFIG, recipe="other"), 2)
    close(other.zero_shot(LABELS).probabilities(other.encode_images(PICTURES)), found)
