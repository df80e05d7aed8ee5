"""COCO's captions json, and Karpathy's with its splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from opencoca.data import storage
from opencoca.data.sources.captions import UnfitError, parsed_json
from opencoca.data.sources.columns import split_name
from opencoca.data.sources.pairs import FileSource, Pairs, nothing_left
from opencoca.errors import DataError

PROBED = 20  # pictures that are looked for in each folder they may lie in


def is_coco(content: Any) -> bool:
    """True for what has COCO's or Karpathy's form."""
    return isinstance(content, dict) and isinstance(content.get("images"), list)


def load(file: str) -> Any:
    """The json in a file. Raises: DataError if it isn't json."""
    with storage.open_stream(file) as stream:
        content = stream.read()
    try:
        return parsed_json(content)
    except UnfitError as error:
        raise DataError(f"{file} can't be used: {error}; copy it again") from error


def open_coco(file: str, split: str | None, pictures: str | None = None) -> FileSource:
    """The captioned pictures of COCO's json (images, annotations) or Karpathy's (images with sentences).

    Split "train" of Karpathy's takes restval too, as everyone does; "restval" takes it alone. The pictures lie in
    `pictures`, or where the usual layouts have them: beside the json, above it, in train2017, in images.

    Raises: DataError if it isn't such a json, or nothing in it can be used.
    """
    content = load(file)
    if not is_coco(content):
        raise DataError(f"{file} has no list of images, so it isn't COCO's or Karpathy's json; give one of these")
    pairs = Pairs(local=not storage.is_url(file))
    karpathy = any(isinstance(image, dict) and "sentences" in image for image in content["images"])
    if karpathy:
        found = list(_karpathy(content["images"], split, pairs))
        pairs.columns = {"picture": "filepath, filename", "caption": "sentences.raw", "split": "split"}
    else:
        found = list(_coco(content, pairs))
        pairs.columns = {"picture": "images.file_name", "caption": "annotations.caption"}
    if karpathy and split is not None and split not in pairs.splits:
        raise DataError(f"{file} has no split {split!r}; its splits are: {', '.join(pairs.splits) or 'none'}")
    for row, path, captions in found:
        pairs.add(row, path, captions)
    root = pictures or _root(file, [path for _, path, _ in found])
    return pairs.finish(root, file)


def _karpathy(images: list[Any], split: str | None, pairs: Pairs) -> Iterator[tuple[str, Any, list[Any]]]:
    for number, image in enumerate(images):
        row = f"image {number}"
        if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
            pairs.skipped.append((row, "it has no filename"))
            continue
        told = split_name(image.get("split", "train"))
        pairs.splits[told] = None
        if split is not None and told != split and (split, told) != ("train", "restval"):
            continue
        sentences, folder = image.get("sentences"), image.get("filepath")
        listed = sentences if isinstance(sentences, list) else []
        raw = [one.get("raw") if isinstance(one, dict) else None for one in listed]
        path = f"{folder}/{image['filename']}" if isinstance(folder, str) and folder else image["filename"]
        yield row, path, raw


def _coco(content: dict[str, Any], pairs: Pairs) -> Iterator[tuple[str, Any, list[Any]]]:
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise nothing_left("the json", [("annotations", "there is no list of them; give a json of captions")])
    names: dict[Any, Any] = {}
    for number, image in enumerate(content["images"]):
        known = isinstance(image, dict) and isinstance(image.get("id"), int | str)
        if not known or not isinstance(image.get("file_name"), str):
            pairs.skipped.append((f"image {number}", "it has no id and file_name"))
        elif image["id"] in names:
            pairs.skipped.append((f"image {number}", f"its id {str(image['id'])[:40]} is another image's already"))
        else:
            names[image["id"]] = image["file_name"]
    captioned = set()
    for number, annotation in enumerate(annotations):
        row = f"annotation {number}"
        if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), int | str):
            pairs.skipped.append((row, "it has no image_id"))
        elif annotation["image_id"] not in names:
            pairs.skipped.append((row, f"there is no image {str(annotation['image_id'])[:40]}"))
        else:
            captioned.add(annotation["image_id"])
            yield row, names[annotation["image_id"]], [annotation.get("caption")]
    for known, name in names.items():
        if known not in captioned:
            pairs.skipped.append((f"image {name[:200]}", "it has no caption"))


def _root(file: str, paths: list[Any]) -> str:
    """The folder below which most of the first pictures are found."""
    beside, named = storage.parent(file), storage.stem(file).rpartition("_")[2]
    above = storage.parent(beside)
    folders = [beside, *(storage.joined(place, below) for place in (beside, above) for below in ("images", named))]
    folders.insert(3, above)
    probed = [path for path in paths[:PROBED] if isinstance(path, str) and ".." not in PurePosixPath(path).parts]

    def found(folder: str) -> int:
        return sum(_is_file(storage.joined(folder, path)) for path in probed)

    return max(folders, key=found)  # the first of equals


def _is_file(location: str) -> bool:
    try:
        return storage.kind(location) == "file"
    except DataError:
        return False
