"""Which pictures a command takes, in what order, and how few of them are read ahead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import three_pictures, tiny
from tests.three_pictures import ALL, lines

from opencoca.cli import pictures
from opencoca.cli.main import main
from opencoca.infer.stream import encoded

model = three_pictures.model
predictor = three_pictures.predictor
folder = three_pictures.folder


def names(found: pictures.Found) -> list[str]:
    return [path.as_posix() for path in found.paths]


# --- which pictures ---------------------------------------------------------------------------------------------


def test_a_folder_is_its_pictures_in_natural_order_without_hidden_and_other_files(folder):
    for name in ("notes.txt", ".hidden.png", ".thumbnails/3.png", "sub/._1.jpg"):
        file = Path("pics", name)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    assert names(pictures.find([Path("pics")])) == ALL


def test_named_files_keep_their_order_count_once_and_may_have_any_suffix(folder):
    Path("picture.dat").write_bytes(b"x")
    found = pictures.find([Path("picture.dat"), Path("pics/2.png"), Path("pics"), Path("pics/2.png")])
    assert names(found) == ["picture.dat", *ALL]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [("pics/*.png", ["pics/2.png"]), ("pics/[0-9]*", ALL[:2]), ("**/*.jpg", ALL[2:]), ("p*", ALL)],
)
def test_patterns_that_the_shell_left_alone_are_expanded(folder, pattern, meant):
    assert names(pictures.find([Path(pattern)])) == meant


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    file = tiny.save_picture(Path("pics/[0-9].png"))
    assert pictures.find([file]).paths == [file]


@pytest.mark.parametrize(
    ("numbered", "ordered"),
    [
        (["a10", "a9", "A1"], ["A1", "a9", "a10"]),
        (["10", "9b", "b", "009"], ["009", "9b", "10", "b"]),
        (["x1y10", "x1y9", "x"], ["x", "x1y9", "x1y10"]),
    ],
)
def test_natural_order(numbered, ordered):
    assert sorted(numbered, key=pictures.natural) == ordered


def test_an_empty_folder_beside_pictures_is_skipped(folder, model, capsys):
    Path("empty").mkdir()
    assert main(["caption", "empty", "pics/2.png", "--model", model, "--beams", "1"]) == 3
    out, err = capsys.readouterr()
    assert len(lines(out)) == 1
    assert err.startswith("skipped empty: it holds no pictures")
    assert err.endswith("\n1 done, 1 skipped\n")


def test_an_unreadable_folder_is_skipped(folder, monkeypatch):
    real = pictures.os.walk

    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", "pics/secret"))
        return real(top, onerror=onerror)

    monkeypatch.setattr(pictures.os, "walk", walk)
    found = pictures.find([Path("pics")])
    assert names(found) == ALL
    assert found.skipped == [(Path("pics/secret"), "can't be read (Permission denied); change its permissions")]


@pytest.mark.parametrize("words", [["caption"], ["classify", "--labels", "a,b"]])
def test_a_missing_path_is_refused_before_any_model_is_loaded(folder, monkeypatch, capsys, words):
    monkeypatch.setattr("opencoca.loading.load", lambda name: pytest.fail("the model was loaded"))
    assert main([*words, "pics", "nosuch.png"]) == 2
    assert capsys.readouterr() == ("", "coca: error: nosuch.png does not exist; check the path\n")


# --- the stream -------------------------------------------------------------------------------------------------


def test_the_stream_reads_no_more_than_a_batch_ahead_and_gives_what_the_predictor_gives(folder):
    predictor = tiny.predictor(batch_size=2)
    paths = [tiny.save_picture(Path(f"{seed}.png"), seed, (30, 20 + seed)) for seed in range(5)]
    paths.insert(1, Path("bad.png"))
    Path("bad.png").write_bytes(b"no picture")
    taken: list[Path] = []
    bad: list[Path] = []
    stream = encoded(predictor, (taken.append(path) or path for path in paths), lambda path, error: bad.append(path))
    batches = [next(stream)]
    assert taken == paths[:5]
    batches += stream
    assert [batch for batch, _ in batches] == [[paths[0], paths[2]], paths[3:5], paths[5:]]
    assert bad == [paths[1]]
    good = [path for path in paths if path not in bad]
    embeds = torch.cat([features.embed for _, features in batches])
    torch.testing.assert_close(embeds, predictor.embed_images(good))
