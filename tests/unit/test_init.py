"""Initialisation: everything is filled, from (seed, name) alone, with the documented spread."""

import dataclasses
import math

import pytest
import torch

from opencoca import recipes
from opencoca.config import ModelConfig
from opencoca.model.coca import CoCa
from opencoca.model.init import build, init_weights


def tiny(tied: bool = False, temperature: float = 0.07) -> ModelConfig:
    config = recipes.tiny.tiny().model
    text = dataclasses.replace(config.text, tie_output=tied)
    return dataclasses.replace(config, text=text, init_temperature=temperature)


@pytest.mark.parametrize("arrangement", ["cascade", "parallel"])
@pytest.mark.parametrize("tied", [False, True])
def test_poison(tied: bool, arrangement: str) -> None:
    """Fill every parameter with NaN, initialise, and no NaN is left."""
    config = tiny(tied)
    pooler = dataclasses.replace(config.pooler, arrangement=arrangement)
    assert_filled(CoCa(dataclasses.replace(config, pooler=pooler)))


def test_poison_with_the_sigmoid_loss_s_bias() -> None:
    assert_filled(CoCa(dataclasses.replace(tiny(), pair_bias=True)))
    assert build(dataclasses.replace(tiny(), pair_bias=True)).pair_bias.item() == -10.0
    assert build(tiny()).pair_bias is None


def test_poison_of_the_published_layout() -> None:
    sizes = {"vision_width": 8, "vision_depth": 1, "vision_heads": 2, "text_width": 8, "text_depth": 1, "text_heads": 2}
    layout = recipes.open_clip.layout(
        image_size_px=8, patch_size_px=4, multimodal_depth=1, pooler_heads=2, vocab_size=9, num_queries=3, **sizes
    )
    assert_filled(CoCa(layout))


def assert_filled(model: CoCa) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    init_weights(model)
    left = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    assert not left
    assert not list(model.buffers()), "a buffer would need its own initialisation"


def test_the_seed_and_the_name_decide_alone() -> None:
    model, again = build(tiny(), seed=3), build(tiny(), seed=3)
    torch.manual_seed(12345)
    third = CoCa(tiny())  # torch's own initialisation ran, on the global stream
    init_weights(third, seed=3)
    for other in (again, third):
        for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(ours, theirs), name


def test_the_global_stream_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build(tiny())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_order_of_building_decides_nothing() -> None:
    """A parameter has the same values in another model, if name and shape are the same there."""
    config = tiny()
    deeper = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=3),
        pooler=dataclasses.replace(config.pooler, num_queries=9),
    )
    ours, theirs = (dict(build(c, seed=1).named_parameters()) for c in (config, deeper))
    for name in ("unimodal.tokens.weight", "head.weight", "multimodal.blocks.1.mlp.up.weight", "encoder.patch.weight"):
        assert torch.equal(ours[name], theirs[name]), name
    reordered = CoCa(config)
    reordered._modules = dict(reversed(reordered._modules.items()))
    init_weights(reordered, seed=1)
    for name, parameter in reordered.named_parameters():
        assert torch.equal(ours[name], parameter), name


def random_parameters(model: CoCa) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.ndim == 2 or name.endswith("cls_D")}


def test_two_seeds_differ_everywhere() -> None:
    ours, theirs = (random_parameters(build(tiny(), seed)) for seed in (0, 1))
    for name in ours:
        assert (ours[name] != theirs[name]).float().mean() > 0.99, name


def test_two_parameters_of_one_shape_differ() -> None:
    seen: dict[torch.Size, list[torch.Tensor]] = {}
    for name, parameter in random_parameters(build(tiny())).items():
        for other in seen.setdefault(parameter.shape, []):
            assert not torch.equal(other / other.std(), parameter / parameter.std()), name
        seen[parameter.shape].append(parameter)


def expected_std(name: str, parameter: torch.Tensor) -> float:
    """What `init_weights` documents, for the tiny recipe: 2 + 2 + 2 layers."""
    writers = {"encoder": 4, "unimodal": 4, "multimodal": 4 + 6}
    part, kind = name.split(".")[0], name.rsplit(".", 2)
    if name.endswith("queries_QD"):
        return 1.0
    if name.endswith(("positions_PD", "positions_TD", "cls_D")) or name == "unimodal.tokens.weight":
        return 0.02
    fan_in = parameter.shape[1]
    residual = part in writers and kind[-2] in ("out", "down")
    return 1 / math.sqrt(fan_in * (writers[part] if residual else 1))


def test_the_spread_is_as_documented() -> None:
    parameters = random_parameters(build(tiny()))
    residual = [name for name in parameters if name.startswith(("enc", "uni", "multi")) and ".blocks." in name]
    residual = [name for name in residual if name.endswith(("out.weight", "down.weight"))]
    assert len(residual) == 2 * 2 + 2 * 2 + 3 * 2
    for name, parameter in parameters.items():
        wanted, tolerance = expected_std(name, parameter), 4 / math.sqrt(2 * parameter.numel())
        assert parameter.std().item() == pytest.approx(wanted, rel=tolerance), name
        assert abs(parameter.mean().item()) < 5 * wanted / math.sqrt(parameter.numel()), name


def test_norms_are_1_and_biases_0() -> None:
    ones = zeros = 0
    for name, parameter in build(tiny()).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
            zeros += 1
        elif "norm" in name:
            assert (parameter == 1).all(), name
            ones += 1
    assert ones == 2 * 2 + 2 * 2 + 2 * 3 + 2 * 3 + 2  # blocks, poolers, [CLS] and output
    assert zeros == ones + (6 + 2 + 2) * 3 + 6 * 2 + 1  # self-attentions, cross-attentions, poolers; MLPs; patches


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_temperature_is_the_configured_one(temperature: float) -> None:
    model = build(tiny(temperature=temperature))
    assert model.log_scale.shape == (1,)
    assert 1 / model.log_scale.exp().item() == pytest.approx(temperature, rel=1e-6)


def test_a_tied_head_stays_tied_through_building() -> None:
    model = build(tiny(tied=True))
    assert model.head.weight is model.unimodal.tokens.weight
    names = [name for name, _ in model.named_parameters()]
    assert "unimodal.tokens.weight" in names and "head.weight" not in names
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05), "an embedding's spread"
    assert build(tiny()).head.weight is not build(tiny()).unimodal.tokens.weight


def test_a_half_precision_model_gets_the_same_values_rounded() -> None:
    half = CoCa(tiny()).bfloat16()
    init_weights(half, seed=2)
    for (name, ours), full in zip(half.named_parameters(), build(tiny(), seed=2).parameters(), strict=True):
        assert torch.equal(ours, full.bfloat16()), name


def test_a_fresh_model_starts_near_chance() -> None:
    """Logits and similarities of moderate size: no loss starts far above chance."""
    config = tiny()
    model = build(config)
    generator = torch.Generator().manual_seed(0)
    pixels, ids = torch.randn(16, 3, 16, 16, generator=generator), torch.randint(3, 320, (16, 9), generator=generator)
    with torch.no_grad():
        output = model(pixels, ids, ids > 0)
        logits = model.caption_logits(output.decoded)
    assert 0.3 < logits.std().item() < 1.5
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert math.log(320) - 0.2 < nats < math.log(320) + 1.0
