"""The shipped model by `coca eval` on a few drawings: above chance, with a report and a rerun that costs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opencoca.cli.main import main
from opencoca.data.openmoji import load_table, render
from opencoca.errors import DataError

EMOJI = (
    *("1F408", "1F415", "1F6B2", "1F3E0", "1F34C", "2602", "1F41F", "1F418", "1F682", "1F34E", "2B50", "1F333"),
    *("26F5", "1F511", "1F3B8", "1F941", "1F98B", "1F980"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings in folders of their classes, and a table of captioned ones with one that is broken."""
    folder = tmp_path_factory.mktemp("data")
    captions = {row.id: row.caption for row in load_table()}
    try:
        render("1F408", 64)
    except DataError as error:
        pytest.skip(str(error))
    known = [emoji for emoji in EMOJI if emoji in captions]
    for emoji in known:
        (folder / "classes" / captions[emoji]).mkdir(parents=True)
        (folder / "classes" / captions[emoji] / f"{emoji}.png").write_bytes(render(emoji, 64))
        (folder / f"{emoji}.png").write_bytes(render(emoji, 64))
    (folder / "classes/zeroshot_classification_templates.txt").write_text("{c}\na drawing of a {c}\n")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    rows = [f"{emoji}.png,{captions[emoji]}" for emoji in known]
    (folder / "pairs.csv").write_text("\n".join(["path,caption", *rows, "broken.png,a thing"]) + "\n")
    return folder


def test_the_shipped_model_beats_chance(data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("OPENCOCA_HOME", str(tmp_path / "home"))
    words = ["eval", "drawings", "--suite", "smoke", "--beams", "2", "--json", str(tmp_path / "out.json")]
    words += ["--report", str(tmp_path / "out.html")]
    words += ["--data", f"classes={data / 'classes'}", f"pairs={data / 'pairs.csv'}"]
    assert main(words) == 3, "one picture can't be read"
    out = capsys.readouterr().out
    assert "left out: 1; broken.png:" in out
    (model,) = json.loads((tmp_path / "out.json").read_text())["models"]
    found = {one["name"]: one for one in model["evaluations"]}
    for name, metric in (("classes/zeroshot", "acc1"), ("pairs/retrieval", "i2t_recall@1")):
        assert found[name]["facts"]["chance"] < 0.07
        assert found[name]["intervals"][metric][0] > found[name]["facts"]["chance"]
    assert len(found["pairs/captions"]["sample_ids"]) == len(found["pairs/retrieval"]["sample_ids"])
    assert (tmp_path / "out.html").stat().st_size > 10_000
    assert main(words) == 3
    assert capsys.readouterr().err.count("kept from before") == 3
