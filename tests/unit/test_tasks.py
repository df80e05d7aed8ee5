"""Recognition and question answering as tasks: what they read, what they are means over, what they must not see."""

import dataclasses

import pytest
import torch
from tests.support import SHAPES, MemorySource, drawing, png, tiny_tokenizer
from torch.nn import functional as F

from opencoca import recipes
from opencoca.config import Config, HeadConfig, ModelConfig
from opencoca.data.loader import PairLoader
from opencoca.data.pixels import normalised
from opencoca.data.prompts import asked
from opencoca.data.sample import Sample
from opencoca.errors import ConfigError
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.train.micro import micro_batches
from opencoca.train.optim import freeze, make_optimizers
from opencoca.train.task import Task
from opencoca.train.tasks.recognition import Recognition, unread_parts
from opencoca.train.tasks.targets import Targets
from opencoca.train.tasks.vqa import QuestionAnswering
from opencoca.types import Batch

TOKENIZER = tiny_tokenizer()
LABELS = tuple(sorted(SHAPES))
CONTEXT = 40
HEADS = (HeadConfig("shapes", LABELS), HeadConfig("vqa", ("no", "yes"), "decoder"))


def configured(**sections: dict) -> Config:
    config = recipes.tiny.tiny()
    text = dataclasses.replace(config.model.text, context_length=CONTEXT)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text, heads=HEADS))
    changed = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(config, **changed)


def question_batch(answers: tuple[str, ...] = ("yes", "no"), pictures: int = 1) -> Batch:
    """Eight questions of two lengths, on drawings."""
    items = [
        Sample(
            f"{colour}-{shape}",
            png(drawing(colour, shape)),
            f"{asked(f'{shape}?' if i % 2 else f'{shape} on the left?')} {answers[i % 2]}",
            {},
            (),
            (png(drawing("black", shape)),) * (pictures - 1),
        )
        for i, (colour, shape) in enumerate((colour, shape) for colour in ("red", "blue") for shape in SHAPES)
    ]
    batch = PairLoader(
        MemorySource(items),
        TOKENIZER,
        batch_size=8,
        image_size_px=16,
        context_length=CONTEXT,
        pixels=configured().pixels,
        seed=0,
        pictures=pictures,
    ).batch(0)
    return batch._replace(pixels=normalised(batch.pixels, configured().pixels))


def prompts_of(batch: Batch) -> dict[str, int]:
    texts = {f"{c}-{s}": s for c in ("red", "blue") for s in SHAPES}
    lengths = [(f"{s}?", f"{s} on the left?")[(i + 1) % 2] for i, s in enumerate(texts.values())]
    return {key: len(TOKENIZER.encode(asked(text))) for key, text in zip(texts, lengths, strict=True)}


def targets_of(batch: Batch) -> Targets:
    return Targets.single({key: i % 2 for i, key in enumerate(sorted(batch.keys))}, 2)


# --- targets ----------------------------------------------------------------------------------------------------


def test_shares_of_several_annotators_are_cross_entropy_against_all_of_them() -> None:
    logits = torch.randn(2, 3)
    shares = Targets({"a": {0: 0.75, 2: 0.25}, "b": {1: 1.0}}, 3).rows(["b", "a"], logits.device)
    from opencoca.train.tasks.targets import judged

    log_p = logits.log_softmax(dim=1)
    expected = -(log_p[0, 1] + 0.75 * log_p[1, 0] + 0.25 * log_p[1, 2])
    assert judged(logits, shares, 0.0)["classification"].item() == pytest.approx(expected.item(), rel=1e-5)
    smooth = judged(logits, shares, 0.3)["classification"].item()
    uniform = -log_p.mean(dim=1).sum().item()
    assert smooth == pytest.approx(0.7 * expected.item() + 0.3 * uniform, rel=1e-5)


def test_samples_of_which_nothing_is_known_have_no_part_in_it() -> None:
    model, batch = build(configured().model), question_batch()
    known = sorted(batch.keys)[:3]
    task = QuestionAnswering(prompts_of(batch), "vqa", Targets.single(dict.fromkeys(known, 1), 2))
    rows = torch.tensor([key in known for key in batch.keys])
    alone = batch._replace(
        **{n: x[rows] for n, x in batch._asdict().items() if isinstance(x, torch.Tensor)},
        keys=tuple(key for key in batch.keys if key in known),
        buckets=(),
    )
    assert task.counts(batch)["classification"] == 3
    assert task.loss(model, batch).total.item() == pytest.approx(task.loss(model, alone).total.item(), rel=1e-5)
    nobody = QuestionAnswering(prompts_of(batch), "vqa", Targets.single({}, 2), "all")
    assert nobody.loss(model, batch).parts["classification"].item() == 0.0


# --- recognition ------------------------------------------------------------------------------------------------


def shapes_of(batch: Batch) -> Targets:
    return Targets.single({key: LABELS.index(key.partition("-")[2]) for key in batch.keys}, len(LABELS))


