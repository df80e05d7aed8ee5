"""A report of a little of everything, and a page taken apart, so that nothing hangs on how it is written.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

import re
import struct
import zlib
from html.parser import HTMLParser

import pytest

from opencoca import report

VOID = {"img", "meta", "br", "hr", "link", "input"}


def png() -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


class Page(HTMLParser):
    """A page taken apart; tags that don't match fail at once."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.html = html
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def attributes(self, name: str) -> list[str]:
        return [found for _, attributes in self.tags if (found := attributes.get(name)) is not None]

    def classes(self) -> list[str]:
        return [one for value in self.attributes("class") for one in value.split()]


@pytest.fixture
def data() -> report.ReportData:
    figure = report.Figure(
        "image-to-text R@1", 47.3, "%", [("pixel neighbour", 12.04), ("no image", None)], 0.25, "ranked first", True
    )
    plain = report.Figure("CIDEr-D", 3.1234, "", [("shuffled", 0.08)])
    found = [report.Retrieved("tin whistle", 0.714, False), report.Retrieved("old harp", 0.652, True)]
    return report.ReportData(
        title="A small CoCa",
        subtitle=["trained in four minutes"],
        facts=[("parameters", "4.9 million")],
        charts=[report.Chart("Losses", "nats", [report.Curve("contrastive", [(0, 9.0), (100, 1.52)])])],
        results=[report.Results("test_pictures", "drawn at random", 400, [figure, plain])],
        controls=[("pixel neighbour", "copies the caption of the nearest picture")],
        grid=[
            report.Example(png(), "old harp", "old harp", True, found[::-1]),
            report.Example(
                png(), "Dark horse, running", "dark cat running away", False, found, held_out="test_pictures"
            ),
        ],
        grid_note="Every tenth picture.",
        confusions=[
            report.Confusion("Tone", ["light", "dark"], [[19, 1], [0, 0]], 95.0, 50.0, [("colours", 61.0)], "two tones")
        ],
        next_steps=[("Describe a picture.", "coca caption 'my photo.png'")],
        credits=[["Pictures by ", report.Link("OpenMoji", "https://openmoji.org"), "."]],
    )
