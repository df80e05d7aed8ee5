"""Easy-VQA, idx files and built statements: splits that don't leak, labels that are right, damage that is named."""

import gzip
import io
import json
import struct
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support import png

from opencoca import recipes
from opencoca.data import easy_vqa, idx, statements
from opencoca.data.prompts import asked
from opencoca.data.questions import open_questions
from opencoca.data.shards import Sample, ShardWriter
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import DataError
from opencoca.eval.questions import majority

# --- idx --------------------------------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name, count in (("train", 40), ("t10k", 10)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", generator.integers(0, 256, (count, 9, 9), np.uint8))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_idx_pictures_keep_every_pixel_and_their_label(mnist: Path) -> None:
    assert idx.is_idx(mnist) and not idx.is_idx(mnist / "none")
    source = idx.open_idx(mnist, "test")
    sample = source[7]
    assert (sample.caption, sample.attributes) == ("a photo of the seven", {"label": "seven"})
    raw = gzip.decompress((mnist / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    assert np.asarray(Image.open(io.BytesIO(sample.picture))).tobytes() == raw[7 * 81 : 8 * 81]


def test_val_is_a_tenth_of_train_and_neither_is_in_the_other(mnist: Path) -> None:
    train, val = idx.open_idx(mnist, "train"), idx.open_idx(mnist, "val")
    assert (len(train), len(val), len(idx.open_idx(mnist, "test"))) == (36, 4, 10)
    pictures = [{source[i].picture for i in range(len(source))} for source in (train, val)]
    assert not pictures[0] & pictures[1] and train.fingerprint != val.fingerprint


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "can't be read"),
        (
            lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 9, 9, 9))),
            "holds 0 numbers",
        ),
        (lambda path: path.write_bytes(gzip.compress(b"GIF89a")), "is no idx file"),
        (lambda path: path.unlink(), "has no t10k-images-idx3-ubyte.gz"),
        (lambda path: write_idx(path, np.zeros((3, 9, 9), np.uint8)), "has 3 pictures and 10 labels"),
    ],
)
def test_damaged_idx_files_are_named(mnist: Path, damage, told: str) -> None:
    damage(mnist / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=told):
        idx.open_idx(mnist, "test")


def test_a_split_that_is_none_is_refused(mnist: Path) -> None:
    with pytest.raises(DataError, match="its splits are: train, test, val"):
        idx.open_idx(mnist, "dev")
    with pytest.raises(DataError, match="has the label 9, and 2 names"):
        idx.open_idx(mnist, "test", ("a", "b"))


# --- Easy-VQA ---------------------------------------------------------------------------------------------------


def wheel(path: Path) -> Path:
    """A wheel of Easy-VQA's form: 48 pictures, with a question for the shape and one for the colour of most."""
    asked = []
    for i in range(48):
        shape, colour = easy_vqa.SHAPES[i % 3], easy_vqa.COLOURS[i % 8]
        asked.append((f"what is the {colour} shape?", shape, i))
        if i % 6 == 0:
            asked.append((f"is there not a {colour} shape?", "no", i))
        elif i < 40:
            asked.append(("what color is the shape?", colour, i))
    asked.append(("is there a red shape?", "no", 99))  # which tells neither
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("train", "test"):
            archive.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(asked))
            for picture in (*range(48), 99):
                pixels = np.full((8, 8, 3), picture, np.uint8)
                archive.writestr(f"easy_vqa/data/{split}/images/{picture}.png", png(pixels))
    return path


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is wanted; fetch it by pip download easy-vqa"):
        easy_vqa.prepare(tmp_path / "out", wheel(tmp_path / "w.whl"))
    with pytest.raises(DataError, match="is wanted"):
        easy_vqa.prepare(tmp_path / "out", tmp_path / "none.whl")
    assert not (tmp_path / "out").exists()


