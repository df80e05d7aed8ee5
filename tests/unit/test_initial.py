"""Initial weights: a higher resolution, another model, published towers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.support import tiny_config, tiny_loader, write_shards

from opencoca import checkpoint, recipes, weights
from opencoca.cli.info import describe
from opencoca.cli.main import main
from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, ConfigError
from opencoca.jobs.initial import from_model, from_towers, with_tokenizer_of
from opencoca.loading import open_model
from opencoca.model.init import build
from opencoca.train.loop import train
from opencoca.train.state import Start
from opencoca.train.task import Pretraining
from opencoca.types import Batch

TOWERS = Path(__file__).parents[1] / "parity" / "data" / "towers"


def changed(config: Config, part: str, **fields) -> Config:
    model = dataclasses.replace(config.model, **{part: dataclasses.replace(getattr(config.model, part), **fields)})
    return dataclasses.replace(config, model=model)


def of_layout(class_token: bool) -> Config:
    return changed(tiny.CONFIG, "vision", class_token=class_token)


def pictures(size_px: int) -> torch.Tensor:
    return torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("size_px", [8, 24, 32])
def test_resized_positions_are_those_of_run_time(size_px: int, class_token: bool) -> None:
    """A stage at another picture size begins with exactly what the model before it computes at that size."""
    config = of_layout(class_token)
    model, larger = build(config.model), changed(config, "vision", image_size_px=size_px).model
    stored = weights.resized_positions(dict(model.named_parameters()), larger)
    resized = weights.model_with(larger, stored, "test")
    assert len(resized.encoder.positions_PD) == (size_px // 4) ** 2 + class_token
    pixels = pictures(size_px)
    assert torch.equal(resized.encode_image(pixels).embed, model.encode_image(pixels).embed)
    moved = {name for name, tensor in stored.items() if tensor is not model.get_parameter(name)}
    assert moved == {"encoder.positions_PD"}


def test_positions_of_the_same_size_stay() -> None:
    stored = dict(build(tiny.CONFIG.model).named_parameters())
    same = weights.resized_positions(stored, tiny.CONFIG.model)["encoder.positions_PD"]
    assert torch.equal(same, stored["encoder.positions_PD"])
    assert weights.resized_positions({"a": torch.ones(1)}, tiny.CONFIG.model).keys() == {"a"}


def test_positions_of_no_square_grid_are_refused() -> None:
    with_class = of_layout(True).model
    with pytest.raises(CheckpointError, match=r"positions_PD has shape \[16, 32\].*behind a class token.*class_token"):
        weights.resized_positions({"encoder.positions_PD": torch.ones(16, 32)}, with_class)


@torch.no_grad()
def test_a_run_begins_with_another_models_weights_at_a_larger_size(tmp_path: Path) -> None:
    source = tiny.save_model(tmp_path / "small", seed=1)
    config = changed(tiny.CONFIG, "vision", image_size_px=32, max_patches=20)
    model = build(config.model, seed=2)
    from_model(source, config, tiny.tokenizer())(model)
    before = build(changed(tiny.CONFIG, "vision", max_patches=20).model, seed=1)
    assert torch.equal(model.encode_image(pictures(32)).embed, before.encode_image(pictures(32)).embed)
    assert torch.equal(model.head.weight, before.head.weight) and model.head.weight.requires_grad


def test_another_model_or_tokenizer_is_refused(tmp_path: Path) -> None:
    source = tiny.save_model(tmp_path / "small")
    with pytest.raises(ConfigError, match=r"model\.text\.unimodal_depth 2 instead of 1") as caught:
        from_model(source, changed(tiny.CONFIG, "text", unimodal_depth=1))
    assert "image_size_px" not in str(caught.value)

    class Other:
        fingerprint = "other"

    with pytest.raises(ConfigError, match=rf"another tokenizer.*data\.tokenizer={source / checkpoint.TOKENIZER}"):
        from_model(source, tiny.CONFIG, Other())  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match="doesn't exist"):
        from_model(tmp_path / "none", tiny.CONFIG)


def test_a_run_that_begins_with_a_model_takes_its_tokenizer_and_says_so(tmp_path: Path, capsys) -> None:
    data, run, source = write_shards(tmp_path / "data"), tmp_path / "run", tiny.save_model(tmp_path / "source", seed=3)
    words = ["train", "tiny", "--run", str(run), "--data", str(data), "--from", str(source)]
    settings = ["run.device=cpu", "run.checkpoint_every_steps=2", "optim.warmup_steps=0"]
    assert tiny.CONFIG.data.tokenizer == "train"
    with_its_own = with_tokenizer_of(source, tiny.CONFIG)
    assert with_its_own.data.tokenizer == str(source / checkpoint.TOKENIZER)
    named = tiny.CONFIG.with_values(["data.tokenizer=openmoji"])
    assert with_tokenizer_of(source, named) == named, "a tokenizer that was asked for stays"
    assert main([*words, "--plan", "--set", *settings]) == 0 and not run.exists()
    assert main([*words, "--set", "optim.steps=2", *settings]) == 0
    latest = checkpoint.latest_checkpoint(run)
    assert latest is not None
    assert Tokenizer.load(latest / checkpoint.TOKENIZER).fingerprint == tiny.tokenizer().fingerprint
    assert checkpoint.load(latest).state["initialised_from"] == str(source)
    shutil.rmtree(source)  # a run that goes on needs it no more
    assert main([*words, "--set", "optim.steps=2", *settings]) == 0
    capsys.readouterr()
    assert main(["info", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["initialised_from"] == str(source)


def test_where_the_first_weights_are_from_survives_a_resume(tmp_path: Path) -> None:
    config = tiny_config(write_shards(tmp_path / "data"), optim={"steps": 4}, run={"checkpoint_every_steps": 2})
    task, loader = Pretraining(config.model, config.loss), tiny_loader(config, tiny.tokenizer())
    start = Start("somewhere", lambda model: None)

    class Interrupted(Pretraining):
        def forward_flops(self, batch: Batch) -> int:  # is asked once a step
            self.asked = getattr(self, "asked", 0) + 1
            if self.asked == 3:
                raise KeyboardInterrupt
            return 0

    stopping = Interrupted(config.model, config.loss)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", stopping, loader, tiny.tokenizer(), prepare=start)
    state = train(config, tmp_path / "run", task, tiny_loader(config, tiny.tokenizer()), tiny.tokenizer())
    assert (state.step, state.initialised_from) == (4, "somewhere")
    fresh = train(config, tmp_path / "drawn", task, tiny_loader(config, tiny.tokenizer()), tiny.tokenizer())
    assert fresh.initialised_from == ""
    assert describe(open_model(tmp_path / "drawn"))["initialised_from"] == "random weights"


def towers_config() -> Config:
    """The sizes of the tiny CLIP under tests/parity/data/towers, in which all else is `recipes.tiny`."""
    config = changed(
        tiny.CONFIG, "vision", image_size_px=24, width=16, depth=2, num_heads=2, mlp_width=32, class_token=True,
        norm_input=True,
    )  # fmt: skip
    return changed(
        config, "text", vocab_size=30, context_length=9, width=18, unimodal_depth=2, num_heads=3, mlp_width=30
    )


def test_both_towers_begin_as_published_and_the_rest_as_drawn() -> None:
    config, said = towers_config(), []
    model, drawn = build(config.model), build(config.model)
    from_towers(TOWERS / "clip", TOWERS / "clip", config, said.append)(model)
    same = {n for n, parameter in model.named_parameters() if torch.equal(parameter, drawn.get_parameter(n))}
    pooled = ("generative_pooler", "contrastive_pooler", "multimodal", "head", "log_scale")
    drawn_names = {n for n, _ in model.named_parameters() if n.startswith(pooled)}
    assert same == drawn_names | {"unimodal.cls_D", "encoder.patch.bias"}
    assert len(said) == 2 and all(str(TOWERS / "clip") in note for note in said)
    assert "6x6" in said[0] and "pixels.mean=[0.48145466,0.4578275,0.40821073]" in said[1]
    settings = said[1].partition("--set ")[2].split()
    assert config.with_values(settings).pixels.mean == recipes.open_clip.CLIP_MEAN


def test_one_tower_alone_and_a_model_of_other_sizes() -> None:
    config = towers_config()
    model, drawn = build(config.model), build(config.model)
    prepare = from_towers(None, TOWERS / "clip", config)
    prepare(model)
    assert torch.equal(model.encoder.patch.weight, drawn.encoder.patch.weight)
    assert not torch.equal(model.unimodal.tokens.weight, drawn.unimodal.tokens.weight)
    with pytest.raises(CheckpointError, match="doesn't fit the model: unimodal"):
        prepare(build(tiny.CONFIG.model))
    with pytest.raises(ConfigError, match="vocab_size 30 instead of 320"):
        from_towers(None, TOWERS / "clip", changed(config, "text", vocab_size=320))
