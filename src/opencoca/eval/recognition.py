"""How often a model's own head knows the label of a picture."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from opencoca.data.sample import Sample
from opencoca.data.sources.protocol import Source
from opencoca.errors import DataError
from opencoca.eval.classification import figures_of
from opencoca.eval.labelled import Labelled, open_labelled
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.infer.heads import head_for, label_logits
from opencoca.infer.predictor import Predictor


class RecognitionEvaluation:
    """acc1, acc5 and mean per-class recall of a head, over pictures with one label each.

    Pictures that can't be read are named and left out; those with a label that the head doesn't know count as wrong.
    """

    def __init__(self, name: str, source: Source, labels: Sequence[str], head: str | None = None) -> None:
        self.name, self._source, self._labels, self._head = name, source, list(labels), head

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model. Raises: DataError where no picture can be read, ConfigError where it has no head."""
        began = time.perf_counter()
        head = head_for(predictor, "encoder", self._head, pictures=1)
        index = {label: number for number, label in enumerate(head.labels)}
        pictures = Pictures(self._source)
        rows: list[int] = []
        best = []
        for batch in predictor.squares(pictures, pictures.skip):
            rows += [picture.row for picture in batch.pictures]
            logits_BL = label_logits(predictor, head, batch.squares)
            best.append(logits_BL.topk(min(5, len(head.labels)), dim=1).indices)
        if not rows:
            raise DataError(f"{self.name}: none of {len(self._source)} pictures can be read; {pictures.skipped[0][1]}")
        unknown = sorted({self._labels[row] for row in rows} - set(index))
        truths = torch.tensor([index.get(self._labels[row], len(index)) for row in rows])
        figures, per_sample = figures_of(torch.cat(best), truths)
        facts = {
            "split_digest": self._source.fingerprint,
            "samples": len(rows),
            "classes": len(head.labels),
            "labels_not_known": unknown[:20],
            "skipped": skipped_facts([*self._source.skipped, *pictures.skipped]),
            "seconds": round(time.perf_counter() - began, 2),
        }
        return EvaluationResult(self.name, figures, "acc1", per_sample, [self._source.keys[r] for r in rows], facts)


class Pictures:
    """The pictures of a source, each with its row; what can't be read is noted."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Numbered]:
        for row in range(len(self._source)):
            try:
                picture = self._source[row].picture
            except DataError as error:
                self.skipped.append((self._source.keys[row], str(error)))
                continue
            yield Numbered(picture, row)

    def skip(self, picture: Numbered, error: DataError) -> None:
        """Notes a picture that was given out and turned out to be damaged."""
        self.skipped.append((self._source.keys[picture.row], str(error)))


class Numbered(bytes):
    """A picture's file, and its row."""

    row: int

    def __new__(cls, picture: bytes, row: int) -> Numbered:
        made = super().__new__(cls, picture)
        made.row = row
        return made


def make(name: str, data: Data, options: Options) -> RecognitionEvaluation:
    """The evaluation of labelled pictures at `--data DATASET=PATH`, by the model's own head."""
    pictures = open_labelled(data[name.partition("/")[0]].path).spread(options.limit)
    return RecognitionEvaluation(name, _Labelled(pictures), [pictures.names[truth][0] for truth in pictures.truths])


class _Labelled:
    """Labelled pictures as a source."""

    def __init__(self, pictures: Labelled) -> None:
        self._pictures, self.keys, self.skipped = pictures, pictures.ids, pictures.skipped
        self.fingerprint, self.shards = pictures.digest, [range(len(pictures))]

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, i: int, /) -> Sample:
        return self._pictures.read(i)
