"""Low-rank updates: nothing at first, the same once merged, and nothing else is trained."""

from __future__ import annotations

import pytest
import torch
from tests import tiny
from tests.support import tiny_config, tiny_loader, tiny_tokenizer, write_shards

from opencoca.config import ModelConfig
from opencoca.interop.open_clip import from_open_clip, to_open_clip
from opencoca.loading import load
from opencoca.model.init import build
from opencoca.model.lora import LoraLinear, add_lora, merge, merged_weights
from opencoca.recipes import open_clip as open_clip_recipes
from opencoca.train import loop
from opencoca.train.task import Pretraining


def inputs(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    size = config.vision.image_size_px
    pixels = torch.randn(3, 3, size, size, generator=generator)
    ids = torch.randint(3, config.text.vocab_size, (3, 6), generator=generator)
    return pixels, ids, torch.ones(3, 6, dtype=torch.bool)


def outputs(model) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model(*inputs(model.config))
        return [found.image_embed, found.text_embed, model.caption_logits(found.decoded)]


def shaken(model, amount: float = 0.1) -> None:
    """Gives the updates something to do."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_up"):
            with torch.no_grad():
                parameter.copy_(amount * torch.randn(parameter.shape, generator=generator))


def published_shape() -> ModelConfig:
    return open_clip_recipes.layout(
        image_size_px=16, patch_size_px=4, vision_width=32, vision_depth=2, vision_heads=2, vision_mlp_width=64,
        text_width=48, text_depth=2, multimodal_depth=2, text_heads=3, text_mlp_width=96, num_queries=5,
        pooler_heads=2, vocab_size=320, context_length=16,
    )  # fmt: skip


@pytest.mark.parametrize("config", [tiny.CONFIG.model, published_shape()], ids=["ours", "published"])
def test_fresh_updates_change_nothing_and_merged_ones_say_the_same(config):
    model = build(config)
    before, names = outputs(model), [name for name, _ in model.named_parameters()]
    add_lora(model, rank=4, alpha=16.0)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))
    shaken(model)
    trained = outputs(model)
    assert max((a - b).abs().max().item() for a, b in zip(trained, before, strict=True)) > 0.1
    folded = merged_weights(dict(model.named_parameters()), 16.0)
    merged = merge(model)
    assert [name for name, _ in merged.named_parameters()] == names == list(folded)
    assert all(torch.equal(folded[name], parameter) for name, parameter in merged.named_parameters())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())
    differences = [(a - b).abs().max().item() for a, b in zip(outputs(merged), trained, strict=True)]
    assert max(differences) < 1e-5, differences  # logits of about 5; measured worst case 2e-6
    doubled = outputs_in_float64(config)
    assert doubled < 1e-12


def outputs_in_float64(config: ModelConfig) -> float:
    """The most that merging changes where rounding is out of the way."""
    model = build(config).double()
    add_lora(model, rank=4, alpha=16.0)
    shaken(model)
    pixels, *texts = inputs(config)
    with torch.no_grad():
        unmerged = model(pixels.double(), *texts)
        merged = merge(model)(pixels.double(), *texts)
    return max((a - b).abs().max().item() for a, b in zip(unmerged, merged, strict=True))


def test_every_matrix_of_attention_and_mlp_has_an_update_and_no_other():
    model = build(tiny.CONFIG.model)
    add_lora(model, rank=2, alpha=4.0)
    updated = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name.endswith("lora_up")}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = {name for name in linear if "attention." in name or ".mlp." in name}
    assert updated == inside and "generative_pooler.attention.kv" in updated and "head" not in updated
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.{part}" for name in updated for part in ("lora_down", "lora_up")
    }


def test_the_seed_and_the_name_alone_decide_how_updates_begin():
    first, second, other = (build(tiny.CONFIG.model) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        add_lora(model, rank=2, alpha=4.0, seed=seed)
    downs = [[p for n, p in model.named_parameters() if n.endswith("lora_down")] for model in (first, second, other)]
    assert all(torch.equal(a, b) for a, b in zip(downs[0], downs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(downs[0], downs[2], strict=True))
    assert len({down.detach().flatten()[0].item() for down in downs[0]}) == len(downs[0])


def test_only_updates_train_and_a_checkpoint_of_them_loads_as_a_plain_model(tmp_path):
    config = tiny_config(write_shards(tmp_path / "data"), optim={"steps": 6, "lora_rank": 2, "ema_decay": 0.0})
    tokenizer, task = tiny_tokenizer(), Pretraining(config.model, config.loss)
    original = dict(build(config.model, 7).named_parameters())

    def prepare(model) -> None:
        model.load_state_dict({name: tensor.detach() for name, tensor in original.items()})
        add_lora(model, 2, config.optim.lora_alpha)

    state = loop.train(config, tmp_path / "run", task, tiny_loader(config, tokenizer), tokenizer, None, prepare)
    now = dict(state.model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in original.items())
    assert all(now[name].any() for name in now if name.endswith("lora_up"))
    merged = merged_weights(state.weights(), config.optim.lora_alpha)
    loaded = load(tmp_path / "run").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in merged.items())


def test_a_merged_model_of_the_published_shape_goes_into_that_layout_and_back():
    model = build(published_shape(), 1)
    add_lora(model, rank=3, alpha=6.0)
    shaken(model)
    merged = merge(model)
    back = from_open_clip(*to_open_clip(merged))
    assert all(torch.equal(a, b) for a, b in zip(outputs(back), outputs(merged), strict=True))
