"""Parameter groups, optimizers and schedule."""

import dataclasses
import itertools
import math

import pytest
import torch

from opencoca import recipes
from opencoca.config import OptimConfig
from opencoca.errors import ConfigError
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.train.adafactor import Adafactor
from opencoca.train.muon import Muon
from opencoca.train.optim import (
    first_moments,
    freeze,
    layers_above,
    make_optimizers,
    schedule,
    trained_parameters,
)

TINY = recipes.tiny.tiny()


def model_of(tied: bool) -> CoCa:
    text = dataclasses.replace(TINY.model.text, tie_output=tied)
    return build(dataclasses.replace(TINY.model, text=text))


def decays(name: str, tied: bool) -> bool:
    """What the documentation says, spelt out another way than in the code: matrices decay, embeddings don't."""
    last = name.split(".")[-1]
    if "norm" in name or last in ("bias", "log_scale", "positions_PD", "positions_TD", "cls_D", "queries_QD"):
        return False
    if name == "unimodal.tokens.weight":
        return False
    assert last == "weight" and (name != "head.weight" or not tied)
    return True


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_exactly_one_group_and_only_matrices_decay(tied, kind):
    model = model_of(tied)
    config = dataclasses.replace(TINY.optim, optimizer=kind, weight_decay=0.1)
    optimizers = make_optimizers(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [
        (names[id(parameter)], group, optimizer)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert sorted(name for name, _, _ in grouped) == sorted(names.values())
    assert ("head.weight" in names.values()) != tied
    for name, group, optimizer in grouped:
        assert group["weight_decay"] == (0.1 if decays(name, tied) else 0.0), name
        by_muon = isinstance(optimizer, Muon)
        assert group["peak_lr"] == (config.muon_peak_lr if by_muon else config.peak_lr)
        assert by_muon == (kind == "muon" and decays(name, tied) and not name.startswith("head")), name
    assert any(decays(name, tied) for name in names.values())


def test_adamw_is_fused_and_takes_its_settings():
    config = dataclasses.replace(TINY.optim, beta1=0.8, beta2=0.95, eps=1e-7)
    (optimizer,) = make_optimizers(model_of(False), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["fused"] is True
        assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-7)


def test_adafactor_takes_its_settings():
    config = dataclasses.replace(TINY.optim, optimizer="adafactor", beta1=0.8, beta2=0.999)
    (optimizer,) = make_optimizers(model_of(False), config)
    assert isinstance(optimizer, Adafactor)
    for group in optimizer.param_groups:
        assert (group["beta1"], group["beta2"], group["clip_update"]) == (0.8, 0.999, 1.0)


def test_decay_pulls_on_matrices_alone():
    """With no gradient to speak of, a step moves decayed weights towards 0 and leaves the others."""
    model = model_of(False)
    (optimizer,) = make_optimizers(model, dataclasses.replace(TINY.optim, weight_decay=0.5, peak_lr=0.1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if decays(name, False) else 1.0
        torch.testing.assert_close(parameter, before[name] * factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_schedule_at_its_corners(kind):
    config = OptimConfig(steps=110, warmup_steps=10, schedule=kind)
    rates = [schedule(step, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[0] > 0 and rates[9] == 1.0 == rates[10]
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    middle, last = (0.5, 0.01) if kind == "linear" else (0.5, 0.5 * (1 - math.cos(math.pi * 0.01)))
    assert rates[60] == pytest.approx(middle) and rates[109] == pytest.approx(last) and rates[109] > 0
    assert schedule(110, config) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 1), (5, 4), (3, 0)])
def test_the_shortest_schedules_still_move(kind, steps, warmup):
    rates = [schedule(i, OptimConfig(steps=steps, warmup_steps=warmup, schedule=kind)) for i in range(steps)]
    assert max(rates) == 1.0 and all(0 < rate <= 1 for rate in rates)


FAR = {  # layers above a parameter in `recipes.tiny`: an encoder of 2 layers, 2 unimodal ones below 2 multimodal ones
    "encoder.positions_PD": 3,
    "encoder.patch.weight": 3,
    "encoder.patch.bias": 3,
    "encoder.blocks.0.mlp.up.weight": 2,
    "encoder.blocks.1.norm_self.bias": 1,
    "generative_pooler.queries_QD": 0,
    "generative_pooler.norm_context.weight": 0,
    "contrastive_pooler.attention.q.weight": 0,
    "unimodal.tokens.weight": 5,
    "unimodal.positions_TD": 5,
    "unimodal.cls_D": 5,
    "unimodal.blocks.0.mlp.up.weight": 4,
    "unimodal.blocks.1.mlp.up.weight": 3,
    "unimodal.norm_cls.weight": 0,
    "multimodal.blocks.0.cross_attention.kv.weight": 2,
    "multimodal.blocks.1.norm_cross.weight": 1,
    "multimodal.norm_out.weight": 0,
    "head.weight": 0,
    "log_scale": 0,
}


def test_layers_count_down_to_the_heads():
    vision, text = TINY.model.vision, TINY.model.text
    assert (vision.depth, text.unimodal_depth, text.multimodal_depth) == (2, 2, 2)
    above = layers_above(name for name, _ in model_of(False).named_parameters())
    assert {name: above[name] for name in FAR} == FAR
    assert set(above.values()) == {0, 1, 2, 3, 4, 5}


def test_layers_of_the_other_layout():
    """Class token, norm of the input, and cross-attention in blocks of their own."""
    layout = recipes.open_clip.layout(
        image_size_px=16, patch_size_px=8, vision_width=16, vision_depth=3, vision_heads=2, text_width=16,
        text_depth=1, multimodal_depth=2, text_heads=2, num_queries=3, pooler_heads=2, vocab_size=30,
    )  # fmt: skip
    above = layers_above(name for name, _ in build(layout).named_parameters())
    assert above["encoder.class_D"] == above["encoder.norm_input.weight"] == 4
    assert above["multimodal.picture_blocks.0.mlp.up.weight"] == above["multimodal.blocks.0.mlp.up.weight"] == 2
    assert above["unimodal.blocks.0.mlp.up.weight"] == 3
    assert above["image_projection.weight"] == above["text_projection.weight"] == 0


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_layer_decay_lowers_the_rates_of_lower_layers(kind):
    model = model_of(False)
    config = dataclasses.replace(TINY.optim, optimizer=kind, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: group["peak_lr"]
        / (config.muon_peak_lr if isinstance(optimizer, Muon) else config.peak_lr)
        for optimizer in make_optimizers(model, config)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert set(rates) == set(names.values())
    assert {name: rates[name] for name in FAR} == {name: 0.5**above for name, above in FAR.items()}


def test_frozen_parts_get_no_gradient_no_optimizer_and_no_average():
    model = model_of(False)
    config = dataclasses.replace(TINY.optim, optimizer="muon", frozen=("encoder", "unimodal.blocks.1"))
    freeze(model, config)
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {n for n, _ in model.named_parameters() if n.startswith(("encoder.", "unimodal.blocks.1."))}
    grouped = {
        id(p) for optimizer in make_optimizers(model, config) for g in optimizer.param_groups for p in g["params"]
    }
    assert grouped == {id(parameter) for parameter in trained_parameters(model).values()}
    assert set(trained_parameters(model)) == {name for name, _ in model.named_parameters()} - still


def test_a_part_is_frozen_by_its_whole_name():
    deep = dataclasses.replace(TINY.model.vision, depth=11)
    model = build(dataclasses.replace(TINY.model, vision=deep))
    freeze(model, dataclasses.replace(TINY.optim, frozen=("encoder.blocks.1",)))
    assert model.get_parameter("encoder.blocks.10.mlp.up.weight").requires_grad
    assert not model.get_parameter("encoder.blocks.1.mlp.up.weight").requires_grad


def test_a_tied_head_freezes_the_tokens():
    model = model_of(True)
    freeze(model, dataclasses.replace(TINY.optim, frozen=("head",)))
    assert not model.unimodal.tokens.weight.requires_grad


def test_freezing_says_what_there_is():
    parts = "encoder, generative_pooler, contrastive_pooler, unimodal, multimodal, head"
    with pytest.raises(ConfigError, match=rf"'vision'.*log_scale.*{parts}"):
        freeze(model_of(False), dataclasses.replace(TINY.optim, frozen=("vision",)))
    with pytest.raises(ConfigError, match="nothing to train"):
        freeze(model_of(False), dataclasses.replace(TINY.optim, frozen=(*parts.split(", "), "log_scale")))
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizers(model_of(False).requires_grad_(False), TINY.optim)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_what_an_optimizer_keeps_is_known_before_its_first_step(kind):
    wide = dataclasses.replace(TINY.model.text, vocab_size=128, width=132)
    model = build(dataclasses.replace(TINY.model, text=wide))
    optimizers = make_optimizers(model, dataclasses.replace(TINY.optim, optimizer=kind))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        expected = {p: first_moments(optimizer, p) for group in optimizer.param_groups for p in group["params"]}
        optimizer.step()
        for parameter, tensors in expected.items():
            kept = optimizer.state[parameter]
            assert {n: (t.shape, t.dtype) for n, t in kept.items()} == {
                n: (t.shape, t.dtype) for n, t in tensors.items()
            }