def test_held_out_pairs_are_in_no_picture_of_training(tmp_path: Path, monkeypatch) -> None:
    import hashlib

    path = wheel(tmp_path / "w.whl")
    monkeypatch.setattr(easy_vqa, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    prepared = easy_vqa.prepare(tmp_path / "out", path)
    held_out = set(prepared.held_out)
    assert len(held_out) == 4 and len({colour for _, colour in held_out}) == 4
    table = str(tmp_path / "out" / "pairs.csv")

    def pairs(split: str) -> set[tuple[str, str]]:
        pictures = {int(Path(q.pictures[0]).stem) for q in open_questions(table, split).questions}
        return {(easy_vqa.SHAPES[i % 3], easy_vqa.COLOURS[i % 8]) for i in pictures}

    assert pairs("test_pairs") == held_out
    for split in ("train", "val", "test"):
        assert not pairs(split) & held_out
    assert {shape for shape, _ in pairs("train")} == set(easy_vqa.SHAPES)
    assert {colour for _, colour in pairs("train")} == set(easy_vqa.COLOURS)
    assert "pictures/train/99.png" not in (tmp_path / "out/pairs.csv").read_text(), "it may show a held-out pair"
    whole = open_questions(str(tmp_path / "out"))
    assert len(whole) == sum(prepared.questions.values()) and "pictures/train/99.png" in str(whole.questions)
    train, val = (
        {q.pictures for q in open_questions(str(tmp_path / "out"), split).questions} for split in ("train", "val")
    )
    assert val and not train & val


# --- statements -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with the annotations of OpenMoji's: every gender in every tone and in none, on grey squares."""
    folder = tmp_path_factory.mktemp("emoji")
    with ShardWriter(folder) as writer:
        for split in ("train", "val", "test_pictures", "test_combinations"):
            for gender in ("man", "woman", "person"):
                for tones in ([], *([tone] for tone in statements.TONE_NAMES)):
                    key = f"{split}-{gender}-{'-'.join(tones) or 'none'}"
                    writer.add(
                        split, key, png(np.full((4, 4, 3), 9, np.uint8)), gender, {"gender": gender, "tones": tones}
                    )
            two = {"gender": "man", "tones": ["light", "dark"]}
            writer.add(split, f"{split}-two", png(np.full((4, 4, 3), 9, np.uint8)), "two men", two)
            writer.add(split, f"{split}-cat", png(np.full((4, 4, 3), 9, np.uint8)), "cat", {"gender": "", "tones": []})
    return folder


def annotated(path: str) -> tuple[str, str]:
    *_, gender, tone = (Path(path).stem.replace("medium-", "medium_")).split("-")
    return gender, "" if tone == "none" else tone.replace("_", "-")


def test_statements_about_two_pictures_are_as_true_as_they_say(emoji: Path, tmp_path: Path) -> None:
    counts = statements.build(tmp_path / "pairs", emoji, "pairs")
    assert counts == statements.SIZES
    for split in counts:
        for question in open_questions(str(tmp_path / "pairs"), split).questions:
            assert all(Path(path).stem.startswith(statements.SPLITS[split]) for path in question.pictures)
            (_, left), (_, right) = map(annotated, question.pictures)
            text = question.text
            if "same" in text:
                truth = left == right
            else:
                tone = text.removesuffix(" skin").split(" ")[-1]
                matches = [left == tone, right == tone]
                truth = all(matches) if "both" in text else sum(matches) == 1 if "only one" in text else matches[0]
            assert question.answers == (str(truth).lower(),), question


def test_statements_about_one_picture_are_as_right_as_they_say(emoji: Path, tmp_path: Path) -> None:
    statements.build(tmp_path / "triples", emoji, "triples")
    for question in open_questions(str(tmp_path / "triples")).questions:
        gender, tone = annotated(question.pictures[0])
        if " is a " in question.text:
            said, shown, is_open = question.text.split(" ")[-1], gender, gender == "person"
        else:
            said, shown, is_open = question.text.split(" ")[-2], tone, not tone
        label = "neutral" if is_open else "entailment" if said == shown else "contradiction"
        assert question.answers == (label,), question


@pytest.mark.parametrize(("kind", "chance"), [("pairs", 1 / 2), ("triples", 1 / 3)])
def test_statements_alone_are_worth_chance(emoji: Path, tmp_path: Path, kind, chance: float) -> None:
    statements.build(tmp_path / kind, emoji, kind)
    train, test = (open_questions(str(tmp_path / kind), split) for split in ("train", "test"))
    assert majority(train, test).figures["accuracy"] == pytest.approx(chance, abs=0.04)


def test_statements_come_out_the_same_again_and_from_nothing_else(emoji: Path, tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        statements.build(tmp_path / name, emoji, "triples")
        texts.append((tmp_path / name / "questions.csv").read_bytes())
    assert texts[0] == texts[1]
    with ShardWriter(tmp_path / "other") as writer:
        writer.add("train", *Sample("a", png(np.full((4, 4, 3), 9, np.uint8)), "a cat", {})[:4])
    with pytest.raises(DataError, match="give the shards of OpenMoji"):
        statements.build(tmp_path / "none", tmp_path / "other", "pairs")


def test_every_statement_fits_the_context_of_the_quickstarts_model() -> None:
    text = (resources.files("opencoca.data") / "openmoji_tokenizer.json").read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_json(text, name="openmoji_tokenizer.json")
    room = recipes.openmoji.quickstart().model.text.context_length - 2
    pairs = [template.format(tone) for template in statements.PAIRS for tone in statements.TONE_NAMES]
    triples = [f"the person has {tone} skin" for tone in statements.TONE_NAMES]
    for answer, said in [("false", pairs), ("contradiction", triples)]:
        assert max(len(tokenizer.encode(f"{asked(one)} {answer}")) for one in said) <= room