def test_recognition_is_the_cross_entropy_of_its_head() -> None:
    model, batch = build(configured().model), question_batch()
    found = Recognition("shapes", shapes_of(batch)).loss(model, batch)
    logits = model.tasks["shapes"](model.encoder(batch.pixels))
    truths = torch.tensor([LABELS.index(key.partition("-")[2]) for key in batch.keys])
    assert found.total.item() == pytest.approx(F.cross_entropy(logits, truths).item(), rel=1e-5)
    assert found.parts["accuracy"].item() == pytest.approx((logits.argmax(1) == truths).float().mean().item())


def test_recognition_reads_no_captions_and_no_part_that_it_says_it_does_not() -> None:
    model, batch = build(configured().model), question_batch()
    task = Recognition("shapes", shapes_of(batch))
    task.loss(model, batch).total.backward()
    reached = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "tasks"} and not reached & set(unread_parts(model))
    assert set(unread_parts(model)) | reached == {name.partition(".")[0] for name, _ in model.named_parameters()}
    other = batch._replace(ids=torch.ones_like(batch.ids))
    assert torch.equal(task.loss(model, other).total, task.loss(model, batch).total)


def test_kept_tokens_change_no_value() -> None:
    model, batch = build(configured().model), question_batch()
    room = 3 * 16 * model.config.vision.width * 4 + 1  # three pictures' tokens
    task = Recognition("shapes", shapes_of(batch), keep_bytes=room)
    plain = Recognition("shapes", shapes_of(batch)).loss(model, batch).total.item()
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    losses = [task.loss(model, batch).total.item() for _ in range(2)]
    assert losses[0] == losses[1] == pytest.approx(plain, rel=1e-5)
    assert len(calls) == 8 + 5, "three of eight are kept"


# --- questions --------------------------------------------------------------------------------------------------


def parts(task: Task, model: CoCa, batch: Batch) -> dict[str, float]:
    return {name: value.item() for name, value in task.loss(model, batch).parts.items()}


def test_the_head_does_not_see_the_answer() -> None:
    """Other answers in the captions change the words' loss and not the classifier's."""
    model, one, other = build(configured().model), question_batch(), question_batch(("no", "blue circle"))
    task = QuestionAnswering(prompts_of(one), "vqa", targets_of(one), "answer")
    ours, theirs = parts(task, model, one), parts(task, model, other)
    assert ours["classification"] == pytest.approx(theirs["classification"], rel=1e-5)
    assert ours["words"] != pytest.approx(theirs["words"], rel=1e-2)


def test_the_head_sees_the_question_and_the_picture() -> None:
    model, batch = build(configured().model), question_batch()
    task = QuestionAnswering(prompts_of(batch), "vqa", targets_of(batch))
    loss = task.loss(model, batch).total.item()
    ids = batch.ids.clone()
    ids[:, 2] += 1
    assert task.loss(model, batch._replace(ids=ids)).total.item() != pytest.approx(loss, rel=1e-4)
    assert task.loss(model, batch._replace(pixels=-batch.pixels)).total.item() != pytest.approx(loss, rel=1e-4)


def test_the_predictor_asks_as_the_task_trains() -> None:
    from opencoca.infer.heads import answer_logits, head_for
    from opencoca.infer.predictor import Predictor

    config, batch = configured(), question_batch()
    model = build(config.model)
    predictor = Predictor(model.requires_grad_(False), TOKENIZER, config)
    texts = dict(zip(sorted(prompts_of(batch)), [""] * 8, strict=True))
    for i, (colour, shape) in enumerate((c, s) for c in ("red", "blue") for s in SHAPES):
        texts[f"{colour}-{shape}"] = f"{shape}?" if i % 2 else f"{shape} on the left?"
    tokens = model.encode_image(batch.pixels).tokens
    logits = answer_logits(predictor, head_for(predictor, "decoder"), tokens, [texts[key] for key in batch.keys])
    targets = targets_of(batch)
    expected = F.cross_entropy(logits, targets.rows(batch.keys, logits.device)).item()
    task = QuestionAnswering(prompts_of(batch), "vqa", targets)
    assert task.loss(model, batch).total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("words", "share"), [("answer", "answer"), ("all", "all")])
