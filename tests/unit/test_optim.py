"""Parameter groups, optimizers and schedule."""

import dataclasses
import itertools
import math

import pytest
import torch

from opencoca import recipes
from opencoca.config import OptimConfig
from opencoca.model.init import build
from opencoca.train.muon import Muon
from opencoca.train.optim import make_optimizers, schedule

TINY = recipes.tiny.tiny()


def model_of(tied: bool):
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


@pytest.mark.parametrize("kind", ["adamw", "muon"])
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
        hidden = decays(name, tied) and not name.startswith(("head", "encoder.patch"))
        assert by_muon == (kind == "muon" and hidden), name
    assert any(decays(name, tied) for name in names.values())


def test_adamw_is_fused_and_takes_its_settings():
    config = dataclasses.replace(TINY.optim, beta1=0.8, beta2=0.95, eps=1e-7)
    (optimizer,) = make_optimizers(model_of(False), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["fused"] is True
        assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-7)


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
