"""What a resumed run must be: the settings, data and tokenizer it began with, and undamaged."""

import pytest
from tests import short_runs
from tests.short_runs import CrashError, Watched, assert_same, fail, final, short
from tests.support import samples, train_tiny, write_shards

from opencoca import checkpoint
from opencoca.data.shards import ShardWriter
from opencoca.data.tokenizer import train_tokenizer
from opencoca.errors import CheckpointError

shards, light, undisturbed = short_runs.shards, short_runs.light, short_runs.undisturbed


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("optim", "peak_lr", 1e-4),
        ("optim", "steps", 13),
        ("optim", "ema_decay", 0.0),
        ("loss", "captioning_weight", 1.0),
        ("pixels", "fit", "pad"),
        ("run", "seed", 1),
        ("data", "batch_size", 9),
        ("data", "max_shift_px", 2),
        ("data", "text_buckets", 1),
        ("data", "train_split", "val"),
    ],
)
def test_other_settings_are_refused_by_name(shards, undisturbed, section, field, value):
    config = short(shards, **{section: {field: value}})
    before = (undisturbed / "config.json").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        train_tiny(config, undisturbed)
    old = getattr(getattr(short(shards), section), field)
    assert f"{section}.{field}: {old} -> {value}" in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert (undisturbed / "config.json").read_bytes() == before


def test_settings_that_change_nothing_may_change(shards, tmp_path, undisturbed):
    config = short(shards)
    with pytest.raises(CrashError):
        train_tiny(config, tmp_path / "run", task=Watched(config, 8, fail(CrashError())))
    write_shards(tmp_path / "moved")
    run = {"log_every_steps": 3, "eval_every_steps": 0, "checkpoint_every_steps": 2, "keep_checkpoints": 1}
    train_tiny(short(tmp_path / "moved", run=run), tmp_path / "run")
    assert_same(final(tmp_path / "run"), final(undisturbed))


def test_other_data_and_another_tokenizer_are_refused(shards, tmp_path, undisturbed):
    with ShardWriter(tmp_path / "fewer") as writer:
        for sample in samples()[:50]:
            writer.add("train", *sample[:4])
    with pytest.raises(CheckpointError, match="trained on other pairs"):
        train_tiny(short(tmp_path / "fewer"), undisturbed)
    other = train_tokenizer([sample.caption for sample in samples()], 300, "bpe")
    with pytest.raises(CheckpointError, match=r"another tokenizer\.json"):
        train_tiny(short(shards), undisturbed, tokenizer=other)


def test_a_run_whose_latest_is_damaged_is_refused(shards, tmp_path):
    config = short(shards)
    with pytest.raises(CrashError):
        train_tiny(config, tmp_path / "run", task=Watched(config, 8, fail(CrashError())))
    path = checkpoint.resolve(tmp_path / "run") / checkpoint.TRAINING
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=checkpoint.TRAINING):
        train_tiny(config, tmp_path / "run")
