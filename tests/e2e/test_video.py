"""Clips whose label stands in one frame of twelve: training beats the mean of the frames, and the commands work."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support import drawing, tiny_config, tiny_tokenizer

from opencoca import checkpoint
from opencoca.cli.main import main as coca
from opencoca.data.clips import read_table
from opencoca.data.sprite_clips import SpriteClip, write_table
from opencoca.errors import DataError
from opencoca.eval.registry import Options as EvaluationOptions
from opencoca.eval.video import VideoCaptions, VideoRecognition, VideoRetrieval, linear_accuracy
from opencoca.infer.video import embed_videos
from opencoca.jobs.video import Options, train_videos
from opencoca.loading import load
from opencoca.model.init import build

FRAMES = 12
LABELS = ("bar", "square")
OTHERS = ("green", "blue", "yellow", "black")


def clip(split: str, number: int) -> SpriteClip:
    """Of the shapes in all frames, the only red one is the label."""
    chance = random.Random(f"{split}/{number}")
    shown = [(chance.choice(OTHERS), chance.choice(LABELS)) for _ in range(FRAMES)]
    label = LABELS[number % 2]
    shown[chance.randrange(FRAMES)] = "red", label
    return SpriteClip(f"{split}-{number:03d}", label, np.stack([_frame(*one, chance) for one in shown]))


def _frame(colour: str, shape: str, chance: random.Random) -> np.ndarray:
    """A drawing somewhere, among specks: else the mean of a few embeddings, always the same, tells their numbers."""
    frame = np.roll(np.asarray(drawing(colour, shape)), (chance.randint(-3, 3), chance.randint(-3, 3)), axis=(0, 1))
    specks = np.random.default_rng(chance.randrange(2**32)).integers(0, 120, frame.shape)
    return (frame.astype(int) - specks).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny model with random weights."""
    folder = tmp_path_factory.mktemp("base") / "model"
    config = tiny_config(folder)
    model = build(config.model, 0)
    checkpoint.save(folder, config, tiny_tokenizer(), dict(model.named_parameters()), None, {"step": 0, "metrics": {}})
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    made = {"train": [clip("train", i) for i in range(96)], "val": [clip("val", i) for i in range(40)]}
    return write_table(folder, made, as_files=False)


def test_training_finds_the_frame_that_decides(table, base, tmp_path, capsys):
    options = Options(frames=FRAMES, steps=80, rate=1e-2, smoothing=0.0)
    outcome = train_videos(table, tmp_path / "run", base, options, say=lambda line: None)
    predictor = load(base)
    parts = {}
    for split in ("train", "val"):
        clips = read_table(table, split).clips
        truths = torch.tensor([LABELS.index(one.label) for one in clips])
        parts[split] = embed_videos(predictor, clips, FRAMES), truths
    baseline, _ = linear_accuracy(parts["train"], parts["val"], parts["val"])
    assert outcome.figures["acc1"] >= baseline + 0.1, (outcome.figures, baseline)
    assert outcome.figures["acc1"] >= 0.9

    trained = load(tmp_path / "run")
    evaluated = VideoRecognition("clips/recognition", read_table(table, "val").clips, frames=FRAMES)(trained)
    assert evaluated.figures == outcome.figures and evaluated.facts["classes"] == len(LABELS)
    assert evaluated.per_sample["acc1"].mean().item() == evaluated.figures["acc1"]
    renamed = [one._replace(label="zebra") for one in read_table(table, "val").clips[:2]]
    unknown = VideoRecognition("clips/recognition", renamed, frames=FRAMES)(trained)
    assert unknown.figures["acc1"] == 0 and unknown.facts["labels_not_known"] == ["zebra"]
    capsys.readouterr()
    (tmp_path / "bad.mp4").write_bytes(b"broken")
    one = read_table(table, "val").clips[0]
    words = ["video", "recognise", str(one.path), str(tmp_path / "bad.mp4"), "--frames", "12"]
    assert coca([*words, "--model", str(tmp_path / "run")]) == 3
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{one.path}\t{one.label}\t") and "bad.mp4" in shown.err


def test_clips_have_captions_and_vectors(table, base, tmp_path, capsys):
    path = str(read_table(table, "val").clips[0].path)
    assert coca(["video", "caption", path, "--model", str(base)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}\t")
    assert coca(["video", "embed", path, "--model", str(base), "--output", str(tmp_path / "e.npz")]) == 0
    stored = np.load(tmp_path / "e.npz")
    torch.testing.assert_close(
        torch.from_numpy(stored["embeddings"]), embed_videos(load(base), path), atol=1e-5, rtol=0
    )
    assert coca(["video", "train", str(table)]) == 2


def test_retrieval_counts_what_does_not_decode(table, base):
    clips = read_table(table, "val").clips
    broken = clips[0]._replace(path=Path("/nowhere.mp4"), key="broken")
    result = VideoRetrieval("clips/retrieval", [broken, *clips], frames=4)(load(base))
    assert result.facts["skipped"]["count"] == 1 and "broken" in result.facts["skipped"]["first"][0]
    assert result.facts["clips"] == len(clips) == len(result.sample_ids) and result.facts["texts"] == 2
    assert result.figures["v2t_recall@5"] == 1.0 and 0 <= result.figures["t2v_recall@1"] <= 1


def test_captions_of_clips_are_compared_with_those_of_the_table(table, base, monkeypatch):
    clips = [clip._replace(caption=f"a {clip.label} moves") for clip in read_table(table, "val").clips[:4]]
    broken = clips[0]._replace(path=Path("/nowhere.mp4"), key="broken")
    evaluation = VideoCaptions("clips/captions", [broken, *clips], [], EvaluationOptions(beams=1))
    measured = evaluation(load(base))
    assert measured.facts["skipped"]["count"] == 1 and measured.sample_ids == [clip.key for clip in clips]
    assert measured.figures["rouge_l"] < 1.0

    def told(predictor, given, frames, on_bad, *, beams):
        on_bad(given[0], DataError("is gone"))
        yield from ((clip, clip.caption) for clip in given[1:])

    monkeypatch.setattr("opencoca.eval.video.caption_videos", told)
    assert evaluation(load(base)).figures["rouge_l"] == 1.0
