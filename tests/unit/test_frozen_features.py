"""Linear probe and nearest neighbours on frozen features; recognition as an evaluation; damaged pictures in both."""

import dataclasses

import pytest
import torch
from tests.support import SHAPES, MemorySource, drawing, png, tiny_tokenizer

from opencoca import recipes
from opencoca.config import HeadConfig
from opencoca.data.sample import Sample
from opencoca.errors import DataError
from opencoca.eval.frozen import Split, features, linear_probe, neighbours
from opencoca.eval.questions import QuestionEvaluation, majority
from opencoca.eval.recognition import RecognitionEvaluation
from opencoca.infer.predictor import Predictor
from opencoca.model.init import build

LABELS = tuple(sorted(SHAPES))


class Source(MemorySource):
    """A list with what evaluations ask of a source beside samples."""

    fingerprint, skipped, shards = "made here", (("gone.png", "it was gone before"),), ()


def predictor(*heads: HeadConfig, size: int = 3) -> Predictor:
    config = recipes.tiny.tiny()
    text = dataclasses.replace(config.model.text, context_length=64)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text, heads=heads))
    return Predictor(build(config.model, 3).requires_grad_(False), tiny_tokenizer(), config, batch_size=size)


def source(*damaged: int) -> Source:
    items = [
        Sample(f"{colour}-{shape}", png(drawing(colour, shape)), shape, {})
        for colour in ("red", "blue", "green")
        for shape in SHAPES
    ]
    for i in damaged:
        items[i] = items[i]._replace(picture=items[i].picture[:40])
    return Source(items)


