"""Questions about pictures: tables, the official files, and what is wrong with rows, each by its name."""

import json
from pathlib import Path

import pytest
from tests.support import COLOURS, drawing, png, tiny_tokenizer

from opencoca.data.loader import PairLoader
from opencoca.data.pixels import normalised, open_picture, to_square
from opencoca.data.prompts import asked
from opencoca.data.questions import open_questions
from opencoca.errors import DataError
from opencoca.jobs.vqa import Options
from opencoca.jobs.vqa import _open as held_apart
from opencoca.recipes.tiny import tiny


def table(folder: Path, *rows: str, name: str = "questions.csv") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_a_table_with_splits(tmp_path: Path) -> None:
    table(
        tmp_path,
        "picture,question,answer,split,kind,shade",
        "a.png,Is it red?,yes,train,yes/no,1",
        'b.png,"What, then?",blue,validation,colour,2',
    )
    both = open_questions(str(tmp_path))
    assert both.splits == ("train", "val") and len(both) == 2 and both.pictures == 1
    (one,) = open_questions(str(tmp_path), "val").questions
    assert (one.key, one.pictures, one.text) == ("questions.csv line 3", ("b.png",), "What, then?")
    assert (one.answers, one.kind, one.prompt) == (("blue",), "colour", "question: What, then? answer:")
    with pytest.raises(DataError, match=r"no split 'test'; its splits are: train, val"):
        open_questions(str(tmp_path), "test")


def test_every_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    table(
        tmp_path,
        "picture,question,answer",
        "a.png,Is it red?,yes",
        "b.png,,yes",
        "c.png,Why?,",
        ",Why?,yes",
        "../d.png,Why?,yes",
        "e.png,Why?",
        "f.png,Why?,-",
    )
    source = open_questions(str(tmp_path))
    assert len(source) == 1
    assert source.skipped == [
        ("questions.csv line 3", "its question is empty"),
        ("questions.csv line 4", "it has no answer"),
        ("questions.csv line 5", "it names no picture"),
        ("questions.csv line 6", "its path '../d.png' leads out of the folder (..)"),
        ("questions.csv line 7", "it has 2 cells, the header 3"),
        ("questions.csv line 8", "it has no answer"),
    ]


