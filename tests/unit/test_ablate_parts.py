"""The parts of ablations: costs, objectives, variants of the text embedding, and how gradients agree."""

import pytest
import torch
from torch.nn import functional as F

from opencoca import recipes
from opencoca.config import Config
from opencoca.errors import ConfigError
from opencoca.jobs.ablate import variants
from opencoca.jobs.ablate.cost import cpu_seconds, pair_operations, stage_steps
from opencoca.jobs.ablate.gradients import GradientAgreement, agreement
from opencoca.jobs.ablate.objectives import task_of
from opencoca.jobs.ablate.settings import BASE, CAPTIONING, CONTRASTIVE, TABLES, Objective, Setting, Stage, base
from opencoca.model.coca import CoCa
from opencoca.model.flops import forward_flops
from opencoca.model.init import build
from opencoca.train.task import Pretraining
from opencoca.types import Batch

LENGTHS = [4, 9, 6, 6]


def batch_of(config: Config, lengths: list[int], seed: int = 0) -> Batch:
    """Random pairs whose captions have these lengths."""
    generator = torch.Generator().manual_seed(seed)
    size_px, vocab = config.model.vision.image_size_px, config.model.text.vocab_size
    ids = torch.randint(3, vocab, (len(lengths), max(lengths)), generator=generator)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    pixels = torch.randn(len(lengths), 3, size_px, size_px, generator=generator)
    labels = torch.arange(2 * len(lengths)).reshape(-1, 2)
    keys = tuple(map(str, range(len(lengths))))
    return Batch(pixels=pixels, ids=ids * valid, valid=valid, labels=labels, keys=keys)


@pytest.fixture
def config() -> Config:
    return recipes.get("tiny")


def test_every_setting_of_the_tables_is_a_configuration() -> None:
    keys: dict[str, Setting] = {}
    for table in TABLES.values():
        assert 0 <= table.reference < len(table.rows)
        for row in table.rows:
            assert len(row.paper) == len(table.paper_columns)
            assert keys.setdefault(row.setting.key, row.setting) == row.setting  # one key, one setting
            base("nowhere", 20).with_values(row.setting.changes)
            assert sum(stage.share for stage in row.setting.stages) == 1


def test_operations_count_what_an_objective_reads_and_trains() -> None:
    model = base("nowhere").model
    costs = forward_flops(model, 1, 6, None, model.vision.train_patches)
    joint = pair_operations(BASE, Stage("joint"), model, [6])
    assert joint == 3 * costs.total
    contrastive = pair_operations(BASE, Stage("contrastive"), model, [6])
    assert contrastive == 3 * (costs.total - costs.multimodal - costs.head)
    frozen = pair_operations(BASE, Stage("joint", frozen=("encoder",)), model, [6])
    assert frozen == 3 * costs.total - 2 * costs.encoder
    captioning = pair_operations(CAPTIONING, Stage("captioning"), model, [6])
    assert contrastive < captioning < joint
    assert pair_operations(BASE, Stage("joint"), model, [6, 6, 12]) > joint
    assert pair_operations(Setting("x", variant="many_cls"), Stage("joint"), model, [6]) > joint


def test_stages_share_the_operations_of_the_joint_training() -> None:
    config = base("nowhere", 200)
    joint = pair_operations(BASE, BASE.stages[0], config.model, LENGTHS)
    assert stage_steps(CONTRASTIVE, config, 0.0, LENGTHS) == [200]
    staged = [row.setting for row in TABLES["stages"].rows if len(row.setting.stages) == 2]
    assert len(staged) == 3
    for setting in staged:
        steps = stage_steps(setting, config, joint, LENGTHS)
        per_pair = [pair_operations(setting, stage, config.model, LENGTHS) for stage in setting.stages]
        for count, cost in zip(steps, per_pair, strict=True):
            assert abs(count * cost - 100 * joint) <= cost / 2
    frozen = next(setting for setting in staged if setting.key == "cap_lit")
    assert stage_steps(frozen, config, joint, LENGTHS)[1] > 100  # what is frozen buys steps


def test_single_objectives_have_the_loss_and_gradients_of_the_joint_ones_terms(config: Config) -> None:
    batch, model = batch_of(config, LENGTHS), build(config.model)
    terms = Pretraining(config.model, config.loss).loss(model, batch).parts
    weights: dict[Objective, float] = {"contrastive": 1.0, "captioning": 2.0}
    for objective, weight in weights.items():
        loss = task_of(objective, "token", config).loss(model, batch).total
        torch.testing.assert_close(loss, weight * terms[objective])
    model.zero_grad()
    task_of("captioning", "token", config).loss(model, batch).total.backward()
    assert model.unimodal.cls_D.grad is None and model.encoder.positions_PD.grad is not None


def test_reductions_of_the_captioning_loss(config: Config) -> None:
    batch, model = batch_of(config, LENGTHS), build(config.model)
    alone = [
        float(Pretraining(config.model, config.loss).loss(model, batch_of_row(batch, i)).parts["captioning"])
        for i in range(len(LENGTHS))
    ]
    tokens = [length - 1 for length in LENGTHS]
    summed = task_of("joint", "caption_sum", config).loss(model, batch).parts
    averaged = task_of("joint", "caption_mean", config).loss(model, batch).parts
    of_tokens = sum(nats * count for nats, count in zip(alone, tokens, strict=True))
    assert float(summed["captioning"]) == pytest.approx(of_tokens / len(alone), rel=1e-5)
    assert float(averaged["captioning"]) == pytest.approx(sum(alone) / len(alone), rel=1e-5)
    assert float(summed["nats_per_token"]) == pytest.approx(of_tokens / sum(tokens), rel=1e-5)
    with pytest.raises(ConfigError, match="caption_sum"):
        task_of("captioning", "caption_sum", config)


