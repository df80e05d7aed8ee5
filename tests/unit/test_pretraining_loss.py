"""The pretraining task, which adds up the losses of one forward pass."""

import dataclasses
import math

import pytest
import torch
from tests.plain_losses import written_out

from opencoca import recipes
from opencoca.config import LossConfig
from opencoca.losses import group_ids
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.train.task import Pretraining
from opencoca.types import Batch, TextBucket


@pytest.fixture(scope="module")
def model() -> CoCa:
    return build(recipes.tiny.tiny().model).double()


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Four pairs of lengths 3, 5, 5, 7; the second and the third have the same caption."""
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[1, 7, 2, 0, 0, 0, 0], [1, 4, 5, 6, 2, 0, 0], [1, 4, 5, 6, 2, 0, 0], [1, 9, 8, 9, 8, 9, 2]])
    buckets = (TextBucket(0, 1, 3), TextBucket(1, 3, 5), TextBucket(3, 4, 7))
    return Batch(pixels, ids, ids > 0, torch.tensor([[0, 0], [1, 1], [1, 2], [2, 3]]), ("a", "b", "c", "d"), buckets)


def pretraining(contrastive: float = 1.0, captioning: float = 2.0) -> Pretraining:
    return Pretraining(recipes.tiny.tiny().model, LossConfig(contrastive, captioning))


def test_both_losses_come_out_of_one_forward_pass(model: CoCa, batch: Batch) -> None:
    calls: list[str] = []
    parts = ("", "encoder", "generative_pooler", "contrastive_pooler")  # not the head: nobody makes its logits
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in model.named_modules()
        if name in parts
    ]
    pretraining().loss(model, batch)
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == sorted(parts)
    decoder_rows: list[int] = []
    hook = model.unimodal.register_forward_hook(lambda _, args, __: decoder_rows.append(len(args[0])))
    pretraining().loss(model, batch)
    hook.remove()
    assert sum(decoder_rows) == 4, "each caption is read once"


def test_the_total_is_the_weighted_sum_with_the_papers_weights(model: CoCa, batch: Batch) -> None:
    assert LossConfig() == LossConfig(1.0, 2.0)
    loss = pretraining().loss(model, batch)
    contrastive, captioning = loss.parts["contrastive"], loss.parts["captioning"]
    torch.testing.assert_close(loss.total, contrastive + 2 * captioning, rtol=0, atol=1e-12)
    other = pretraining(3.0, 0.5).loss(model, batch)
    torch.testing.assert_close(other.total, 3 * contrastive + 0.5 * captioning, rtol=0, atol=1e-12)
    assert not any(part.requires_grad for part in loss.parts.values())
    assert loss.parts["scale"].item() == pytest.approx(1 / 0.07)


def test_the_parts_are_what_the_definitions_give(model: CoCa, batch: Batch) -> None:
    loss = pretraining().loss(model, batch)
    with torch.no_grad():
        image, text = model.encode_image(batch.pixels), model.encode_text(batch.ids, batch.valid)
        nats = []
        for row in range(4):
            length = int(batch.valid[row].sum())
            decoded = model.decode(image.tokens[row : row + 1], text.tokens[row : row + 1, :length])
            log_p = model.caption_logits(decoded)[0].log_softmax(dim=-1)
            nats += [-log_p[t, batch.ids[row, t + 1]].item() for t in range(length - 1)]
        assert len(nats) == 2 + 4 + 4 + 6
    assert loss.parts["captioning"].item() == pytest.approx(sum(nats) / len(nats), rel=1e-10)
    contrastive = written_out(image.embed, text.embed, 1 / 0.07, group_ids(batch.labels).tolist())
    assert loss.parts["contrastive"].item() == pytest.approx(contrastive, rel=1e-7)
    assert contrastive != pytest.approx(written_out(image.embed, text.embed, 1 / 0.07, [0, 1, 2, 3]), rel=1e-3)


def test_buckets_do_not_change_the_loss_or_its_gradient(model: CoCa, batch: Batch) -> None:
    parameters = list(model.parameters())
    with_buckets, without = (pretraining().loss(model, b).total for b in (batch, batch._replace(buckets=())))
    torch.testing.assert_close(with_buckets, without, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(total, parameters, materialize_grads=True) for total in (with_buckets, without)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def test_every_parameter_learns(model: CoCa, batch: Batch) -> None:
    """All but the position rows beyond the longest caption and its [CLS], and the tokens that don't occur."""
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(pretraining().loss(model, batch).total, list(named.values()))
    for name, gradient in zip(named, gradients, strict=True):
        if name.endswith("kv.bias"):
            assert gradient[gradient.shape[0] // 2 :].any(), name  # a bias of all keys moves no softmax
        else:
            assert gradient.any(), name
    positions = dict(zip(named, gradients, strict=True))["unimodal.positions_TD"]
    assert (positions != 0).any(dim=1).tolist() == [True] * 8 + [False] * 9


def test_a_scale_of_100_is_finite_through_the_whole_model(batch: Batch) -> None:
    model = build(recipes.tiny.tiny().model)
    with torch.no_grad():
        model.log_scale.fill_(math.log(100.0))
    total = pretraining().loss(model, batch._replace(pixels=batch.pixels.float())).total
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_tied_head_learns_from_both_ends(batch: Batch) -> None:
    config = recipes.tiny.tiny().model
    model = build(dataclasses.replace(config, text=dataclasses.replace(config.text, tie_output=True))).double()
    pretraining().loss(model, batch).total.backward()
    assert model.head.weight.grad is model.unimodal.tokens.weight.grad
    assert model.head.weight.grad is not None
    assert model.head.weight.grad[300].any(), "as an output, a token that never occurs is pushed down"
    assert (model.head.weight.grad[7] - model.head.weight.grad[300]).abs().max() > 1e-4