@pytest.mark.parametrize("missing", ["picture", "question", "answer"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    columns = [name for name in ("picture", "question", "answer") if name != missing]
    table(tmp_path, ",".join(columns), "a,b")
    with pytest.raises(DataError, match=rf"no column of {missing}s \(its columns: {', '.join(columns)}\); call it"):
        open_questions(str(tmp_path))


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_questions(str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"put a questions\.csv there"):
        open_questions(str(tmp_path))
    table(tmp_path, "picture,question,answer", "a.png,Why?,")
    with pytest.raises(DataError, match=r"none of 1 could be used; the first: questions\.csv line 2: it has no answer"):
        open_questions(str(tmp_path))


def test_annotators_choices_and_ids_of_json_lines(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "Why?", "answers": ["x", "x", "y"], "choices": ["x", "z"], "id": 7}
    table(tmp_path, json.dumps(row), json.dumps(row), name="vqa.jsonl")
    source = open_questions(str(tmp_path))
    (one,) = source.questions
    assert (one.key, one.answers, one.choices) == ("7", ("x", "x", "y"), ("x", "z"))
    assert source.skipped == [("7", "another question has the same key")]


def test_vqa_v2_as_it_comes(tmp_path: Path) -> None:
    questions = [
        {"question_id": 1, "image_id": 42, "question": "What colour?"},
        {"question_id": 2, "image_id": 42, "question": "Where?"},
        {"question_id": 3, "question": "No picture?"},
    ]
    answers = [{"answer": "red", "answer_id": n} for n in range(1, 11)]
    annotations = [{"question_id": 1, "image_id": 42, "answers": answers, "answer_type": "other"}]
    for name, content in (
        ("v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": questions}),
        ("v2_mscoco_val2014_annotations.json", {"data_subtype": "val2014", "annotations": annotations}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    source = open_questions(str(tmp_path), "val", "/pictures")
    (one,) = source.questions
    assert one.pictures == ("COCO_val2014_000000000042.jpg",) and source.root == "/pictures"
    assert (one.key, one.answers, one.kind) == ("1", ("red",) * 10, "other")
    assert source.skipped[0] == (
        "v2_OpenEnded_mscoco_val2014_questions.json entry 1",
        "it has no answer in the annotations",
    )
    assert len(source.skipped) == 2 and "KeyError 'image_id'" in source.skipped[1][1]
    with pytest.raises(DataError, match="no split 'train'"):
        open_questions(str(tmp_path), "train")


def test_snli_ve_and_nlvr2_as_they_come(tmp_path: Path) -> None:
    snli = [
        {"Flickr30K_ID": "123", "sentence2": "A dog.", "gold_label": label} for label in ("neutral", "-", "entailment")
    ]
    table(tmp_path / "ve", *map(json.dumps, snli), name="snli_ve_dev.jsonl")
    source = open_questions(str(tmp_path / "ve"), pictures="/flickr")
    assert [one.answers for one in source.questions] == [("neutral",), ("entailment",)]
    assert source.questions[0].pictures == ("123.jpg",) and len(source.skipped) == 1
    nlvr = {"identifier": "dev-850-0-0", "sentence": "Two dogs.", "label": "False"}
    table(tmp_path / "nlvr", json.dumps(nlvr), name="dev.json".replace("json", "jsonl"))
    source = open_questions(str(tmp_path / "nlvr"))
    assert source.questions[0].pictures == ("dev-850-0-img0.png", "dev-850-0-img1.png") and source.pictures == 2


def pairs(folder: Path) -> Path:
    folder.mkdir()
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "black")):
        (folder / f"{name}.png").write_bytes(png(drawing(colour, "bar")))
    return table(
        folder, "picture,picture2,statement,label", "a.png,b.png,both are red,false", "b.png,c.png,one is blue,true"
    )


def test_a_loader_reads_both_pictures_of_a_statement(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "data")
    source, config = open_questions(str(folder)), tiny()
    sample = source[0]
    assert sample.caption == f"{asked('both are red')} false" and len(sample.pictures) == 2
    for workers in (0, 1):
        loader = PairLoader(
            source,
            tiny_tokenizer(),
            batch_size=2,
            image_size_px=16,
            context_length=60,
            pixels=config.pixels,
            seed=0,
            pictures=2,
            workers=workers,
        )
        batch = loader.batch(0)
        loader.close()
        assert batch.pixels.shape == (2, 6, 16, 16)
        row = batch.keys.index("questions.csv line 2")
        for number, name in enumerate(("a", "b")):
            square = to_square(open_picture((folder / f"{name}.png").read_bytes()), 16, config.pixels)
            own = batch.pixels[row, 3 * number : 3 * number + 3]
            assert (own.permute(1, 2, 0).numpy() == square).all()
            assert (
                normalised(batch.pixels, config.pixels)[row, 3 * number :][:3]
                == normalised(own[None], config.pixels)[0]
            ).all()


def test_samples_with_another_number_of_pictures_are_skipped(tmp_path: Path) -> None:
    source = open_questions(str(pairs(tmp_path / "data")))
    loader = PairLoader(
        source, tiny_tokenizer(), batch_size=2, image_size_px=16, context_length=60, pixels=tiny().pixels, seed=0
    )
    with pytest.raises(DataError, match="has 2 pictures, and 1 are read"):
        loader.batch(0)


def test_rows_with_one_picture_among_pairs_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    table(folder, '{"image": "a.png", "image2": "b.png", "statement": "x", "label": "true"}', name="a.jsonl")
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"image": "a.png", "image2": null, "statement": "x", "label": "true"}\n')
    source = open_questions(str(folder))
    assert len(source) == 1 and source.skipped == [("a.jsonl line 2", "it names no picture")]


@pytest.mark.parametrize("answer", [*COLOURS, "no", "on the left"])
def test_a_prompt_is_the_beginning_of_its_caption(answer: str) -> None:
    from opencoca.data.clip_tokenizer import ClipTokenizer

    for tokenizer in (tiny_tokenizer(), ClipTokenizer.published()):
        prompt = tokenizer.encode(asked("What colour is it?"))
        assert tokenizer.encode(f"{asked('What colour is it?')} {answer}")[: len(prompt)] == prompt


def test_the_same_pictures_are_held_out_wherever_they_lie(tmp_path: Path) -> None:
    held_out = []
    for folder, absolute in ((tmp_path / "here", False), (tmp_path / "there", False), (tmp_path / "full", True)):
        folder.mkdir()
        paths = [folder / f"{i}.png" if absolute else f"{i}.png" for i in range(60)]
        (folder / "questions.csv").write_text("picture,question,answer\n" + "".join(f"{p},red?,no\n" for p in paths))
        train, val, _ = held_apart(str(folder), Options())
        assert len(train) + len(val) == 60
        held_out.append([Path(question.pictures[0]).name for question in val.questions])
    assert held_out[0] and held_out[0] == held_out[1] == held_out[2]
