"""Recipes: names, the paper's sizes on the meta device, and what only some of them have."""

from functools import cache

import pytest
import torch

from opencoca import recipes
from opencoca.errors import ConfigError
from opencoca.model.coca import CoCa

PAPER = ("paper.base", "paper.large", "paper.coca")


@cache
def on_meta(name: str) -> CoCa:
    with torch.device("meta"):
        return CoCa(recipes.get(name).model)


def millions(model: CoCa, *parts: str) -> float:
    """Parameters of these parts in millions; a tensor that two parts share counts once."""
    return sum(p.numel() for name, p in model.named_parameters() if name.split(".")[0] in parts) / 1e6


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "total", "poolers", "within"),
    [
        ("paper.base", 86, 297, 383, 4.9, 1.0),
        ("paper.large", 303, 484, 787, 8.7, 1.0),
        ("paper.coca", 1010, 1090, 2100, 16.2, 5.0),  # printed as 1.01B, 1.09B, 2.10B
    ],
)
def test_the_papers_sizes(name: str, encoder: int, decoder: int, total: int, poolers: float, within: float) -> None:
    model = on_meta(name)
    measured_encoder = millions(model, "encoder")
    measured_decoder = millions(model, "unimodal", "multimodal", "head")
    measured_poolers = millions(model, "generative_pooler", "contrastive_pooler")
    assert measured_encoder == pytest.approx(encoder, abs=within)
    assert measured_decoder == pytest.approx(decoder, abs=within)
    assert measured_encoder + measured_decoder == pytest.approx(total, abs=within)
    assert measured_poolers == pytest.approx(poolers, abs=0.06)
    everything = sum(p.numel() for p in model.parameters())
    temperature = 1
    assert everything == round((measured_encoder + measured_decoder + measured_poolers) * 1e6) + temperature
    assert all(p.is_meta for p in model.parameters()), "2.1B parameters would take 8 GB"


@pytest.mark.parametrize("name", PAPER)
def test_only_the_largest_ties_its_output(name: str) -> None:
    model = on_meta(name)
    tied = model.head.weight is model.unimodal.tokens.weight
    assert tied == (name == "paper.coca")
    assert ("head.weight" in dict(model.named_parameters())) != tied


@pytest.mark.parametrize(
    ("name", "encoder", "halves", "heads"),
    [("paper.base", 12, 12, 12), ("paper.large", 24, 12, 16), ("paper.coca", 40, 18, 16)],
)
def test_the_papers_shapes(name: str, encoder: int, halves: int, heads: int) -> None:
    """Depths and heads one by one: the counts above leave room for 11 + 13, and don't see the heads."""
    model = on_meta(name)
    depths = [len(part.blocks) for part in (model.encoder, model.unimodal, model.multimodal)]
    assert depths == [encoder, halves, halves]
    config = recipes.get(name).model
    assert (config.vision.num_heads, config.text.num_heads) == (heads, heads)
    assert config.vision.grid**2 == 256
    assert (config.pooler.num_queries, config.pooler.arrangement) == (256, "cascade")
    assert (config.text.vocab_size, config.init_temperature) == (64_000, 0.07)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_training_settings(name: str) -> None:
    config = recipes.get(name)
    optim = config.optim
    assert (config.loss.contrastive_weight, config.loss.captioning_weight) == (1.0, 2.0)
    assert (optim.steps, optim.peak_lr, optim.schedule) == (500_000, 8e-4, "linear")
    assert optim.warmup_steps == 0.02 * optim.steps
    assert (optim.beta1, optim.beta2, optim.weight_decay) == (0.9, 0.999, 0.01)
    assert config.data.batch_size == 65_536


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_carries_its_own_name_and_makes_a_new_config_each_time(name: str) -> None:
    assert recipes.get(name).recipe == name
    assert recipes.get(name) == recipes.get(name)
    assert recipes.RECIPES[name].__doc__


def test_tiny_is_tiny_but_has_every_part() -> None:
    config = recipes.tiny.tiny().model
    assert sum(p.numel() for p in on_meta("tiny").parameters()) < 200_000
    assert config.vision.width != config.text.width, "equal widths would hide a mix-up"
    assert config.vision.num_heads != config.text.num_heads
    assert config.text.unimodal_depth >= 2 and config.text.multimodal_depth >= 2
    assert config.pooler.num_queries not in (1, config.vision.grid, config.vision.grid**2)


def test_the_quickstart_is_small_enough_for_a_laptop() -> None:
    assert 1e6 < sum(p.numel() for p in on_meta("openmoji").parameters()) < 20e6


@pytest.mark.parametrize(("typed", "meant"), [("paper.bas", "paper.base"), ("openmojy", "openmoji"), ("Tiny", "tiny")])
def test_an_unknown_name_gets_the_nearest_and_the_list(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipes.get(typed)
    message = str(error.value)
    assert f"no recipe is called {typed!r}; did you mean {meant!r}?" in message
    assert all(name in message for name in recipes.RECIPES)


def test_a_name_like_no_other_gets_the_list_only() -> None:
    with pytest.raises(ConfigError, match=r"'xyzzyq'; there are: .*paper\.large"):
        recipes.get("xyzzyq")
