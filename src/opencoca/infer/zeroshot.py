"""Zero-shot labels: templates, an "unknown" column, independent labels, and likelihoods instead of similarities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca.errors import ConfigError, DataError
from opencoca.infer.calibration import Calibration, adjusted
from opencoca.types import ImageFeatures

if TYPE_CHECKING:
    from opencoca.infer.predictor import Predictor

Method = Literal["contrastive", "score"]

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "photo": (
        "a photo of a {}",
        "a photo that shows the {}",
        "a {} photographed from close by",
        "a {} seen from far away",
        "a snapshot with a {} in it",
    ),
    "imagenet": (
        "a photo of a {}",
        "a blurry photo of a {}",
        "a close view of the {}",
        "a {} on its own",
        "many {}s together",
        "a drawing of a {}",
        "a {} made as a toy",
    ),
    "drawing": ("{}", "a drawing of a {}", "an icon of a {}", "a {} as a cartoon", "a simple sketch of a {}"),
}
# General kinds of things, none of which is likely to be meant by a label. Their likelihoods are averaged: on OpenMoji's
# held-out pictures that tells pictures of other things better than "something" does (AUROC 0.74 and 0.69, 2 labels).
NEUTRAL = (
    "person",
    "animal",
    "plant",
    "food",
    "building",
    "vehicle",
    "tool",
    "piece of clothing",
    "landscape",
    "sign",
    "shape",
    "text",
    "thing",
    "pattern",
)
UNKNOWN = "unknown"


class ZeroShotOptions(TypedDict, total=False):
    """How labels are judged.

    templates: sentences with {} for the label, which are averaged, or the name of a set in `TEMPLATES`; default "{}".
    unknown: a last column, the probability that no label fits. One more label stands for it, as likely as general
        kinds of things (`NEUTRAL`, in the templates) are on average; or as the text, or the texts, given instead.
    multi_label: each label alone against what stands for unknown, so that rows need not sum to 1; the last column of
        unknown is then the probability that none fits.
    method: "contrastive" takes similarities at the trained temperature, "score" the likelihoods of the sentences as
        captions, in which long and rare words have a hard time.
    calibration: what `Predictor.fit_calibration` found, for the same labels and options.
    """

    templates: str | Sequence[str]
    unknown: bool | str | Sequence[str]
    multi_label: bool
    method: Method
    calibration: Calibration | None


class ZeroShot:
    """Labels made ready once, for any number of encoded pictures.

    columns: the labels, and "unknown" where it was asked for: the columns of what it returns.
    """

    def __init__(
        self,
        predictor: Predictor,
        labels: Sequence[str],
        *,
        templates: str | Sequence[str] = ("{}",),
        unknown: bool | str | Sequence[str] = False,
        multi_label: bool = False,
        method: Method = "contrastive",
        calibration: Calibration | None = None,
    ) -> None:
        """See `Predictor.classify`.

        Raises: DataError for labels and templates that can't be used; ConfigError for a method that doesn't exist, or a
          calibration that was fitted for other settings.
        """
        if method not in ("contrastive", "score"):
            raise ConfigError(f"unknown method {method!r}; choose 'contrastive' or 'score'")
        labels, templates = checked_labels(labels), checked_templates(templates)
        others = checked_unknown(unknown)
        if unknown and UNKNOWN in labels:
            raise DataError(f"a label is named {UNKNOWN!r}, as the extra column; rename it, or leave unknown out")
        if calibration is not None:
            calibration.check(method, bool(unknown), multi_label)
        self.columns = (*labels, UNKNOWN) if unknown else labels
        self.uncalibrated = Calibration(method, bool(unknown), multi_label)
        self._predictor, self._calibration = predictor, calibration or self.uncalibrated
        self._num_labels, self._method, self._multi_label = len(labels), method, multi_label
        self._sentences = sentences(labels, templates)
        if others:
            self._sentences += [[text] for text in others]
        elif unknown or multi_label:
            meant = {label.strip().lower() for label in labels}
            self._sentences += sentences([kind for kind in NEUTRAL if kind not in meant], templates)
        if method == "contrastive":
            self._embeds_LE = averaged(predictor, self._sentences)

    def logits(self, features: ImageFeatures) -> Tensor:
        """Logits float32 [B,L] of encoded pictures, and [B,L+1] where a neutral text stands against the labels.

        Similarities at the trained temperature, or with the method "score" the log of the mean likelihood of each
        label's sentences, in nats.
        """
        if self._method == "contrastive":
            return self._with_neutral(self._predictor.scale * features.embed.float().cpu() @ self._embeds_LE.T)
        texts, sizes = [text for some in self._sentences for text in some], [len(some) for some in self._sentences]
        columns = self._predictor.score_features(features, texts).split(sizes, dim=1)
        return self._with_neutral(torch.stack([_log_mean_exp(some) for some in columns], dim=1).float())

    def probabilities(self, features: ImageFeatures) -> Tensor:
        """Probabilities float32 [B,L], or [B,L+1] with unknown, of encoded pictures."""
        count, calibration = self._num_labels, self._calibration
        logits_BL = adjusted(self.logits(features), count, calibration.factor, calibration.bias)
        if not self._multi_label:
            return logits_BL.softmax(dim=-1)
        against_BL = logits_BL[:, :count] - logits_BL[:, count:]
        none_B1 = F.logsigmoid(-against_BL).sum(dim=1, keepdim=True).exp()
        return torch.cat([against_BL.sigmoid(), none_B1], dim=1)[:, : len(self.columns)]

    def _with_neutral(self, logits: Tensor) -> Tensor:
        count = self._num_labels
        if logits.shape[1] == count:
            return logits
        return torch.cat([logits[:, :count], _log_mean_exp(logits[:, count:])[:, None]], dim=1)

    def targets(self, truths: Sequence[str | Sequence[str] | None]) -> Tensor:
        """Which labels are true, bool [I,L+1]: the last column where none is.

        Raises: DataError for a truth that is no label, or several where one may be true.
        """
        known = {label: column for column, label in enumerate(self.columns[: self._num_labels])}
        targets_IL = torch.zeros(len(truths), self._num_labels + 1, dtype=torch.bool)
        for row, truth in enumerate(truths):
            some = [] if truth is None else [truth] if isinstance(truth, str) else list(truth)
            foreign = [label for label in some if label not in known]
            if foreign:
                raise DataError(f"truth {foreign[0]!r} is not among the labels {list(known)}; None is for none of them")
            if len(some) > 1 and not self._multi_label:
                raise DataError(f"truths[{row}] has {len(some)} labels; with multi_label=True several may be true")
            if not some and not (len(self.columns) > self._num_labels or self._multi_label):
                raise DataError(f"truths[{row}] is none of the labels; unknown=True has a column for it")
            targets_IL[row, [known[label] for label in some] or [self._num_labels]] = True
        return targets_IL


def sentences(labels: Iterable[str], templates: Sequence[str]) -> list[list[str]]:
    """Each label in each template."""
    return [[template.replace("{}", label) for template in templates] for label in labels]


def averaged(predictor: Predictor, groups: Sequence[Sequence[str]]) -> Tensor:
    """Unit-norm means [L,E] of the embeddings of groups of texts."""
    embeds = predictor.embed_texts([text for some in groups for text in some])
    means = [some.mean(dim=0) for some in embeds.split([len(some) for some in groups])]
    return F.normalize(torch.stack(means), dim=-1)


def _log_mean_exp(x: Tensor) -> Tensor:
    return x.logsumexp(dim=1) - math.log(x.shape[1])


def checked_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels, which must be different, non-empty strings.

    Raises: DataError.
    """
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise DataError(f"labels must be a list, as in ['cat', 'dog'], got {labels!r}")
    labels = tuple(labels)
    if not labels:
        raise DataError("labels must be a list of at least one label, as in ['cat', 'dog']")
    if not all(isinstance(label, str) for label in labels):
        raise DataError(f"labels must be strings, got {list(labels)}")
    repeated = [label for label, count in Counter(label.strip() for label in labels).items() if count > 1]
    if repeated or any(not label.strip() for label in labels):
        raise DataError(f"labels must differ and not be empty; repeated: {repeated}, all: {list(labels)}")
    return labels


def checked_unknown(unknown: bool | str | Sequence[str]) -> list[str]:
    """The texts that stand for "no label fits"; none for True or False.

    Raises: DataError.
    """
    if isinstance(unknown, bool):
        return []
    texts = [unknown] if isinstance(unknown, str) else list(unknown)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"unknown is {unknown!r}; give True, or a text or texts that fit when no label does")
    return texts


def checked_templates(templates: str | Iterable[str]) -> tuple[str, ...]:
    """The sentences of a named set (`TEMPLATES`), or those given, each of which must have {} for the label.

    Raises: DataError.
    """
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if "{}" in templates:
            raise DataError(f"templates must be a list, as in [{templates!r}]")
        raise DataError(f"unknown templates {templates!r}; choose {', '.join(TEMPLATES)}, or give a list of sentences")
    templates = tuple(templates)
    if not templates or not all(isinstance(template, str) and "{}" in template for template in templates):
        raise DataError(f"every template needs {{}} where the label goes, got {list(templates)}")
    return templates