def test_words_are_counted_over_the_tokens_that_are_trained_on(words, share) -> None:
    model, batch = build(configured().model), question_batch()
    prompts = prompts_of(batch)
    task = QuestionAnswering(prompts, words=words)
    lengths = dict(zip(batch.keys, batch.valid.sum(dim=1).tolist(), strict=True))
    expected = sum(lengths[key] - 1 - (prompts[key] if share == "answer" else 0) for key in batch.keys)
    assert task.counts(batch)["words"] == expected
    log_p = model.caption_logits(model.decode_ids(model.encode_image(batch.pixels).tokens, batch.ids[:, :-1]))
    nats = F.cross_entropy(log_p.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none").view(8, -1)
    starts = torch.tensor([prompts[key] if share == "answer" else 0 for key in batch.keys])
    counted = batch.valid[:, 1:] & (torch.arange(nats.shape[1]) >= starts[:, None])
    assert task.loss(model, batch).total.item() == pytest.approx((nats * counted).sum().item() / expected, rel=1e-4)


def test_micro_batches_change_no_sum() -> None:
    model, batch = build(configured().model), question_batch()
    task = QuestionAnswering(prompts_of(batch), "vqa", targets_of(batch), "all")
    whole = task.forward(model, batch).sums
    pieces = [task.forward(model, part).sums for part in micro_batches(batch, 3)]
    for name, value in whole.items():
        assert sum(piece[name].item() for piece in pieces) == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_picture_of_several_questions_is_encoded_once(monkeypatch, pictures: int) -> None:
    heads = (HeadConfig("vqa", ("no", "yes"), "decoder", pictures),)
    model, batch = build(dataclasses.replace(configured().model, heads=heads)), question_batch(pictures=pictures)
    labels = batch.labels.clone()
    labels[:, 1] = torch.tensor([7, 3, 7, 7, 1, 3, 7, 1])
    rows = torch.tensor([0, 1, 0, 0, 4, 1, 0, 4])
    shared = batch._replace(pixels=batch.pixels[rows], labels=labels)
    apart = shared._replace(labels=torch.arange(16).view(8, 2))
    sizes, encode = [], model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda pixels, noise: sizes.append(len(pixels)) or encode(pixels, noise))
    task = QuestionAnswering(prompts_of(batch), "vqa", targets_of(batch))
    losses = [task.loss(model, one).total.item() for one in (shared, apart, batch._replace(labels=labels))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert sizes == [3 * pictures, 8 * pictures, 8 * pictures], "pictures that differ aren't shared"


def test_statements_about_two_pictures_read_both() -> None:
    config = configured()
    heads = (HeadConfig("pair", ("false", "true"), "decoder", pictures=2),)
    model = build(dataclasses.replace(config.model, heads=heads))
    batch = question_batch(pictures=2)
    task = QuestionAnswering(prompts_of(batch), "pair", targets_of(batch))
    loss = task.loss(model, batch).total.item()
    for number in range(2):
        pixels = batch.pixels.clone()
        pixels[:, 3 * number : 3 * number + 3] *= -1
        assert task.loss(model, batch._replace(pixels=pixels)).total.item() != pytest.approx(loss, rel=1e-4)


def test_a_task_without_anything_to_train_on_is_refused() -> None:
    with pytest.raises(ValueError, match="or words to train on"):
        QuestionAnswering({})
    with pytest.raises(ValueError, match="a head with its targets"):
        QuestionAnswering({}, head="vqa", words="all")


# --- rates ------------------------------------------------------------------------------------------------------


def rates(model_config: ModelConfig, **fields) -> dict[str, float]:
    model = build(model_config)
    optim = dataclasses.replace(configured().optim, peak_lr=1.0, **fields)
    freeze(model, optim)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [group for optimizer in make_optimizers(model, optim) for group in optimizer.param_groups]
    found = [(names[id(p)], group["peak_lr"]) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)), "each parameter is in one group"
    return dict(found)


def test_parts_are_trained_at_rates_of_their_own() -> None:
    found = rates(configured().model, part_rates=("encoder=0.2", "tasks=2", "tasks.vqa=5", "encoder.blocks.1=0.5"))
    assert found["encoder.patch.weight"] == 0.2 and found["encoder.blocks.1.mlp.up.weight"] == 0.5
    assert found["tasks.shapes.classifier.weight"] == 2 and found["tasks.vqa.pooler.queries_QD"] == 5
    assert found["multimodal.norm_out.weight"] == found["log_scale"] == 1
    assert set(found) == {name for name, _ in build(configured().model).named_parameters()}


def test_rates_of_parts_go_with_layer_decay_and_frozen_parts() -> None:
    found = rates(configured().model, part_rates=("encoder=0.5",), layer_decay=0.5, frozen=("unimodal",))
    assert found["encoder.blocks.1.mlp.up.weight"] == 0.5 * 0.5 and found["multimodal.blocks.1.mlp.up.weight"] == 0.5
    assert not [name for name in found if name.startswith("unimodal")]


@pytest.mark.parametrize(
    ("part_rates", "told"),
    [
        (("encoder",), "PART=FACTOR"),
        (("encoder=0",), "PART=FACTOR"),
        (("=1",), "PART=FACTOR"),
        (("encoder=inf",), "PART=FACTOR"),
        (("encoder=1", "encoder=2"), "'encoder' twice"),
    ],
)
def test_rates_that_make_no_sense_are_refused(part_rates, told) -> None:
    with pytest.raises(ConfigError, match=told):
        configured(optim={"part_rates": part_rates})


def test_a_rate_for_no_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="'encodr' is no part of the model; its parts are log_scale, encoder"):
        rates(configured().model, part_rates=("encodr=0.5",))
