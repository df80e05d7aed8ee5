"""Weights laid out for decoding: the same numbers in another order, which nothing but speed can tell."""

import dataclasses

import pytest
import torch
from torch import nn

from opencoca import recipes
from opencoca.config import GenerationConfig
from opencoca.data.tokenizer import SpecialIds
from opencoca.infer.generate import generate
from opencoca.model import decode_native
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.model.layout import lay_out_for_decoding

IDS = torch.tensor([[1, 7, 9, 2], [1, 8, 2, 0]])
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def frozen(tie_output: bool = False) -> CoCa:
    config = recipes.tiny.tiny().model
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, tie_output=tie_output))
    return build(config).requires_grad_(False)


def turned(model: CoCa) -> set[str]:
    return {name for name, weight in model.named_parameters() if not weight.is_contiguous()}


def test_decoder_matrices_are_turned_and_nothing_else_changes() -> None:
    model, plain = frozen(), frozen()
    lay_out_for_decoding(model)
    decoder = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(("unimodal", "multimodal", "head"))
    }
    assert turned(model) == decoder and len(decoder) == 2 * 5 + 2 * 8 + 1
    for name, weight in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    with torch.no_grad():
        for ours, theirs in zip(model(PIXELS, IDS, IDS > 0), plain(PIXELS, IDS, IDS > 0), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # worst 5e-7


def test_it_is_done_once() -> None:
    model = frozen()
    lay_out_for_decoding(model)
    places = [weight.data_ptr() for weight in model.parameters()]
    lay_out_for_decoding(model)
    assert places == [weight.data_ptr() for weight in model.parameters()]


def test_a_model_in_training_is_left_alone() -> None:
    model = frozen().requires_grad_()
    generate(model, torch.zeros(1, 5, 48), SpecialIds(), GenerationConfig(beams=1, max_tokens=2))
    assert not turned(model)


def test_generation_lays_out_and_the_model_can_be_trained_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the caller is in inference mode; a fused optimizer then gives the same weights."""
    monkeypatch.setattr(decode_native, "library", lambda: None)  # it has a layout of its own, beside the model's
    model, plain = frozen(), frozen()
    with torch.inference_mode():
        generate(model, torch.zeros(1, 5, 48), SpecialIds(), GenerationConfig(beams=1, max_tokens=2))
    assert turned(model) and not turned(plain)
    for one in (model, plain):
        optimizer = torch.optim.AdamW(one.requires_grad_().parameters(), lr=1e-2, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            output = one(PIXELS, IDS, IDS > 0)
            (output.decoded.square().mean() + output.text_embed[:, 0].sum()).backward()
            optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4, msg=name)  # of 3e-2 that weights move


def test_a_head_that_is_the_embedding_stays() -> None:
    model = frozen(tie_output=True)
    lay_out_for_decoding(model)
    assert model.head.weight.is_contiguous() and turned(model)
