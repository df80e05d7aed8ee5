"""The configuration tree: frozen dataclasses, standard library only.

A recipe is a Python function that returns a whole `Config`; the command line overrides single fields; the
resolved tree is written into every checkpoint. Cross-field checks name the values and the repair.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from opencoca.config_training import DataConfig, LossConfig, OptimConfig, RunConfig
from opencoca.config_tree import build_tree, find_field, require, require_multiple, require_positive, wrong_as_set
from opencoca.errors import ConfigError

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]


@dataclass(frozen=True)
class VisionConfig:
    """The ViT encoder.

    max_patches: the encoder reads only this many patches of a picture, those that differ most from the colour of its
        edge; 0 reads all. Drawings on a blank ground lose little but blank patches.
    train_patches: in training, the encoder reads only so many of these, drawn at random per picture and epoch, which
        saves time and regularises; 0 reads them all.
    class_token: a learned token stands in front of the patches, with a position of its own (OpenCLIP's layout).
    patch_bias: the patch projection has a bias (OpenCLIP's has none).
    norm_input: a norm between the positions and the first block (OpenCLIP's `ln_pre`).
    registers: so many learned tokens go through the blocks with the patches and are dropped behind them, room for what
        concerns the whole picture (arXiv 2309.16588).
    qk_norm: queries and keys are normed in each head (arXiv 2302.05442).
    activation: of the MLPs; "gelu" is exact, "quick_gelu" is OpenAI's CLIP's and "gelu_tanh" SigLIP's.
    """

    image_size_px: int
    patch_size_px: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    max_patches: int = 0
    train_patches: int = 0
    class_token: bool = False
    patch_bias: bool = True
    norm_input: bool = False
    registers: int = 0
    qk_norm: bool = False
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        require(self.registers >= 0, f"registers {self.registers} must not be negative; 0 has none")
        require_positive(self, "image_size_px", "patch_size_px", "width", "depth", "num_heads", "mlp_width")
        require(self.max_patches >= 0, f"max_patches {self.max_patches} must not be negative; 0 reads all patches")
        require_multiple(self, "image_size_px", "patch_size_px")
        require_multiple(self, "width", "num_heads")
        require(
            0 <= self.train_patches <= self.read_patches,
            f"train_patches {self.train_patches} must be between 0 and the {self.read_patches} patches that are read",
        )

    @property
    def read_patches(self) -> int:
        """Patches of a picture of image_size_px that the encoder reads outside training."""
        return min(self.max_patches or self.grid**2, self.grid**2)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size_px // self.patch_size_px


@dataclass(frozen=True)
class PoolerConfig:
    """The attentional poolers: `num_queries` generative queries, and one contrastive query.

    arrangement: "cascade" lets the contrastive query read the generative outputs (CoCa's default), "parallel"
        lets it read the encoder's tokens, and "shared" makes it the first of one pooler's num_queries + 1 queries
        (OpenCLIP's layout).
    num_heads: heads of the pooling attention; 0 takes as many as the text decoder has.
    train_queries: in training, the decoder reads only so many of the generative queries' outputs, drawn at random per
        pair and epoch (OpenVision 2, arXiv 2509.01644); 0 reads them all. The contrastive query always does.
    """

    num_queries: int = 256
    arrangement: Literal["cascade", "parallel", "shared"] = "cascade"
    num_heads: int = 0
    train_queries: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "num_queries")
        require(
            0 <= self.train_queries <= self.num_queries,
            f"train_queries {self.train_queries} must be between 0 (all) and num_queries {self.num_queries}",
        )
        require(self.num_heads >= 0, f"num_heads {self.num_heads} in PoolerConfig must not be negative")


@dataclass(frozen=True)
class TextConfig:
    """The decoder: a unimodal half, whose [CLS] is the text embedding, and a multimodal half with cross-attention.

    context_length counts start and end, but not [CLS].
    cls_place: where [CLS] stands and what it sees. "after_text": behind the last real token, sees all of them and
        itself (the paper). "at_end": in the last position whatever the caption's length, and its row of keys is shifted
        by one, so that it sees the first position, the one behind each real token, and itself only where the text
        fills the context (OpenCLIP's published weights were trained so).
    cross_attention: "inside" every multimodal layer, before its MLP (the paper), or "after" it, in a block of its own
        with a second MLP and a norm of the picture tokens (OpenCLIP's layout).
    qk_norm: queries and keys are normed in each head of both halves (arXiv 2302.05442); the poolers' never are, which
        read normed tokens once.
    activation: of the MLPs of both halves, as in `VisionConfig`.
    parallel_share: of so many captions, drawn per pair and epoch, the multimodal half predicts all tokens in training
        from the picture alone, with learned masks in the text's place (CapPa, arXiv 2306.07915, whose share is 0.75).
        Above 0 the model has these masks, one per position, which nothing but training reads.
    token_drop: in training, the multimodal half leaves out so large a share of each caption's positions, drawn at
        random, and the captioning loss falls on the rest; 0 leaves none out.
    """

    vocab_size: int
    context_length: int
    width: int
    unimodal_depth: int
    multimodal_depth: int
    num_heads: int
    mlp_width: int
    tie_output: bool = False
    cls_place: Literal["after_text", "at_end"] = "after_text"
    cross_attention: Literal["inside", "after"] = "inside"
    qk_norm: bool = False
    activation: Activation = "gelu"
    parallel_share: float = 0.0
    token_drop: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.parallel_share <= 1, f"parallel_share {self.parallel_share} must be a share from 0 to 1")
        require(0 <= self.token_drop < 1, f"token_drop {self.token_drop} must be a share from 0 to below 1")
        require_positive(self, "vocab_size", "width", "unimodal_depth", "num_heads", "mlp_width")
        require(self.multimodal_depth >= 0, f"multimodal_depth {self.multimodal_depth} must not be negative")
        require_multiple(self, "width", "num_heads")
        require(
            self.context_length >= 2,
            f"context_length {self.context_length} leaves no room for start and end; give at least 2",
        )


def trained_positions(predicted: int, token_drop: float) -> int:
    """How many of a caption's `predicted` positions `TextConfig.token_drop` leaves; at least one, if there is one."""
    return predicted - int(predicted * token_drop)


@dataclass(frozen=True)
class HeadConfig:
    """A task's own pooler and classifier (`model.heads`), whose weights are called `tasks.NAME`.

    labels: what it chooses among.
    reads: the "encoder"'s tokens of a picture, or the multimodal "decoder"'s outputs over a question or statement.
    pictures: so many per sample, each read alone (NLVR2 has two).
    """

    name: str
    labels: tuple[str, ...]
    reads: Literal["encoder", "decoder"] = "encoder"
    pictures: int = 1

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[a-z][a-z0-9_]*", self.name) is not None,
            f"the head's name {self.name!r} must be of small letters, digits and _, a letter first",
        )
        require_positive(self, "pictures")
        require(
            len(self.labels) >= 2, f"the head {self.name!r} has {len(self.labels)} labels; it takes two to choose among"
        )
        twice = [label for label, count in Counter(self.labels).items() if count > 1]
        require(not twice, f"the head {self.name!r} has the label {twice[:1]} twice; name each once")


@dataclass(frozen=True)
class ModelConfig:
    """One CoCa. The poolers' outputs and the joint embedding have the text width.

    project_embeds: both embeddings pass a linear map into the joint space before they are normalised (OpenCLIP's
        `visual.proj` and `text_projection`); the paper's sizes leave no room for one.
    heads: what tasks have added to it.
    pair_bias: a learned bias of the pairs' logits, as the sigmoid loss wants it.
    time_positions: so many frames of a clip have a learned position in time, added to their tokens before those of all
        frames are pooled together (`model.video`); 0 has none, so that the order of frames changes nothing.
    """

    vision: VisionConfig
    text: TextConfig
    pooler: PoolerConfig = field(default_factory=PoolerConfig)
    init_temperature: float = 0.07
    project_embeds: bool = False
    pair_bias: bool = False
    heads: tuple[HeadConfig, ...] = ()
    time_positions: int = 0

    def __post_init__(self) -> None:
        require(self.time_positions >= 0, f"time_positions {self.time_positions} must not be negative; 0 has none")
        heads = self.pooler.num_heads or self.text.num_heads
        require(
            self.text.width % heads == 0,
            f"the pooler's num_heads {heads} doesn't divide the text width {self.text.width}; give one that does",
        )
        require(
            0.01 <= self.init_temperature <= 1,
            f"init_temperature {self.init_temperature} must be in [0.01, 1], where training clamps it",
        )

        names = [head.name for head in self.heads]
        require(len(set(names)) == len(names), f"two heads have one name among {', '.join(names)}; rename one")

    @property
    def embed_dim(self) -> int:
        """Width of the joint embedding space (E)."""
        return self.text.width


@dataclass(frozen=True)
class PixelConfig:
    """How a picture becomes the encoder's input: channel statistics, and how it is made square.

    fit: "crop" scales the shorter side and crops the centre, "pad" scales the longer side and fills up with the level
        `fill` in every channel (255 is white), "squash" scales both sides, whatever becomes of the shapes.
    resample: the filter that scales.
    indexed: opaque pictures of a colour table or of one bit are scaled "smooth", like any other, or "nearest", as
        CLIP's and OpenCLIP's preprocessing does (they scale before they look the colours up).
    decoder: what reads JPEGs for training. "simplejpeg" reads large ones at a fraction of their size, several times as
        fast, and other pixels come out than with "pillow"; so this is never chosen silently.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fit: Literal["crop", "pad", "squash"] = "crop"
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 255
    indexed: Literal["smooth", "nearest"] = "smooth"
    decoder: Literal["pillow", "simplejpeg"] = "pillow"

    def __post_init__(self) -> None:
        require(0 <= self.fill <= 255, f"fill {self.fill} must be a level from 0 (black) to 255 (white)")
        require(all(std > 0 for std in self.std), f"std {self.std} must be above 0: pixels are divided by it")


@dataclass(frozen=True)
class GenerationConfig:
    """How captions are generated unless the caller says otherwise; it travels with the model.

    Sampling with `temperature` > 0, whatever `beams` says; else beam search with `beams` > 1; else greedy.

    max_tokens, min_tokens: bounds of the caption's length, prompt included, start and end not.
    num_beam_groups: beams in so many groups, each of which is pushed away from what the groups before it chose by
        `diversity_penalty` per equal token.
    length_penalty: captions are ranked by log-probability / length ** length_penalty, both of what follows the prompt;
        length counts tokens and end.
    top_k, top_p: sampling keeps the k likeliest tokens (0: all), of these the likeliest that make up top_p.
    repetition_penalty: logits of tokens that occurred already are divided (if positive, else multiplied) by it.
    no_repeat_ngram: no run of so many tokens occurs twice; 0 turns it off.
    match_weight: the similarity of picture and caption, at the trained temperature, counts so much when the best of
        several captions is chosen; 0 lets the captioner decide alone.
    beam_scores: "log_prob", or "logit": what captions are worth in open_clip's generation, raw logits (for parity only;
        see `infer.search`).
    """

    max_tokens: int = 32
    min_tokens: int = 0
    beams: int = 8
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    seed: int = 0
    match_weight: float = 0.1  # chosen on OpenMoji's val list (docs/LOG.md)
    beam_scores: Literal["log_prob", "logit"] = "log_prob"

    def __post_init__(self) -> None:
        require(
            self.beams >= 1 and self.max_tokens >= 1,
            f"beams {self.beams} and max_tokens {self.max_tokens} must be at least 1",
        )
        require(
            0 <= self.min_tokens <= self.max_tokens,
            f"min_tokens {self.min_tokens} must be between 0 and max_tokens {self.max_tokens}",
        )
        require(
            self.num_beam_groups >= 1 and self.beams % self.num_beam_groups == 0,
            f"beams {self.beams} can't be cut into num_beam_groups {self.num_beam_groups}; take a multiple",
        )
        require(self.diversity_penalty >= 0, f"diversity_penalty {self.diversity_penalty} must not be negative")
        require(self.temperature >= 0, f"temperature {self.temperature} must not be negative; 0 is greedy")
        require(self.top_k >= 0, f"top_k {self.top_k} must not be negative; 0 keeps all tokens")
        require(0 < self.top_p <= 1, f"top_p {self.top_p} must be above 0 and at most 1")
        require(self.repetition_penalty > 0, f"repetition_penalty {self.repetition_penalty} must be above 0")
        require(self.no_repeat_ngram >= 0, f"no_repeat_ngram {self.no_repeat_ngram} must not be negative")
        require(self.match_weight >= 0, f"match_weight {self.match_weight} must not be negative")


@dataclass(frozen=True)
class Config:
    """A whole run: what `recipes` return and checkpoints carry."""

    recipe: str
    model: ModelConfig
    optim: OptimConfig
    data: DataConfig
    pixels: PixelConfig = field(default_factory=PixelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require(
            self.model.pair_bias == (self.loss.contrastive == "sigmoid"),
            f"loss.contrastive {self.loss.contrastive} doesn't go with model.pair_bias {self.model.pair_bias}: the "
            "sigmoid loss, and it alone, trains a bias; set both",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`.

        Raises: ConfigError, naming the field, where a key is unknown, missing or of the wrong type.
        """
        return build_tree(cls, values, "config")

    def with_values(self, assignments: Sequence[str]) -> Config:
        """A copy with fields changed by "section.field=value", the value as JSON or a bare word.

        Raises: ConfigError for an unknown field, a wrong type, or values that contradict each other.
        """
        values = self.to_dict()
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals or not path:
                raise ConfigError(f"can't set {assignment!r}; write section.field=value, as in optim.peak_lr=5e-4")
            try:
                section, name = find_field(values, path)
            except ConfigError as error:
                raise ConfigError(f"can't set {assignment!r}: {error}") from None
            try:
                section[name] = json.loads(text)
            except json.JSONDecodeError:
                section[name] = text
        return build_tree(Config, values, "config", wrong_as_set)
