"""Exact neighbours against brute force in float64, with and without sketches; copies, albums and the sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny

from opencoca.search import albums, exact
from opencoca.search.sheet import Cell, sheet


def unit(rows: int, width: int, seed: int, cone: float = 0.0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=draws) + cone * torch.randn(1, width, generator=draws)
    return torch.nn.functional.normalize(values, dim=1)


def brute(rows: torch.Tensor, query: np.ndarray, k: int, keep: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    scores = (rows.double() @ torch.from_numpy(query).double()).float().numpy()
    allowed = np.flatnonzero(np.ones(len(rows), bool) if keep is None else keep)
    order = allowed[np.lexsort((allowed, -scores[allowed]))][:k]
    return order, scores[order]


@pytest.mark.parametrize("cone", [0.0, 3.0])
@pytest.mark.parametrize("width", [24, 256])
def test_nothing_is_lost_by_the_rough_look(width, cone, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", 700)
    monkeypatch.setattr(exact, "TILE", 96)
    rows = unit(3000, width, 0, cone).half()
    rows[1500:1510] = rows[0]  # ties are ordered by row
    parts = [exact.Rows(some, exact.sketch_of(some) if i != 1 else None) for i, some in enumerate(rows.split(1100))]
    keep = np.random.default_rng(0).random(3000) < 0.02
    for seed in range(20):
        query = unit(1, width, 100 + seed, cone)[0].numpy() if seed else rows[0].float().numpy()
        for k, kept in ((1, None), (10, None), (100, None), (5000, None), (10, keep), (100, keep)):
            found, want = exact.nearest(parts, query, k, kept), brute(rows, query, k, kept)
            np.testing.assert_array_equal(found[0], want[0])
            np.testing.assert_array_equal(found[1], want[1])


def test_the_rough_score_is_as_near_as_it_says():
    rows = unit(500, 64, 1).half()
    sketch = exact.sketch_of(rows)
    for seed in range(20):
        query = unit(1, 64, seed)[0]
        [(_, scores, error, worst)] = exact._sketched(sketch, query)
        off = (scores - rows.double() @ query.double()).abs()
        assert (off <= error).all()
        assert error.max() <= worst < 0.03  # and it says something


def test_no_rows_and_a_zero_row():
    assert len(exact.nearest([], np.ones(4, np.float32), 3, None)[0]) == 0
    rows = torch.cat((torch.zeros(1, 8), unit(9, 8, 0))).half()
    query = unit(1, 8, 5)[0].numpy()
    found = exact.nearest([exact.Rows(rows, exact.sketch_of(rows))], query, 10, None)
    np.testing.assert_array_equal(found[0], brute(rows, query, 10)[0])


def test_copies_are_linked_whatever_the_block(monkeypatch):
    rows = unit(60, 32, 3)
    rows[40] = torch.nn.functional.normalize(rows[2] + 0.01 * rows[5], dim=0)
    rows[59] = torch.nn.functional.normalize(rows[40] + 0.01 * rows[6], dim=0)
    rows[11] = rows[10]
    want = [[2, 40, 59], [10, 11]]
    for block in (7, 2048):
        monkeypatch.setattr(albums, "BLOCK", block)
        assert albums.duplicates(rows.numpy().astype(np.float16)) == want


def test_albums_keep_alike_pictures_together_and_have_titles():
    middles = unit(3, 32, 4)
    rows = torch.nn.functional.normalize(middles.repeat_interleave(10, 0) + 0.05 * unit(30, 32, 5), dim=1).numpy()
    captions = [f"{what} number {i}" for what in ("red boat", "a cat", "green tree") for i in range(10)]
    made = albums.albums(rows, captions, 3)
    assert [sorted(album.places) for album in made] == [list(range(i, i + 10)) for i in (0, 10, 20)]
    assert [album.title for album in made] == ["red boat number", "cat number", "green tree number"]
    assert albums.albums(rows, captions, 3) == made
    assert albums.albums(rows[:0], []) == []
    assert albums.title(["", ""]) == "pictures without a caption"


def test_the_sheet_holds_its_pictures_and_no_foreign_markup(tmp_path: Path):
    file = tiny.save_picture(tmp_path / "a.png")
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(2)>\x00\udcff'
    page = sheet(evil, evil, [(evil, [Cell(file, evil, evil, evil), Cell(tmp_path / "gone.png", "gone.png", "", "")])])
    assert "weak matches" not in page
    assert "Faint pictures are weak matches" in sheet("t", "n", [("", [Cell(file, "a", "", "", good=False)])])
    page.encode()  # even of a name that is no UTF-8
    assert "<script" not in page and "<img src=x" not in page
    assert page.count('src="data:image/jpeg;base64,') == 1
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "default-src &#x27;none&#x27;" in page
    assert "gone.png does not exist" in page
