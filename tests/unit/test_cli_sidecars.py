"""What `--write` leaves beside the pictures: made once, never over words that somebody wrote, never half."""

from __future__ import annotations

import re
from pathlib import Path

from tests import commands, tiny
from tests.commands import ALL, interrupt_after, ran

from opencoca.cli.forms import shown
from opencoca.cli.xmp import Xmp

model, predictor, folder = commands.model, commands.predictor, commands.folder


def test_sidecars_hold_the_captions_and_are_not_made_twice(folder, predictor, monkeypatch, capsys):
    words = ["caption", "pics", "--beams", "1", "--write", "sidecar"]
    with monkeypatch.context() as patched:
        interrupt_after(patched, predictor, batches=1)
        _, err = ran(capsys, *words, code=130)
    assert err.splitlines()[0] == "1 done, kept in files beside the pictures; the same command does the rest"
    out, err = ran(capsys, *words)
    assert [line.split("\t")[0] for line in out.splitlines()] == ALL[1:]
    assert err == "2 done, 1 there already\n"
    captions = predictor.caption(ALL, beams=1)
    assert [Path(name).with_suffix(".txt").read_text() for name in ALL] == [f"{shown(one)}\n" for one in captions]


def test_words_that_somebody_wrote_are_replaced_only_when_asked_to(folder, predictor, capsys):
    Path("pics/2.txt").write_text("my own words")
    words = ["caption", "pics/2.png", "--beams", "1", "--write", "sidecar"]
    assert ran(capsys, *words) == ("", "0 done, 1 there already\n")
    assert Path("pics/2.txt").read_text() == "my own words"
    ran(capsys, *words, "--overwrite")
    assert Path("pics/2.txt").read_text() == shown(predictor.caption("pics/2.png", beams=1)[0]) + "\n"


def test_two_pictures_that_would_share_a_sidecar_are_told_apart(folder, capsys):
    tiny.save_picture(Path("pics/2.jpg"), 5)
    _, err = ran(capsys, "caption", "pics/2.png", "pics/2.jpg", "--beams", "1", "--write", "sidecar", code=3)
    said = "skipped pics/2.jpg: it would share 2.txt with pics/2.png; rename one of the two\n1 done, 1 skipped\n"
    assert err == said


def test_an_xmp_file_gets_the_description_and_labels_and_keeps_the_rest(folder, predictor, capsys):
    words = ["--write", "xmp"]
    labels = ["red", "blue"]
    ran(capsys, "caption", "pics", "--beams", "1", *words)
    ran(capsys, "classify", "pics", "--labels", ",".join(labels), *words)
    best = predictor.classify(ALL, labels).argmax(dim=1).tolist()
    for path, caption, label in zip(ALL, predictor.caption(ALL, beams=1), best, strict=True):
        xmp = Xmp.load(Path(path).with_suffix(".xmp"))
        assert xmp.items("description") == [re.sub("[\x00-\x08\x0b-\x1f]", "", caption)]
        assert xmp.items("subject") == [labels[label]]
    for command in (["caption", "pics", "--beams", "1"], ["classify", "pics", "--labels", "red,blue"]):
        assert ran(capsys, *command, *words) == ("", "0 done, 3 there already\n")


def test_a_photo_managers_own_xmp_file_is_used_and_a_broken_one_left(folder, capsys):
    Path("pics/2.png.xmp").write_text(Xmp.load(Path("nosuch")).text(), encoding="utf-8")
    Path("pics/10.xmp").write_text("<broken")
    _, err = ran(capsys, "caption", "pics", "--beams", "1", "--write", "xmp", code=3)
    assert len(Xmp.load(Path("pics/2.png.xmp")).items("description")) == 1
    assert not Path("pics/2.xmp").exists()
    assert err.startswith("skipped pics/10.png: it has a 10.xmp that can't be used: it isn't XML")
    assert Path("pics/10.xmp").read_text() == "<broken"


def test_a_picture_whose_folder_cannot_be_written_is_skipped(folder, monkeypatch, capsys):
    from opencoca.cli import sidecar

    real = sidecar.write_atomically

    def write(path: Path, text: str) -> None:
        if path.name == "10.txt":
            raise PermissionError(13, "Permission denied", str(path))
        real(path, text)

    monkeypatch.setattr(sidecar, "write_atomically", write)
    out, err = ran(capsys, "caption", "pics", "--beams", "1", "--write", "sidecar", code=3)
    assert [line.split("\t")[0] for line in out.splitlines()] == [ALL[0], ALL[2]]
    assert err.splitlines() == [
        "skipped pics/10.png: it was read, but 10.txt can't be written (Permission denied); change that",
        "2 done, 1 skipped",
    ]
