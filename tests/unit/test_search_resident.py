"""The resident process without its socket: what it looks at again before it answers, and what it needn't."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny

from opencoca.search import resident, update
from opencoca.search.answers import Request
from opencoca.search.index import Index
from opencoca.search.query import Term


class Looks:
    """A resident, and how often it brought its index up to date."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.place, self.updates = home / "pics", home / "index", 0
        self.predictor = tiny.predictor(batch_size=2)
        monkeypatch.setattr(resident, "predictor_for", lambda folder, index, model: (self.predictor, "tiny"))
        monkeypatch.setattr(resident, "update", self._counted)
        for seed in range(3):
            tiny.save_picture(self.folder / f"{seed}.png", seed)
        Index.make(self.folder, self.predictor, "tiny", index=self.place)
        self.resident = resident.Resident(self.folder, self.place, None)

    def _counted(self, *words: Any, **options: Any) -> update.Counts:
        self.updates += 1
        return update.update(*words, **options)

    def ask(self) -> tuple[set[str], int]:
        """The names that are found, and whether this took an update."""
        self.updates = 0
        request = Request([Term(1, "text", "red circle")], top=100)
        answer = self.resident.answer({"update": True, "search": request.to_json()})
        return {Path(hit["path"]).name for hit in answer["hits"]}, self.updates


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
    torch.set_num_threads(1)
    return Looks(tmp_path, monkeypatch)


def test_an_unchanged_folder_is_updated_once(looks):
    assert looks.ask() == ({"0.png", "1.png", "2.png"}, 1)
    assert looks.ask() == ({"0.png", "1.png", "2.png"}, 0)


@pytest.mark.parametrize("change", ["added", "removed", "moved", "altered", "touched"])
def test_every_change_is_seen(looks, change):
    looks.ask()
    first = looks.folder / "0.png"
    want = {"0.png", "1.png", "2.png"}
    if change == "added":
        tiny.save_picture(looks.folder / "3.png", 3)
        want |= {"3.png"}
    elif change == "removed":
        first.unlink()
        want -= {"0.png"}
    elif change == "moved":
        first.rename(looks.folder / "4.png")
        want = want - {"0.png"} | {"4.png"}
    elif change == "altered":
        first.write_bytes(b"not a picture")
        want -= {"0.png"}
    else:
        os.utime(first, ns=(1, 1))
    assert looks.ask() == (want, 1)
    assert looks.ask() == (want, 0)


def test_an_index_that_another_process_changed_is_looked_at_again(looks):
    looks.ask()
    Index.make(looks.folder, looks.predictor, "tiny", index=looks.place, captions=True)
    assert looks.ask()[1] == 1
    assert looks.ask()[1] == 0
