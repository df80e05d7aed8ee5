"""What is drawn for the decoder, in training: by the loader, in resumed runs, in counts and in other models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests import published
from tests import tiny as tiny_model
from tests.decoder_draws import (
    ALL,
    IDS,
    PARALLEL,
    PIXELS,
    VALID,
    batch_of,
    changed,
    fields_of,
    uniform,
)
from tests.pairs import make
from tests.support import rows, samples, tiny_config, tiny_tokenizer, train_tiny, write_shards
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from opencoca import checkpoint, recipes
from opencoca.interop.open_clip_folder import read_folder, write_folder
from opencoca.jobs.initial import from_model
from opencoca.model.init import build
from opencoca.model_card import Origin
from opencoca.train.task import Pretraining
from opencoca.types import DecoderDraws, TextBucket

# --- draws of the loader ------------------------------------------------------------------------------------------


def test_draws_are_each_samples_own() -> None:
    options = {"parallel_share": 0.3, "word_noise": True, "query_noise": 5}
    whole = make(samples(), 3, batch_size=72, **options).batch(0)
    own = {key: [part[row] for part in whole.decoder_draws] for row, key in enumerate(whole.keys)}
    assert whole.word_noise.shape == (72, whole.ids.shape[1] - 1) and whole.query_noise.shape == (72, 5)
    for start in (0, 8, 40):
        some = make(samples(), 3, batch_size=8, **options).batch(start)
        length = some.ids.shape[1] - 1
        for row, key in enumerate(some.keys):
            parallel, words, queries = own[key]
            assert some.parallel[row] == parallel and torch.equal(some.query_noise[row], queries)
            assert torch.equal(some.word_noise[row, :length], words[:length])
    epochs = [make(samples(), 3, batch_size=72, **options).batch(72 * epoch) for epoch in range(40)]
    share = torch.stack([batch.parallel.double().mean() for batch in epochs]).mean().item()
    assert share == pytest.approx(0.3, abs=0.03)
    firsts = {batch.keys.index("red-square-0"): batch for batch in epochs}
    assert {bool(batch.parallel[row]) for row, batch in firsts.items()} == {True, False}, "anew in each epoch"
    together = torch.stack([whole.word_noise[:, 0], whole.query_noise[:, 0]])
    assert abs(torch.corrcoef(together)[0, 1]) < 0.3


def test_a_run_learns_and_goes_on_from_its_checkpoint_alike(tmp_path: Path) -> None:
    config = tiny_config(
        write_shards(tmp_path / "data"), optim={"steps": 8}, run={"checkpoint_every_steps": 4, "keep_checkpoints": 5}
    ).with_values([f"model.{name}={value}" for name, value in ALL.items()])
    whole = train_tiny(config, tmp_path / "whole")
    first, *_ = rows(tmp_path / "whole")
    assert whole.metrics["captioning"] < 0.7 * first["captioning"]
    before = build(config.model, config.run.seed).multimodal.mask_TD
    assert before is not None and not torch.equal(whole.model.multimodal.mask_TD, before)
    steps = sorted(path for path in (tmp_path / "whole").rglob("*") if (path / checkpoint.STATE).is_file())
    (tmp_path / "again").mkdir()
    steps[0].rename(tmp_path / "again" / steps[0].name)
    again = train_tiny(config, tmp_path / "again")
    assert again.step == 8
    for (name, ours), theirs in zip(again.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


# --- counting, other models and layouts ---------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"text.token_drop": 0.5}, {"pooler.train_queries": 2}, ALL])
def test_the_utilisation_counts_what_torch_counts(fields: dict[str, float]) -> None:
    config = changed(**fields_of(fields))
    drawn = DecoderDraws(
        PARALLEL if config.text.parallel_share else None,
        uniform(4, 5) if config.text.token_drop else None,
        uniform(4, 5) if config.pooler.train_queries else None,
    )
    order = VALID.sum(1).argsort(stable=True)
    buckets = (TextBucket(0, 2, 3), TextBucket(2, 3, 5), TextBucket(3, 4, 6))
    batch = batch_of(drawn.__class__(*(None if x is None else x[order] for x in drawn)), buckets)
    batch = batch._replace(pixels=PIXELS.float(), ids=IDS[order], valid=VALID[order])
    task = Pretraining(config, recipes.tiny.tiny().loss)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.loss(build(config), batch)
    similarities = 2 * 4 * 4 * config.embed_dim
    assert task.forward_flops(batch) == counter.get_total_flops() - similarities
    plain = batch._replace(parallel=None, word_noise=None, query_noise=None)
    assert task.forward_flops(batch) < Pretraining(changed(), recipes.tiny.tiny().loss).forward_flops(plain)


def test_masks_are_dropped_or_drawn_where_another_model_begins(tmp_path: Path) -> None:
    with_masks = dataclasses.replace(tiny_model.CONFIG, model=changed(text_parallel_share=0.5))
    trained, plain = build(with_masks.model, seed=1), build(tiny_model.CONFIG.model, seed=2)
    checkpoint.save(tmp_path / "masks", with_masks, tiny_tokenizer(), dict(trained.named_parameters()))
    checkpoint.save(tmp_path / "plain", tiny_model.CONFIG, tiny_tokenizer(), dict(plain.named_parameters()))
    for source, config, masks in (
        ("masks", tiny_model.CONFIG, None),
        ("plain", with_masks, build(with_masks.model, seed=3).multimodal.mask_TD),
        ("masks", dataclasses.replace(tiny_model.CONFIG, model=changed(**fields_of(ALL))), trained.multimodal.mask_TD),
    ):
        model = build(config.model, seed=3)
        from_model(tmp_path / source, config, tiny_tokenizer())(model)
        assert torch.equal(model.head.weight, (trained if source == "masks" else plain).head.weight)
        assert (masks is None and model.multimodal.mask_TD is None) or torch.equal(model.multimodal.mask_TD, masks)


def test_the_published_layout_keeps_the_model_and_not_the_options(tmp_path: Path) -> None:
    layout = published.config().model
    config = changed(layout, text_parallel_share=0.75, text_token_drop=0.5, pooler_train_queries=1)
    whole = recipes.open_clip.settings("some", config)
    folder, model = tmp_path / "model", build(config)
    write_folder(folder, model, whole, published.tokenizer(), Origin("a test"))
    again = read_folder(folder)
    assert again.config.model == layout and again.model.multimodal.mask_TD is None
    assert torch.equal(again.model.head.weight, model.head.weight)
