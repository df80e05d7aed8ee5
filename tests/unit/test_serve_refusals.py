"""What the server says of pictures and labels that it can't use."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image
from tests.served import Client, picture, serving
from tests.unit.test_serve_attacks import png_bomb

from opencoca.cli.main import main
from opencoca.errors import DataError, TooLargeError
from opencoca.serve import engine
from opencoca.serve.settings import Limits

UNREADABLE = "images[0] can't be read as a picture; give a whole JPEG, PNG, WebP, GIF, BMP or AVIF file"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving() as started:
        yield started


def said(client: Client, path: str, content: bytes) -> str:
    answer = client.post(path, content)
    assert answer.status == 422, answer.body
    return answer.json()["error"]["message"]


def blank(size: tuple[int, int], form: str) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, 90).save(file, form)
    return file.getvalue()


def test_a_picture_that_is_too_large_is_told_from_a_damaged_one(client: Client) -> None:
    too_large = "images[0] has more than 40 million pixels; make it smaller"
    large = blank((9000, 7000), "JPEG")
    for content in (large, large[: len(large) // 2], png_bomb(), png_bomb(20_000)):
        assert said(client, "/caption", content) == too_large
    for content in (b"", b"has 9 x 9 pixels, more than 4", picture()[:60], blank((90, 90), "JPEG")[:300]):
        assert said(client, "/caption", content) == UNREADABLE
    with serving(limits=Limits(idle_s=1, pixels=2500)) as small:
        assert said(small, "/caption", picture(0, (60, 60))) == "images[0] has more than 2,500 pixels; make it smaller"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TooLargeError("in words of any kind"), "images[0] has more than 40 million pixels; make it smaller"),
        (DataError("images[0] has more than 4 kinds of damage; replace it"), UNREADABLE),
    ],
)
def test_no_wording_of_a_decoder_tells_which_it_is(client: Client, monkeypatch, error: DataError, told: str) -> None:
    def refuse(*args: object) -> None:
        raise error

    monkeypatch.setattr(engine, "open_picture", refuse)
    assert said(client, "/caption", picture(3)) == told


def test_a_single_label_is_refused_as_on_the_command_line(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    words = "'dog' is the only label, so there is nothing to choose; give two, as in cat,dog"
    assert said(client, "/classify?labels=dog", picture()) == words
    assert main(["classify", "a.png", "--labels", "dog"]) == 2 and words in " ".join(capsys.readouterr().err.split())
    for more in ("unknown", "multi_label"):
        found = client.post(f"/classify?labels=dog&{more}=true", picture()).json()["results"][0]["labels"]
        assert found[0]["probability"] < 1
