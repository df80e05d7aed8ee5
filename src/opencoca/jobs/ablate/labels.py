"""Pictures with labels, for table a: the concept that each shows, with skin tone and gender taken out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from opencoca.data.sample import Sample
from opencoca.data.sources.protocol import Source
from opencoca.errors import DataError

LEAST = 5  # pictures of a concept that is a label


class Labelled:
    """The samples of a source whose concept has `LEAST` pictures or more, with the concept's name for a caption.

    names: one per label. labels: the label of each key. Is itself a source, with windows of one file for all.
    """

    def __init__(self, source: Source) -> None:
        """Raises: DataError where no concept has as many pictures."""
        self._source = source
        samples = [source[i] for i in range(len(source))]
        counts = Counter(sample.attributes.get("concept") for sample in samples)
        self._rows = [i for i, s in enumerate(samples) if s.attributes.get("concept") and _is_label(s, counts)]
        if not self._rows:
            raise DataError(
                f"no concept of the training pictures has {LEAST} of them, so there are no labels for table a; prepare "
                "OpenMoji with `coca quickstart`, or leave table a out"
            )
        captions = defaultdict(list)
        for i in self._rows:
            captions[samples[i].attributes["concept"]].append(without_tone(samples[i].caption))
        concepts = sorted(captions)
        names = [min(captions[concept], key=lambda text: (len(text), text)) for concept in concepts]
        shared = Counter(names)
        self.names = tuple(f"{n} ({c})" if shared[n] > 1 else n for n, c in zip(names, concepts, strict=True))
        self.numbers = {concept: number for number, concept in enumerate(concepts)}
        self.labels = {samples[i].key: self.numbers[samples[i].attributes["concept"]] for i in self._rows}
        self.keys = [samples[i].key for i in self._rows]

    @property
    def fingerprint(self) -> str:
        return f"labels of {self._source.fingerprint}"

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        return self._source.skipped

    @property
    def shards(self) -> Sequence[range]:
        return [range(len(self))]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int, /) -> Sample:
        sample = self._source[self._rows[i]]
        return sample._replace(caption=self.names[self.labels[sample.key]], more_captions=())


def without_tone(caption: str) -> str:
    """ "police officer" of "police officer, dark skin tone"."""
    return caption.rpartition(", ")[0] if caption.endswith("skin tone") and ", " in caption else caption


def _is_label(sample: Sample, counts: Counter) -> bool:
    return counts[sample.attributes["concept"]] >= LEAST
