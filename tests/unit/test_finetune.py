"""Fine-tuning's parts: no copy on both sides, weights in between, collapse, and memory that runs out."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny
from tests.support import MemorySource, drawing, png, samples, tiny_config, tiny_loader, tiny_tokenizer, write_shards

from opencoca.config_training import RunConfig
from opencoca.data.groups import joined
from opencoca.data.sample import Sample
from opencoca.errors import ConfigError, DataError, TrainingError
from opencoca.jobs import finetune_train as job
from opencoca.jobs.finetune_data import Chosen, Held, held, split_as_told, split_by_picture
from opencoca.jobs.finetune_measure import (
    HeldOutEvaluation,
    best_alpha,
    collapse,
    fitted_scale,
    interpolated,
    measure,
    unlearnt,
)
from opencoca.losses import contrastive_loss
from opencoca.model.init import build
from opencoca.train import loop


@functools.cache
def plain(colour: int) -> bytes:
    return png(np.full((4, 4, 3), colour, dtype=np.uint8))


def sample(number: int, colour: int, caption: str = "", **attributes) -> Sample:
    return Sample(f"sample-{number}", plain(colour), caption or f"caption {number}", attributes)


class Source(MemorySource):
    fingerprint = "of the test"
    skipped = ()
    shards = (range(0),)


def held_out(captions: list[str]) -> Held:
    source = Source([sample(i, i, caption) for i, caption in enumerate(captions)])
    return held(Chosen(source, range(len(source))), 16, tiny.CONFIG.pixels)


# --- the split --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), min_size=40, max_size=120), st.floats(0.05, 0.5))
def test_a_picture_is_on_one_side_only(colours, share):
    source = Source([sample(i, colour) for i, colour in enumerate(colours)])
    try:
        split = split_by_picture(source, share)
    except DataError as error:  # nearly all are copies of one
        assert max(map(colours.count, colours)) > len(colours) / 4, error
        return
    sides = [{part[i].picture for i in range(len(part))} for part in (split.train, split.val)]
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == len(set(colours))
    assert len(split.train) + len(split.val) == len(colours) and len(split.val) >= 5


def test_the_split_depends_on_the_pictures_and_not_on_their_order_or_names():
    source = [sample(i, i) for i in range(100)]
    mixed = random.Random(0).sample(source, len(source))
    renamed = [one._replace(key=f"other-{i}", caption=f"words {i}") for i, one in enumerate(mixed)]
    first, second = (split_by_picture(Source(items), 0.2) for items in (source, renamed))
    pictures = [{split.val[i].picture for i in range(len(split.val))} for split in (first, second)]
    assert pictures[0] == pictures[1] and len(first.val) == 20


def test_pictures_of_one_concept_stay_together():
    source = Source([sample(i, i, concept=f"concept {i // 4}") for i in range(80)])
    split = split_by_picture(source, 0.2)
    sides = [{part[i].attributes["concept"] for i in range(len(part))} for part in (split.train, split.val)]
    assert sides[0].isdisjoint(sides[1]) and len(split.val) == 16


def test_told_splits_are_kept_but_for_copies():
    train, val = Source([sample(i, i) for i in range(30)]), Source([sample(50 + i, 20 + i) for i in range(20)])
    split = split_as_told(train, val)
    assert len(split.train) == 30 and len(split.val) == 10
    assert [key for key, _ in split.skipped] == [f"sample-{50 + i}" for i in range(10)]


def test_what_cannot_be_read_is_on_neither_side_and_named():
    class Broken(Source):
        def __getitem__(self, index: int) -> Sample:
            if index % 10 == 3:
                raise DataError("it is gone")
            return super().__getitem__(index)

    split = split_by_picture(Broken([sample(i, i) for i in range(50)]), 0.2)
    assert [key for key, _ in split.skipped] == [f"sample-{i}" for i in (3, 13, 23, 33, 43)]
    assert len(split.train) + len(split.val) == 45


def test_rows_are_joined_however_many_steps_apart():
    assert joined([("b", "x"), ("c", "y"), ("a", "x", "y"), ("d",)]) == ["a", "a", "a", "d"]


# --- figures ----------------------------------------------------------------------------------------------------


def test_a_shared_caption_is_right_for_each_of_its_pictures():
    colours = [drawing(colour, "square") for colour in ("red", "blue", "red", "green")]
    source = Source(
        [
            Sample(f"{i}", png(image), caption, {})
            for i, (image, caption) in enumerate(zip(colours, "abac", strict=True))
        ]
    )
    measured = measure(tiny.predictor(), held(Chosen(source, range(4)), 16, tiny.CONFIG.pixels))
    assert measured.text_embeds.shape[0] == 3 and len(measured.captions) == 4
    assert measured.figures["i2t_recall@5"] == measured.figures["t2i_recall@5"] == 1.0
    assert set(measured.figures) == {
        *(f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5)),
        "cider_d",
        "bleu_4",
    }


def test_collapse_is_one_caption_for_most_pictures_unless_the_truth_is_so():
    held = held_out([f"a {word}" for word in "abcdefghij"])
    assert collapse([f"a {word}" for word in "abcdefghij"], held) is None
    assert collapse(["a cat"] * 5 + [f"a {word}" for word in "abcde"], held) is None
    assert "6 of 10 held-out pictures get the same caption, 'a cat'" in str(
        collapse(["a cat"] * 6 + list("abcd"), held)
    )
    assert collapse(["a dog"] * 8 + ["b", "c"], held_out(["a dog"] * 7 + ["x", "y", "z"])) is None


def test_the_loop_says_that_captions_collapse():
    said: list[str] = []
    model = build(tiny.CONFIG.model)
    with torch.no_grad():
        for block in model.multimodal.blocks:  # blind to the picture
            block.cross_attention.out.weight.zero_()  # pyright: ignore
    evaluation = HeldOutEvaluation(held_out([f"a {c}" for c in "abcdefgh"]), tiny.tokenizer(), tiny.CONFIG, said.append)
    figures = dict(evaluation(model.requires_grad_(False)))
    assert "cider_d" in figures and len(said) == 1 and "8 of 8 held-out pictures" in said[0]


# --- weights in between -----------------------------------------------------------------------------------------


def test_the_ends_are_exactly_the_two_models_and_the_middle_is_between():
    original, tuned = (dict(build(tiny.CONFIG.model, seed).named_parameters()) for seed in (0, 1))
    for alpha, wanted in ((0.0, original), (1.0, tuned)):
        assert all(torch.equal(t, wanted[n]) for n, t in interpolated(original, tuned, alpha).items())
    middle = interpolated(original, tuned, 0.25)
    assert all(torch.allclose(t, original[n] + 0.25 * (tuned[n] - original[n]), atol=1e-6) for n, t in middle.items())
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="--wise"):
            interpolated(original, tuned, alpha)


def figures_with(cider: float, recall: float, keep: float = 0.8) -> dict[str, float]:
    return {"cider_d": cider, "keep": keep} | {f"{w}_recall@{k}": recall for w in ("i2t", "t2i") for k in (1, 5)}


def test_of_several_alphas_the_best_captioner_that_finds_no_less_is_kept():
    before = figures_with(0.1, 0.5)
    by_alpha = {0.25: figures_with(0.3, 0.5), 0.5: figures_with(0.4, 0.6), 1.0: figures_with(0.9, 0.4)}
    assert best_alpha(before, by_alpha) == 0.5
    assert best_alpha(before, {1.0: by_alpha[1.0]}) == 1.0
    assert best_alpha(before, {0.5: figures_with(0.4, 0.4), 1.0: figures_with(0.9, 0.3)}) == 0.5


def test_unlearning_is_told():
    before = figures_with(0.1, 0.5, keep=0.8)
    assert unlearnt(before, figures_with(0.1, 0.5, keep=0.601)) is None
    assert "fell from 80.0% to 59.9%" in str(unlearnt(before, figures_with(0.1, 0.5, keep=0.599)))
    assert unlearnt({}, {}) is None


def test_the_temperature_suits_pictures_that_the_model_does_not_know():
    predictor = tiny.predictor()
    some = held_out([f"a {word}" for word in "abcdefgh"])
    with torch.no_grad():
        predictor.model.log_scale.fill_(4.6)
    texts, images = predictor.embed_texts(some.texts), predictor.encode_images(some.pictures).embed
    scale = fitted_scale(predictor, some)
    losses = [contrastive_loss(images, texts, images, texts, torch.tensor([s])).item() for s in (scale, 99.0)]
    assert 1 <= scale < 50 and losses[0] <= 2 * math.log(8) + 0.1 < losses[1]


# --- memory -----------------------------------------------------------------------------------------------------


def test_running_out_of_memory_is_told_from_other_errors():
    full = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(full), MemoryError()):
        assert job.is_out_of_memory(error)
    for error in (RuntimeError("shapes don't fit"), ValueError("can't allocate memory")):
        assert not job.is_out_of_memory(error)


def fits(monkeypatch: pytest.MonkeyPatch, most: int, error: BaseException, from_step: int = 0) -> list[int]:
    """Makes a step run out of memory with more than `most` pairs at a time; lists the micro-batches that were tried."""
    tried: list[int] = []
    usual = loop.update
    monkeypatch.setattr(loop, "matmul_rate", lambda *_, **__: 1e12)  # it takes longer than these trainings

    def update(state, task, batch, config, *others, **more):
        size = config.run.micro_batch or len(batch.keys)
        if not tried or tried[-1] != size:
            tried.append(size)
        if size > most and state.step >= from_step:
            raise error
        return usual(state, task, batch, config, *others, **more)

    monkeypatch.setattr(loop, "update", update)
    return tried


def run_within_memory(folder: Path, said: list[str]):
    data = folder / "data"
    config = tiny_config(data if data.exists() else write_shards(data), optim={"steps": 8})
    config = dataclasses.replace(config, run=RunConfig(device="cpu", checkpoint_every_steps=2, tensorboard=False))
    tokenizer = tiny_tokenizer()
    evaluation = HeldOutEvaluation(held_out([f"a {word}" for word in "abcdefgh"]), tokenizer, config, lambda line: None)
    loader = tiny_loader(config, tokenizer)
    return job.train_within_memory(
        config, folder / "run", loader, tokenizer, evaluation, lambda model: None, said.append
    )


def test_the_micro_batch_is_halved_until_it_fits(tmp_path, monkeypatch):
    said: list[str] = []
    tried = fits(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"), from_step=3)
    state = run_within_memory(tmp_path, said)
    assert state.step == 8 and tried == [8, 4, 2]
    assert [line.split(" pairs")[0] for line in said] == ["memory ran out with 8", "memory ran out with 4"]


def test_a_smaller_micro_batch_ends_with_the_same_weights(tmp_path, monkeypatch):
    usual = run_within_memory(tmp_path / "usual", []).weights()
    fits(monkeypatch, 4, MemoryError(), from_step=5)
    halved = run_within_memory(tmp_path / "halved", []).weights()
    differences = [(usual[name] - halved[name]).abs().max().item() for name in usual]
    assert max(differences) < 3e-4, max(differences)  # 5e-5: Adam divides the smallest gradients by their own size


def test_when_one_pair_is_too_much_it_says_so_and_other_errors_fly(tmp_path, monkeypatch):
    fits(monkeypatch, 0, MemoryError())
    with pytest.raises(TrainingError, match="one pair at a time"):
        run_within_memory(tmp_path / "a", [])
    fits(monkeypatch, 0, RuntimeError("shapes don't fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        run_within_memory(tmp_path / "b", [])


def write_table(folder: Path, count: int | None = None) -> Path:
    """The drawings of `support.samples` as files, and a table of their captions."""
    folder.mkdir(parents=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption"])
        for one in samples()[:count]:
            (folder / f"{one.key}.png").write_bytes(one.picture)
            rows.writerow([f"{one.key}.png", one.caption])
    return folder / "captions.csv"
