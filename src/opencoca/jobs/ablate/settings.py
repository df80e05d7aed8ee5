"""What is compared: settings (each one model to train per seed), and the tables whose rows they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from opencoca import recipes
from opencoca.config import Config, RunConfig

Objective = Literal["joint", "contrastive", "captioning", "labels"]
Reduction = Literal["token", "caption_sum", "caption_mean"]
Variant = Literal["", "no_pooler", "text_tokens", "many_cls", "many_cls_and_text_tokens"]

STEPS = 120
WIDTH, DEPTH = 96, 2


@dataclass(frozen=True)
class Stage:
    """One part of a training: its objective, its share of the floating-point operations, and what stays frozen."""

    objective: Objective = "joint"
    share: float = 1.0
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """How a model is trained. Settings with the same steps see the same pairs in the same order, seed by seed.

    changes: fields of `base` that differ. variant: a change of the model that the configuration has no field for.
    reduction: how the captioning loss is reduced. stages: more than one share the operations of the joint training.
    on_labels: trained on concept names instead of captions, and measured by linear probes.
    """

    key: str
    changes: tuple[str, ...] = ()
    variant: Variant = ""
    reduction: Reduction = "token"
    stages: tuple[Stage, ...] = (Stage(),)
    on_labels: bool = False

    @property
    def has_embeddings(self) -> bool:
        """Whether pictures and texts were trained to match."""
        return any(stage.objective in ("joint", "contrastive") for stage in self.stages)

    @property
    def has_captions(self) -> bool:
        """Whether it was trained to write."""
        return any(stage.objective in ("joint", "captioning") for stage in self.stages)


@dataclass(frozen=True)
class Row:
    """A line of a table: a setting, what it is called there, and what the paper measured (by the paper's columns)."""

    title: str
    setting: Setting
    paper: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """One table: what it asks, the paper's columns, the measures to show, the row that others are compared with."""

    key: str
    title: str
    question: str
    rows: tuple[Row, ...]
    paper_columns: tuple[str, ...] = ()
    measures: tuple[str, ...] = ("retrieval", "zero_shot", "cider_d", "contrastive_nats", "captioning_nats")
    reference: int = 0
    notes: tuple[str, ...] = field(default=())


def base(folder: str = "data/openmoji", steps: int = STEPS) -> Config:
    """The quickstart's recipe, shrunk: CoCa of 0.9M parameters, 2 + 2 decoder layers, batches of 128."""
    config = recipes.get("openmoji")
    heads, mlp_width = WIDTH // 32, 4 * WIDTH
    vision = dataclasses.replace(config.model.vision, width=WIDTH, depth=DEPTH, num_heads=heads, mlp_width=mlp_width)
    text = dataclasses.replace(config.model.text, width=WIDTH, num_heads=heads, mlp_width=mlp_width)
    return dataclasses.replace(
        config,
        recipe="ablation",
        model=dataclasses.replace(config.model, vision=vision, text=text),
        optim=dataclasses.replace(config.optim, steps=steps, warmup_steps=min(10, steps // 5)),
        data=dataclasses.replace(config.data, folder=folder, batch_size=128),
        run=RunConfig(
            device="cpu",
            precision="fp32",
            log_every_steps=max(1, min(20, steps // 5)),
            checkpoint_every_steps=max(1, steps // 4),
            keep_checkpoints=1,
            tensorboard=False,
        ),
    )


BASE = Setting("coca")
CONTRASTIVE = Setting(
    "contrastive",
    ("model.text.unimodal_depth=4", "model.text.multimodal_depth=0"),
    stages=(Stage("contrastive"),),
)
CAPTIONING = Setting("captioning", stages=(Stage("captioning"),))
_WHOLE_TOWER = ("encoder", "generative_pooler", "contrastive_pooler")


def _staged(key: str, first: Objective, second: Objective, frozen: tuple[str, ...] = ()) -> Setting:
    return Setting(key, stages=(Stage(first, 0.5), Stage(second, 0.5, frozen)))


def _since(key: str, *changes: str) -> Setting:
    return Setting(key, changes)


TABLES: dict[str, Table] = {
    table.key: table
    for table in (
        Table(
            "a",
            "What the encoder is taught by",
            "A single-encoder classifier against a captioner that writes the label's name, on the same labelled "
            "pictures. Then linear probes of the frozen encoder.",
            (
                Row(
                    "classification (L_Cls)",
                    Setting("labels_classified", stages=(Stage("labels"),), on_labels=True),
                    ("85.1",),
                ),
                Row(
                    "captioning (L_Cap)",
                    Setting("labels_captioned", stages=(Stage("captioning"),), on_labels=True),
                    ("84.9",),
                ),
            ),
            ("ImageNet, fine-tuned, %",),
            ("probe_tone", "probe_gender", "probe_concept"),
            notes=(
                "The paper trains on JFT and fine-tunes on ImageNet. Here the labels are concepts, with skin tone and "
                "gender taken out; the probes read skin tone and man or woman, which no label told, and the concepts "
                "themselves, which is too easy to tell any two encoders apart.",
            ),
        ),
        Table(
            "b",
            "Training objectives",
            "One objective or both, with the same encoder, steps and batches.",
            (
                Row("contrastive only", CONTRASTIVE, ("70.7", "59.2", "1x"), "text tower of 4 layers"),
                Row("captioning only", CAPTIONING, ("-", "68.9", "1.17x")),
                Row("CoCa", BASE, ("71.6", "69.0", "1.18x")),
            ),
            ("zero-shot ImageNet, %", "VQA, %", "cost"),
            reference=2,
            notes=(
                "As the paper's price of 1.18 implies, the contrastive-only model reads text with all decoder layers. "
                "Captions stand in for VQA here.",
            ),
        ),
        Table(
            "c",
            "Loss weights",
            "Captioning to contrastive.",
            (
                Row("1 : 1", Setting("weights_1_1", ("loss.captioning_weight=1",)), ("71.5", "68.6")),
                Row("1 : 2", Setting("weights_1_2", ("loss.captioning_weight=0.5",)), ("71.0", "68.1")),
                Row("2 : 1", BASE, ("71.6", "69.0")),
            ),
            ("zero-shot ImageNet, %", "VQA, %"),
            reference=2,
            notes=("The contrastive weight stays 1, so that the step size of the optimizer means the same.",),
        ),
        Table(
            "d",
            "Unimodal decoder layers",
            "How many of the decoder's layers read text alone: 1, 2 or 3 of 4 here, 3, 6 or 9 of 12 in the paper.",
            (
                Row(
                    "1 of 4",
                    Setting("unimodal_1", ("model.text.unimodal_depth=1", "model.text.multimodal_depth=3")),
                    ("70.2", "69.0"),
                ),
                Row("2 of 4", BASE, ("71.6", "69.0")),
                Row(
                    "3 of 4",
                    Setting("unimodal_3", ("model.text.unimodal_depth=3", "model.text.multimodal_depth=1")),
                    ("71.4", "68.8"),
                ),
            ),
            ("zero-shot ImageNet, %", "VQA, %"),
            reference=1,
        ),
        Table(
            "e",
            "What the text embedding is read from",
            "One [CLS] token or eight, alone or with the text tokens' outputs.",
            (
                Row("1 [CLS]", BASE, ("80.7", "41.4")),
                Row("1 [CLS] + text tokens", Setting("text_tokens", variant="text_tokens"), ("80.3", "40.2")),
                Row("8 [CLS]", Setting("cls_8", variant="many_cls"), ("80.3", "36.9")),
                Row(
                    "8 [CLS] + text tokens",
                    Setting("cls_8_text_tokens", variant="many_cls_and_text_tokens"),
                    ("80.4", "40.3"),
                ),
            ),
            ("ablation evaluation", "COCO mean R@1, %"),
            notes=(
                "The paper doesn't say how several outputs become one embedding; here they are normed and averaged.",
            ),
        ),
        Table(
            "f",
            "Attentional poolers",
            "The contrastive query reads the generative outputs (cascade) or the encoder (parallel), and how many "
            "generative queries there are: 16 in the base here for 24 patches, 256 for 256 in the paper.",
            (
                Row("parallel", Setting("parallel", ("model.pooler.arrangement=parallel",)), ("71.2", "68.7")),
                Row("cascade, 16 queries", BASE, ("71.6", "69.0"), "256 in the paper"),
                Row("no generative pooler", Setting("queries_0", variant="no_pooler"), ("71.5", "69.0")),
                Row("1 query", Setting("queries_1", ("model.pooler.num_queries=1",)), ("69.3", "64.4")),
                Row(
                    "4 queries",
                    Setting("queries_4", ("model.pooler.num_queries=4",)),
                    ("71.2", "68.2"),
                    "32 in the paper",
                ),
            ),
            ("zero-shot ImageNet, %", "VQA, %"),
            reference=1,
        ),
        Table(
            "reduction",
            "How the captioning loss is reduced",
            "The paper's L_Cap sums over a caption's tokens, and doesn't say how captions and batch are averaged.",
            (
                Row("mean over the batch's tokens", BASE),
                Row(
                    "sum per caption, mean over captions",
                    Setting("caption_sum", reduction="caption_sum"),
                    note="weighs captioning by the mean length more",
                ),
                Row("mean per caption, mean over captions", Setting("caption_mean", reduction="caption_mean")),
            ),
        ),
        Table(
            "stages",
            "In one stage or in two, at equal cost",
            "All rows train with as many floating-point operations as CoCa's; what is frozen costs its forward pass "
            "alone.",
            (
                Row("CoCa, one stage", BASE),
                Row("contrastive, then captioning", _staged("con_cap", "contrastive", "captioning")),
                Row(
                    "contrastive, then captioning on a frozen image tower",
                    _staged("con_cap_frozen", "contrastive", "captioning", _WHOLE_TOWER),
                ),
                Row(
                    "captioning, then contrastive with the encoder locked (LiT)",
                    _staged("cap_lit", "captioning", "contrastive", ("encoder",)),
                ),
            ),
        ),
        Table(
            "since",
            "What came since",
            "Changes that later work proposes, each alone on top of CoCa.",
            (
                Row("CoCa", BASE),
                Row(
                    "sigmoid loss (SigLIP)",
                    _since("sigmoid", "model.pair_bias=true", "loss.contrastive=sigmoid"),
                    note="its temperature is not made for the softmax loss that is measured",
                ),
                Row("4 registers", _since("registers", "model.vision.registers=4")),
                Row("query-key norms", _since("qk_norm", "model.vision.qk_norm=true", "model.text.qk_norm=true")),
                Row(
                    "3 of 4 captions predicted in parallel (CapPa)",
                    _since("parallel_prediction", "model.text.parallel_share=0.75"),
                ),
                Row("half of the decoder's positions dropped", _since("token_drop", "model.text.token_drop=0.5")),
                Row(
                    "decoder reads half of the queries, at random (OpenVision 2)",
                    _since("train_queries", "model.pooler.train_queries=8"),
                ),
            ),
        ),
    )
}
