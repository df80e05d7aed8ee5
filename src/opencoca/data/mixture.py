"""Several sources as one, with the weights that the order draws them by."""

from __future__ import annotations

from collections.abc import Sequence

from opencoca.config_training import DataConfig
from opencoca.data.sources import open_source
from opencoca.data.sources.joined import JoinedSource
from opencoca.data.sources.protocol import Source
from opencoca.errors import ConfigError


class Mixture(JoinedSource):
    """The samples of several sources, one source behind the other; `weights` says how often each is drawn.

    Keys get their source's number in front, as in "1/dog", since sources don't know of each other's.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        super().__init__(sources, [str(number) for number in range(len(sources))])
        self.weights = list(weights)


def open_training_source(data: DataConfig) -> Source:
    """What `data` trains on: the training split of its folder, or of each part of its mixture.

    Raises: DataError if there is nothing to read; ConfigError if the mixture isn't written as it should be.
    """
    if not data.mixture:
        return open_source(data.folder, data.train_split)
    parts = parse_mixture(data.mixture)
    return Mixture([open_source(path, data.train_split) for path, _ in parts], [weight for _, weight in parts])


def parse_mixture(entries: Sequence[str]) -> list[tuple[str, float]]:
    """(path, weight) of each "PATH=WEIGHT".

    Raises: ConfigError for one that isn't, or a weight that isn't above 0.
    """
    parsed = []
    for entry in entries:
        path, _, text = entry.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = 0.0
        if not path or not 0 < weight < float("inf"):
            raise ConfigError(f"data.mixture {entry!r} isn't PATH=WEIGHT with a weight above 0, as in data/cats=0.5")
        parsed.append((path, weight))
    return parsed
