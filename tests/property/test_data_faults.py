"""Bad captions, tables, json and tars: a named error or a counted skip, and never a sample lost unsaid."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opencoca.data.sources import open_source
from opencoca.data.sources.tar_scan import scan
from opencoca.errors import DataError

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    ["a.png", "b/c.png", "..", "../x.png", "pipe:x", "https://x/y.png", " ", "\u200b", '"', "a\x00b"]
)  # fmt: skip
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


def opened(name: str, content: bytes, **options):
    """The source in a file with this content, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return open_source(path, **options)
        except DataError as error:
            assert str(path) in str(error) or "the json" in str(error)
            assert "\n" not in str(error) and ";" in str(error)
            return error


def accounted(source) -> int:
    """How many captions were taken, and how many rows or captions were not."""
    return len(source._captions) + len(source.skipped) + source.ignored.total()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=8))
def test_every_row_of_a_table_is_a_caption_or_counted(rows):
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([("path", "caption"), ("first.png", "a good one"), *rows])
    source = opened("t.csv", file.getvalue().encode())
    assert not isinstance(source, DataError)
    # A row whose caption is a JSON list stands for as many captions as that has; the text above has none.
    assert accounted(source) == 1 + len(rows) and source.keys[0] == "first.png"
    lines = "\n".join(json.dumps({"image": path, "text": caption}) for path, caption in rows)
    source = opened("t.jsonl", b'{"image": "first.png", "text": "a good one"}\n' + lines.encode())
    assert accounted(source) == 1 + len(rows)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "t.json", "t.tar", "t.index", "t.parquet"]), st.binary(max_size=1200)
)
@example("t.csv", b'path,caption\na.png,"open')
@example("t.csv", b"path,caption\r\ra.png,x")
@example("t.json", b'{"images": [1], "annotations": [2]}')
@example("t.jsonl", b"9" * 5000)
def test_any_bytes_are_an_error_or_a_source(name, content):
    if name == "t.parquet":
        pytest.importorskip("pyarrow")
    source = opened(name, content)
    assert isinstance(source, DataError) or len(source) > 0


@settings(max_examples=150, deadline=None)
@given(json_value, json_value)
@example([{"id": 1, "file_name": "a"}], [{"image_id": 1, "caption": "x"}, {"image_id": 1.5, "caption": "x"}])
def test_any_json_in_the_form_of_coco_is_an_error_or_a_source(images, annotations):
    content = {"images": images, "annotations": annotations}
    source = opened("captions_val.json", json.dumps(content).encode())
    if not isinstance(source, DataError):
        assert accounted(source) >= len(annotations)
    good = {"images": [{"id": -1, "file_name": "good.png"}], "annotations": [{"image_id": -1, "caption": "good"}]}
    if isinstance(images, list) and isinstance(annotations, list):
        content = {"images": good["images"] + images, "annotations": good["annotations"] + annotations}
        source = opened("captions_val.json", json.dumps(content).encode())
        assert not isinstance(source, DataError) and source.keys[0] == "good.png"
        assert accounted(source) >= 1 + len(annotations)


def tar_of(count: int, form: int) -> tuple[bytes, list[int]]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for i in range(count):
            for ending, content in (("jpg", bytes([i]) * 700), ("txt", f"caption {i}".encode())):
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size, info.mtime = len(content), 1.5 if form == tarfile.PAX_FORMAT else 1
                tar.addfile(info, io.BytesIO(content))
        headers = [member.offset for member in tar.getmembers()]
    return file.getvalue(), headers


TARS = {form: tar_of(6, form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)}


def scanned(content: bytes, on_damage: str):
    return scan(lambda offset, size: content[offset : offset + size], len(content), "t.tar", on_damage)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(TARS)), st.integers(0, 11), st.integers(0, 511), st.integers(0, 7))
def test_a_flip_in_a_header_never_loses_a_sample_unsaid(form, number, at, bit):
    content, headers = TARS[form]
    whole = scanned(content, "stop").samples
    flipped = bytearray(content)
    flipped[headers[number] + at] ^= 1 << bit
    try:
        assert scanned(bytes(flipped), "stop").samples == whole
    except DataError as error:
        assert "t.tar" in str(error) and "byte" in str(error)
    found = scanned(bytes(flipped), "count")
    lost = len(whole) - len(found.samples)
    assert set(map(str, found.samples)) <= set(map(str, whole)) and lost <= 1
    assert len(found.skipped) >= lost


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(TARS)), st.integers(0, 20000))
def test_a_truncated_tar_never_loses_a_sample_unsaid(form, size):
    content, _ = TARS[form]
    whole = scanned(content, "stop").samples
    try:
        assert scanned(content[:size], "stop").samples == whole
    except DataError as error:
        assert "t.tar" in str(error)
        found = scanned(content[:size], "count")
        assert found.samples == whole[: len(found.samples)] and found.skipped[0][0] == "t.tar"