def clouds(count: int, seed: int, spread: float = 0.5) -> Split:
    """Three classes whose means lie in the first two of six dimensions, of unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (count,), generator=generator)
    means = torch.tensor([[1.0, 0.0], [-0.5, 0.87], [-0.5, -0.87]])
    inputs = spread * torch.randn(count, 6, generator=generator)
    inputs[:, :2] += 2 * means[targets]
    return Split(inputs * torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0, 0.01]), targets)


def test_the_linear_probe_is_near_the_best_that_is_possible() -> None:
    measured = linear_probe(clouds(300, 0), clouds(200, 1), clouds(2000, 2), 3)
    assert measured.test > 0.97 and measured.right.shape == (2000,)
    assert measured.test == pytest.approx(measured.right.double().mean().item())


def test_the_penalty_is_chosen_on_val_and_not_on_test() -> None:
    train, val = clouds(30, 0, 1.5), clouds(500, 1, 1.5)
    flipped = Split(clouds(500, 2, 1.5).inputs, (clouds(500, 2, 1.5).targets + 1) % 3)
    ours, theirs = (linear_probe(train, val, test, 3) for test in (clouds(500, 2, 1.5), flipped))
    assert ours.chosen == theirs.chosen and ours.val == theirs.val and ours.test > theirs.test


def test_neighbours_vote() -> None:
    train = Split(torch.tensor([[1.0, 0.0], [0.98, 0.2], [0.9, 0.43], [0.0, 1.0]]), torch.tensor([1, 0, 0, 2]))
    test = Split(torch.tensor([[1.0, 0.01], [0.1, 1.0]]), torch.tensor([1, 2]))
    one = neighbours(train, test, test, 3, counts=(1,))
    assert one.test == 1.0 and one.right.tolist() == [True, True]
    three = neighbours(train, test, test, 3, counts=(3,))
    assert three.right.tolist() == [False, True], "two of the three nearest say otherwise"
    assert neighbours(train, test, test, 3, counts=(1, 3, 50)).chosen == 1, "more than there are can't be asked"


def test_features_are_the_embedding_and_the_mean_of_the_tokens() -> None:
    coca, pictures = predictor(), source(4)
    found = features(coca, pictures)
    assert found.rows == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11] and found.skipped[0][0] == "blue-square"
    images = [pictures[row].picture for row in found.rows]
    assert torch.allclose(found.embeds, coca.embed_images(images), atol=1e-6)
    seen = []
    handle = coca.model.encoder.register_forward_hook(lambda _, __, tokens: seen.append(tokens.mean(dim=1)))
    coca.embed_images(images)
    handle.remove()
    assert torch.allclose(found.means, torch.cat(seen), atol=1e-6)
    assert not coca.model.encoder._forward_hooks, "the hook is gone"
    with pytest.raises(DataError, match="none of 12 pictures can be read"):
        features(coca, source(*range(12)))


def test_recognition_names_what_it_leaves_out() -> None:
    coca = predictor(HeadConfig("shapes", LABELS))
    pictures = source(4)
    result = RecognitionEvaluation("val", pictures, [item.caption for item in pictures.items])(coca)
    assert result.sample_ids == [key for key in pictures.keys if key != "blue-square"]
    assert result.facts["skipped"]["count"] == 2 and "gone.png: it was gone before" in result.facts["skipped"]["first"]
    best = coca.recognise([pictures[row].picture for row in range(12) if row != 4]).argmax(dim=1).tolist()
    truths = [item.caption for item in pictures.items if item.key != "blue-square"]
    expected = [float(LABELS[guess] == truth) for guess, truth in zip(best, truths, strict=True)]
    assert result.per_sample["acc1"].tolist() == expected
    assert result.figures["acc1"] == pytest.approx(sum(expected) / 11)


def test_labels_that_the_head_does_not_know_count_as_wrong() -> None:
    coca, pictures = predictor(HeadConfig("shapes", LABELS)), source()
    whole = RecognitionEvaluation("val", pictures, [item.caption for item in pictures.items])(coca)
    renamed = ["star" if item.caption == "bar" else item.caption for item in pictures.items]
    result = RecognitionEvaluation("val", pictures, renamed)(coca)
    assert result.facts["labels_not_known"] == ["star"] and result.facts["samples"] == 12
    bars = [i for i, label in enumerate(renamed) if label == "star"]
    assert result.per_sample["acc1"][bars].sum() == 0
    assert result.per_sample["acc1"].sum() <= whole.per_sample["acc1"].sum()


# --- questions --------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path):
    """Questions about three drawings, one of which is damaged, one missing."""
    from opencoca.data.questions import open_questions

    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(png(drawing("red" if name == "a" else "blue", "bar")))
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    rows = ["picture,question,answer,kind,split"]
    rows += ["a.png,red?,yes,yes/no,train", "a.png,red?,yes,yes/no,train", "b.png,red?,no,yes/no,train"]
    rows += ["a.png,red?,no,yes/no,test", "b.png,red?,Yes,yes/no,test", "b.png,colour?,blue,colour,test"]
    rows += ["c.png,red?,no,yes/no,test", "d.png,red?,no,yes/no,test", f"a.png,{'red ' * 60}?,no,yes/no,test"]
    (tmp_path / "questions.csv").write_text("\n".join(rows) + "\n")
    return open_questions(str(tmp_path), "train"), open_questions(str(tmp_path), "test")


def test_the_question_alone_gives_its_most_frequent_answer(asked) -> None:
    train, test = asked
    result = majority(train, test)
    assert result.per_sample["accuracy"].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0], "an unknown question gets 'yes'"
    assert result.figures == {
        "accuracy": pytest.approx(1 / 6),
        "accuracy/colour": 0.0,
        "accuracy/yes/no": pytest.approx(1 / 5),
    }


@pytest.mark.parametrize("how", ["classify", "generate", "choose"])
def test_questions_that_cannot_be_asked_are_named(asked, how) -> None:
    coca = predictor(HeadConfig("vqa", ("no", "yes"), "decoder"))
    result = QuestionEvaluation("test", asked[1], how, choices=("no", "yes", "blue"))(coca)
    assert result.sample_ids == [f"questions.csv line {line}" for line in (5, 6, 7)]
    first = result.facts["skipped"]["first"]
    assert result.facts["skipped"]["count"] == 3 and len(first) == 3
    assert [line.partition(":")[0] for line in sorted(first)] == [f"questions.csv line {n}" for n in (10, 8, 9)]
    if how == "classify":
        assert result.facts["outside_vocabulary"]["count"] == 1
        assert result.facts["outside_vocabulary"]["first"] == ["questions.csv line 7: its answer is 'blue'"]
        pictures = [f"{asked[1].root}/{name}.png" for name in ("a", "b", "b")]
        answers = coca.answer(pictures, ["red?", "red?", "colour?"])
        expected = [float(a == t) for a, t in zip(answers, ("no", "yes", "blue"), strict=True)]
        assert result.per_sample["accuracy"].tolist() == expected


def test_the_likeliest_choice_is_the_one_that_score_prefers(asked) -> None:
    from opencoca.data.prompts import asked as prompt
    from opencoca.eval.questions import answer_all

    coca, choices = predictor(), ("no", "yes", "blue", "on the left")
    answers, _ = answer_all(coca, asked[1], "choose", choices=choices)
    picture = f"{asked[1].root}/b.png"
    scores = coca.score_matrix(picture, [f"{prompt('colour?')} {one}" for one in choices])
    assert answers["questions.csv line 7"] == choices[int(scores.argmax())]
    with pytest.raises(DataError, match="give a column `choices`"):
        answer_all(coca, asked[1], "choose")


# --- in the suite -----------------------------------------------------------------------------------------------


def test_both_evaluations_can_be_asked_for_by_name(asked, tmp_path) -> None:
    from opencoca.eval.registry import EVALUATIONS, Options, Place, make

    for shape in SHAPES:
        (tmp_path / "labels" / shape).mkdir(parents=True)
        (tmp_path / "labels" / shape / "red.png").write_bytes(png(drawing("red", shape)))
    coca = predictor(HeadConfig("shapes", LABELS), HeadConfig("vqa", ("no", "yes"), "decoder"))
    places = {"labels": Place(tmp_path / "labels"), "questions": Place(tmp_path, "test")}
    found = {name: make(name, places, Options())(coca) for name in ("labels/recognition", "questions/vqa")}
    assert set(found) <= set(EVALUATIONS)
    assert found["labels/recognition"].facts["samples"] == 4 and found["questions/vqa"].facts["samples"] == 3
    limited = make("questions/vqa", places, Options(limit=2))(coca)
    assert limited.facts["samples"] + limited.facts["skipped"]["count"] == 2
