"""Parts of the model that no recipe has by default: registers, and norms of queries and keys."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca import recipes
from opencoca.config import ModelConfig
from opencoca.errors import ConfigError
from opencoca.interop.open_clip import to_open_clip
from opencoca.model.attention import Attention
from opencoca.model.coca import CoCa
from opencoca.model.init import build

EXACT = {"rtol": 0.0, "atol": 1e-12}
IDS = torch.tensor([[1, 7, 9, 2, 0], [1, 4, 5, 6, 2]])


def changed(recipe: ModelConfig | None = None, registers: int = 0, qk_norm: bool = False) -> ModelConfig:
    config = recipe or recipes.tiny.tiny().model
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, registers=registers, qk_norm=qk_norm),
        text=dataclasses.replace(config.text, qk_norm=qk_norm),
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(config: ModelConfig) -> CoCa:
    """A model in float64 whose norms aren't 1."""
    model = build(config).double().requires_grad_(False)
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        if "norm" in name:
            parameter += 0.3 * random(*parameter.shape, seed=seed)
    return model.eval()


def test_the_options_add_their_parameters_and_change_no_other_name() -> None:
    plain, full = (set(build(config).state_dict()) for config in (changed(), changed(registers=2, qk_norm=True)))
    assert plain < full
    added = {name.removeprefix("encoder.blocks.0.") for name in full - plain if not name.startswith("encoder.blocks.1")}
    assert {"encoder.registers_PD", "self_attention.norm_q.weight", "self_attention.norm_k.weight"} <= added
    assert not any("pooler" in name or name.endswith("bias") for name in full - plain)


def test_registers_are_read_by_the_patches_and_dropped_behind_the_blocks() -> None:
    model = trained(changed(registers=3))
    pixels = random(2, 3, 16, 16)
    tokens_BPD = model.encoder(pixels)
    assert tokens_BPD.shape == (2, 16, model.config.vision.width)
    assert model.encoder.registers_PD is not None
    model.encoder.registers_PD += random(*model.encoder.registers_PD.shape)
    assert ((model.encoder(pixels) - tokens_BPD).abs().amax(dim=(0, 2)) > 1e-3).all(), "every patch sees them"


def test_with_registers_a_class_token_still_stands_first_and_other_sizes_fit() -> None:
    config = changed(recipes.open_clip.vit_b_32().model, registers=2)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, width=24, num_heads=2, depth=1))
    vision = dataclasses.replace(config.vision, mlp_width=32, image_size_px=64)
    text = dataclasses.replace(
        config.text, vocab_size=50, width=16, num_heads=2, unimodal_depth=1, multimodal_depth=1, mlp_width=32
    )
    model = trained(dataclasses.replace(config, vision=vision, text=text))
    assert vision.class_token
    for side, patches in ((64, 4), (96, 9)):
        assert model.encoder(random(1, 3, side, side)).shape == (1, 1 + patches, 24)
    with pytest.raises(ConfigError, match=r"neither registers \(2 here\) nor qk_norm"):
        to_open_clip(model)


def test_queries_and_keys_are_normed_in_each_head() -> None:
    attention = Attention(12, 3, qk_norm=True).double().requires_grad_(False)
    assert attention.norm_q is not None and attention.norm_k is not None
    attention.norm_q.weight.copy_(random(4))
    attention.norm_k.weight.copy_(random(4, seed=1))
    x_BTD = random(2, 5, 12)
    q, k, v = (x.unflatten(-1, (3, 4)) for x in (attention.q(x_BTD), *attention.kv(x_BTD).chunk(2, dim=-1)))

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        x = x - x.mean(dim=-1, keepdim=True)
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight

    q, k = normed(q, attention.norm_q.weight), normed(k, attention.norm_k.weight)
    p = (torch.einsum("btnk,bsnk->bnts", q, k) / 2).softmax(dim=-1)
    expected = F.linear(torch.einsum("bnts,bsnk->btnk", p, v).flatten(2), attention.out.weight, attention.out.bias)
    torch.testing.assert_close(attention(x_BTD, attention.keys_values(x_BTD)), expected, **EXACT)
    far = attention(100 * x_BTD, attention.keys_values(100 * x_BTD))
    assert (far.abs().max() / expected.abs().max()) < 150, "only the values grow"


@pytest.mark.parametrize("cross_attention", ["inside", "after"])
def test_decoding_step_by_step_gives_what_training_saw(cross_attention: str) -> None:
    config = changed(registers=2, qk_norm=True)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, cross_attention=cross_attention))
    model = trained(config)
    image = model.encode_image(random(2, 3, 16, 16))
    text = model.encode_text(IDS, IDS > 0)
    logits = model.caption_logits(model.decode(image.tokens, text.tokens))
    cache = model.start_decoding(image.tokens, capacity=5)
    steps = [model.decode_step(IDS[:, t : t + 1], cache) for t in range(5)]
    torch.testing.assert_close(torch.stack(steps, dim=1)[IDS > 0], logits[IDS > 0], **EXACT)


def test_every_added_parameter_learns() -> None:
    model = build(changed(registers=2, qk_norm=True)).double()
    output = model(random(2, 3, 16, 16), IDS, IDS > 0)
    (output.decoded.square().sum() + (output.image_embed * output.text_embed).sum()).backward()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight", "registers_PD")):
            assert parameter.grad is not None and parameter.grad.any(), name


def test_under_autocast_queries_keys_and_values_meet() -> None:
    model = build(changed(registers=2, qk_norm=True))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(random(2, 3, 16, 16).float(), IDS, IDS > 0)
    assert output.decoded.isfinite().all()


def test_a_negative_number_of_registers_is_refused() -> None:
    with pytest.raises(ConfigError, match="registers -1 must not be negative"):
        changed(registers=-1)
