"""The resident process without its socket: what it looks at again before it answers, and what it needn't."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny

from opencoca.cli.main import main
from opencoca.errors import DataError
from opencoca.search import client, resident, update
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

    def answer(self, looking: bool = True) -> dict[str, Any]:
        """What the process sends; with `looking`, it is asked to look for what changed."""
        request = Request([Term(1, "text", "red circle")], top=100)
        return self.resident.answer({"update": looking, "search": request.to_json()})

    def ask(self) -> tuple[set[str], int]:
        """The names that are found, and whether this took an update."""
        self.updates = 0
        return {Path(hit["path"]).name for hit in self.answer()["hits"]}, self.updates


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


def test_what_cannot_be_read_is_named_once(looks, monkeypatch, capsys):
    monkeypatch.setattr(client, "can", lambda: True)
    monkeypatch.setattr(client, "ask", lambda place, model, message: looks.resident.answer(message))
    words = ["search", str(looks.folder), "boat"]
    again = "skipped {} that can't be read and were named before; list them with: coca index " + str(looks.folder)

    def said(*more: str) -> tuple[int, list[str]]:
        code = main([*words, *more])
        return code, [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]

    assert said() == (0, [])
    for name in ("a.png", "b.png"):
        (looks.folder / name).write_bytes(b"")
    a, b, c = (f"skipped {looks.folder}/{n}.png: it is empty (0 bytes); copy or download it again" for n in "abc")
    assert said("--no-update") == (0, []), "as without the process: nobody looked"
    assert said() == (3, [a, b, "3 done, 2 skipped"])
    for _ in range(2):
        assert said() == (3, [again.format(2), "3 done, 2 skipped"])
    (looks.folder / "c.png").write_bytes(b"")
    assert said() == (3, [c, again.format(2), "3 done, 3 skipped"])
    assert said() == (3, [again.format(3), "3 done, 3 skipped"])


def test_what_a_search_has_named_before_the_process_began_is_counted(looks):
    (looks.folder / "bad.png").write_bytes(b"")
    Index.make(looks.folder, looks.predictor, "tiny", index=looks.place)
    answer = looks.answer()
    assert (answer["bad"], answer["named_before"]) == ([], 1)


def test_a_search_that_fails_names_nothing(looks):
    (looks.folder / "bad.png").write_bytes(b"")
    request = Request([Term(1, "picture", "/nosuch.png")])
    with pytest.raises(DataError, match="nosuch"):
        looks.resident.answer({"update": True, "search": request.to_json()})
    tiny.save_picture(looks.folder / "4.png", 4)
    assert [path for path, _ in looks.answer()["bad"]] == ["bad.png"]
    assert looks.answer()["bad"] == []
