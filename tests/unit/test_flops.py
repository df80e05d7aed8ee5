"""Counted operations against torch's own counter, and the cost ratios of the paper's Table 8b."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from opencoca import recipes
from opencoca.config import LossConfig, ModelConfig
from opencoca.model.coca import CoCa
from opencoca.model.flops import ForwardFlops, forward_flops
from opencoca.model.init import build
from opencoca.train.task import Pretraining
from opencoca.types import Batch, TextBucket


def changed(name: str, arrangement: str = "cascade", **text: int) -> ModelConfig:
    config = recipes.get(name).model
    pooler = dataclasses.replace(config.pooler, arrangement=arrangement)
    return dataclasses.replace(config, pooler=pooler, text=dataclasses.replace(config.text, **text))


def on_meta(config: ModelConfig) -> CoCa:
    with torch.device("meta"):
        return CoCa(config)


def measured(config: ModelConfig, batch: int, text_length: int, image_size_px: int) -> ForwardFlops:
    """What torch counts in each part of a forward pass on the meta device."""
    model = on_meta(config)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        pixels = torch.empty(batch, 3, image_size_px, image_size_px)
        ids = torch.zeros(batch, text_length, dtype=torch.int64)
        model.caption_logits(model(pixels, ids, ids == 0).decoded)
    parts = counter.get_flop_counts()
    return ForwardFlops(*(sum(parts[f"CoCa.{part}"].values()) for part in ForwardFlops._fields))


@pytest.mark.parametrize("arrangement", ["cascade", "parallel"])
@pytest.mark.parametrize(
    ("name", "text_length", "image_size_px"),
    [("tiny", 16, 16), ("tiny", 2, 32), ("tiny", 7, 8), ("openmoji", 9, 48), ("paper.base", 64, 288)],
)
def test_the_count_equals_torchs_count(name: str, arrangement: str, text_length: int, image_size_px: int) -> None:
    config = changed(name, arrangement)
    expected = measured(config, 3, text_length, image_size_px)
    assert forward_flops(config, 3, text_length, image_size_px) == expected
    if image_size_px == config.vision.image_size_px:
        assert forward_flops(config, 3, text_length) == expected


@pytest.mark.parametrize("max_patches", [1, 7, 16, 99])
def test_patches_that_are_not_read_are_not_counted(max_patches: int) -> None:
    config = changed("tiny")
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, max_patches=max_patches))
    for image_size_px in (8, 16, 32):
        assert forward_flops(config, 2, 9, image_size_px) == measured(config, 2, 9, image_size_px)


@pytest.mark.parametrize("registers", [1, 4])
def test_registers_are_counted(registers: int) -> None:
    config = changed("tiny")
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, registers=registers))
    for image_size_px in (8, 16):
        assert forward_flops(config, 2, 9, image_size_px) == measured(config, 2, 9, image_size_px)


def test_the_total_is_the_sum_of_the_parts() -> None:
    flops = forward_flops(changed("tiny"), 2, 9)
    assert flops.total == sum(flops) == measured(changed("tiny"), 2, 9, 16).total


def test_a_training_step_costs_three_forward_passes() -> None:
    """All but the first layer, which needs no gradient of its pixels."""
    config = changed("tiny")
    model = on_meta(config)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ids = torch.zeros(2, 9, dtype=torch.int64)
        output = model(torch.empty(2, 3, 16, 16), ids, ids == 0)
        loss = model.caption_logits(output.decoded).sum() + output.image_embed.sum() + output.text_embed.sum()
        loss.backward()
    patches = 2 * (2 * 16 * (3 * 4 * 4) * 32)
    assert counter.get_total_flops() == 3 * forward_flops(config, 2, 9).total - patches


def test_padding_counts_for_nothing_in_the_utilisation() -> None:
    """The task reports what torch counts once every caption stands in a bucket of its own length."""
    config = changed("tiny")
    ids = torch.tensor([[1, 7, 2, 0, 0], [1, 4, 5, 6, 2], [1, 4, 5, 8, 2]])
    buckets = (TextBucket(0, 1, 3), TextBucket(1, 3, 5))
    batch = Batch(torch.zeros(3, 3, 16, 16), ids, ids > 0, torch.arange(6).view(3, 2), ("a", "b", "c"), buckets)
    task = Pretraining(config, LossConfig())
    with (
        torch.no_grad(),  # the losses make their gradients in the forward pass
        sdpa_kernel(SDPBackend.MATH),  # torch's counter doesn't know the CPU's own kernel
        FlopCounterMode(display=False) as counter,
    ):
        task.loss(build(config), batch)
    similarities = 2 * 3 * 3 * config.embed_dim  # of the loss and not of the model
    assert task.forward_flops(batch) == counter.get_total_flops() - similarities
    wider = batch._replace(ids=torch.nn.functional.pad(ids, (0, 4)), valid=torch.nn.functional.pad(ids > 0, (0, 4)))
    assert task.forward_flops(wider) == task.forward_flops(batch)


# --- Table 8b: Base with 12 decoder layers in all, 64 tokens, batch 4,096 -----------------------------------------


def coca_and_rivals(batch: int) -> tuple[int, int, int]:
    """Operations of CoCa, of captioning only, and of contrastive only, each of the same size.

    Captioning only has neither [CLS] nor a contrastive pooler. Contrastive only keeps all 12 decoder layers, which
    read text alone, and the cascade of poolers; it has no head.
    """
    halves = changed("paper.base", unimodal_depth=6, multimodal_depth=6)
    coca = forward_flops(halves, batch, 64)
    without_cls = forward_flops(halves, batch, 63).unimodal
    captioning = coca.total - coca.contrastive_pooler - coca.unimodal + without_cls
    contrastive = forward_flops(changed("paper.base", unimodal_depth=12, multimodal_depth=0), batch, 64)
    assert contrastive.multimodal == 0
    return coca.total, captioning, contrastive.total - contrastive.head


def test_coca_costs_what_the_papers_table_says() -> None:
    """The paper prints two decimals: 1.18 and 1.17 of contrastive only, so 1.01 of captioning only."""
    coca, captioning, contrastive = coca_and_rivals(4096)
    assert coca / captioning == pytest.approx(1.0100, abs=5e-5)
    assert coca / contrastive == pytest.approx(1.1830, abs=5e-5)
    assert captioning / contrastive == pytest.approx(1.1713, abs=5e-5)
    assert coca / captioning <= 1.03
    assert round(coca / contrastive, 2) == 1.18
    assert round(captioning / contrastive, 2) == 1.17


def test_the_rivals_cost_what_their_own_forward_passes_cost() -> None:
    """Torch counts the same when only the parts that each rival has are run."""
    _, captioning, contrastive = coca_and_rivals(2)
    with torch.device("meta"):
        pixels, ids = torch.empty(2, 3, 288, 288), torch.zeros(2, 64, dtype=torch.int64)
    model = on_meta(changed("paper.base", unimodal_depth=12, multimodal_depth=0))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model.encode_image(pixels)
        model.encode_text(ids, ids == 0)
    assert counter.get_total_flops() == contrastive
    model = on_meta(changed("paper.base", unimodal_depth=6, multimodal_depth=6))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x_BTD = model.unimodal.tokens(ids)
        for block in model.unimodal.blocks:
            x_BTD = block(x_BTD)
        picture_BQD = model.generative_pooler(model.encoder(pixels))
        model.caption_logits(model.decode(picture_BQD, x_BTD[:, :-1]))
    assert counter.get_total_flops() == captioning
