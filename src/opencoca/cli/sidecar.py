"""What --write leaves beside a picture: its words in a text file, or in an XMP file.

cat.jpg has cat.txt, where the tools that train on captioned folders look for it, or cat.xmp, as XMP's own specification
has it (cat.jpg.xmp, where a photo manager has made that one). A picture that has its words already is not done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from opencoca.cli.forms import shown
from opencoca.cli.pictures import Skipped
from opencoca.cli.xmp import Field, Xmp
from opencoca.errors import DataError
from opencoca.files import write_atomically


class Sidecars:
    """The files of one form beside pictures.

    `field` says what the words are: a description, of which there is one, or subjects, of which there may be many;
    `labels` are the subjects that may be given at all, which tell a picture that was labelled from one that wasn't.
    """

    def __init__(
        self, form: Literal["sidecar", "xmp"], field: Field, labels: Sequence[str] = (), overwrite: bool = False
    ) -> None:
        self._form, self._labels, self._overwrite = form, labels, overwrite
        self._field: Field = field

    def left(self, paths: Sequence[Path]) -> tuple[list[Path], list[Skipped]]:
        """The pictures that have no words yet, and those that can't be given any."""
        left: list[Path] = []
        skipped: list[Skipped] = []
        owners: dict[Path, Path] = {}
        for path in paths:
            file = self._file(path)
            owner = owners.setdefault(file, path)
            if owner != path:
                skipped.append(Skipped(path, f"would share {file.name} with {owner}; rename one of the two"))
                continue
            try:
                if self._overwrite or not self._is_done(file):
                    left.append(path)
            except (DataError, OSError) as error:
                skipped.append(Skipped(path, f"has a {file.name} that can't be used: {error}"))
        return left, skipped

    def write(self, path: Path, words: Sequence[str]) -> None:
        """Puts the words beside the picture, whole or not at all; where there are none, nothing is written.

        Raises: DataError where that file can't be written or isn't XMP.
        """
        if not any(words):
            return
        file = self._file(path)
        try:
            write_atomically(file, self._text(file, words))
        except (PermissionError, DataError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"{path} was read, but {file.name} can't be written ({reason}); change that") from error

    def _file(self, path: Path) -> Path:
        if self._form == "sidecar":
            return path.with_suffix(".txt")
        beside = path.with_name(f"{path.name}.xmp")
        return beside if beside.exists() else path.with_suffix(".xmp")

    def _is_done(self, file: Path) -> bool:
        if self._form == "sidecar" or not file.exists():
            return file.exists() and file.stat().st_size > 0
        items = Xmp.load(file).items(self._field)
        return bool({*items} & {*self._labels}) if self._field == "subject" else any(items)

    def _text(self, file: Path, words: Sequence[str]) -> str:
        if self._form == "sidecar":
            return (", " if self._field == "subject" else "\n").join(map(shown, words)) + "\n"
        content = Xmp.load(file)
        if self._field == "subject":
            content.label(words, replaced=self._labels)
        else:
            content.describe(words[0])
        return content.text()