def batch_of_row(batch: Batch, row: int) -> Batch:
    """One pair of a batch, at its own length."""
    length = int(batch.valid[row].sum())
    one = slice(row, row + 1)
    return Batch(
        pixels=batch.pixels[one],
        ids=batch.ids[one, :length],
        valid=batch.valid[one, :length],
        labels=batch.labels[one],
        keys=batch.keys[one],
    )


def varied(config: Config, variant: variants.Variant) -> CoCa:
    model = build(config.model)
    variants.apply(variant, model, seed=0)
    return model


def test_text_embeddings_from_several_outputs(config: Config) -> None:
    batch, plain = batch_of(config, LENGTHS), build(config.model)
    usual_cls_BD, usual_BTD = plain.unimodal(batch.ids, batch.valid)
    cls_BD, tokens_BTD = varied(config, "text_tokens").unimodal(batch.ids, batch.valid)
    torch.testing.assert_close(tokens_BTD[batch.valid], usual_BTD[batch.valid])
    for row, length in enumerate(LENGTHS):
        normed = plain.unimodal.norm_cls(usual_BTD[row, :length]).sum(dim=0) + usual_cls_BD[row]
        torch.testing.assert_close(cls_BD[row], normed / (length + 1))
    for variant in ("many_cls", "many_cls_and_text_tokens"):
        model = varied(config, variant)
        many_BD, many_BTD = model.unimodal(batch.ids, batch.valid)
        torch.testing.assert_close(many_BTD[batch.valid], usual_BTD[batch.valid])  # no text position sees a [CLS]
        assert not torch.allclose(many_BD, usual_cls_BD)
        alone = batch_of_row(batch, 0)
        torch.testing.assert_close(model.unimodal(alone.ids, alone.valid)[0][0], many_BD[0])  # nor what is in padding
        many_BD.sum().backward()
        more = model.unimodal.get_parameter("more_cls")
        assert more.grad is not None and (more.grad.abs().sum(dim=1) > 0).all()
    room = config.model.text.context_length  # a caption that fills the context leaves one position to all [CLS]
    full_BT = torch.ones(1, room, dtype=torch.long)
    embed_BD, _ = varied(config, "many_cls").unimodal(full_BT, full_BT.bool())
    assert embed_BD.isfinite().all()


def test_without_a_pooler_the_decoder_reads_the_encoder(config: Config) -> None:
    text = config.model.text
    config = config.with_values([f"model.vision.width={text.width}", f"model.vision.num_heads={text.num_heads}"])
    model, batch = varied(config, "no_pooler"), batch_of(config, LENGTHS)
    features = model.encode_image(batch.pixels)
    patches = model.encoder(batch.pixels)
    torch.testing.assert_close(features.tokens, F.layer_norm(patches, patches.shape[-1:]))


def test_agreement_of_known_gradients() -> None:
    one = {"encoder.a": torch.tensor([3.0, 0.0]), "unimodal.b": torch.tensor([1.0, 1.0]), "only.c": torch.ones(2)}
    other = {"encoder.a": torch.tensor([0.0, 6.0]), "unimodal.b": torch.tensor([-2.0, -2.0])}
    figures = agreement(one, other)
    assert figures["encoder_cosine"] == 0 and figures["encoder_ratio"] == 2
    assert figures["text_cosine"] == pytest.approx(-1)
    assert figures["all_cosine"] == pytest.approx(-4 / (11 * 44) ** 0.5)  # only.c is reached by one of them alone
    assert "pooler_cosine" not in figures
    assert agreement({"encoder.a": torch.zeros(2)}, other) == {}


def test_gradients_are_those_of_each_loss_by_itself(config: Config) -> None:
    batch, model = batch_of(config, LENGTHS), build(config.model)
    found = GradientAgreement(batch, config).gradients(model)
    assert all(parameter.grad is None for parameter in model.parameters())  # training doesn't notice
    pretraining = Pretraining(config.model, config.loss)
    for weights, gradients in zip(((1.0, 0.0), (0.0, 2.0)), found, strict=True):
        pretraining.weights = {"contrastive": weights[0], "captioning": weights[1]}
        model.zero_grad()
        pretraining.loss(model, batch).total.backward()
        for name, parameter in model.named_parameters():
            if name in gradients:
                torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-7, rtol=1e-4)
    assert "multimodal.norm_out.weight" not in found[0] and not found[1]["unimodal.cls_D"].any()
    figures = dict(GradientAgreement(batch, config)(model))
    names = sorted((found[0].keys() & found[1].keys()) - {"unimodal.cls_D"})
    flat = [torch.cat([of[n].flatten() for n in names]) for of in found]
    assert figures["all_cosine"] == pytest.approx(float(F.cosine_similarity(*flat, dim=0)), abs=1e-5)


def test_seconds_are_of_each_call() -> None:
    slow = torch.randn(400, 400)
    seconds = cpu_seconds({"fast": lambda: None, "slow": lambda: slow @ slow @ slow}, repeats=2)
    assert 0 <= seconds["fast"] < seconds["slow"]
