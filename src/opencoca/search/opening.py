"""Which model goes with an index: the one that made it, unless another is named."""

from __future__ import annotations

from pathlib import Path

from opencoca import loading
from opencoca.errors import DataError, OpenCoCaError
from opencoca.infer.predictor import Predictor
from opencoca.interop import pulled
from opencoca.search import manifest


def predictor_for(folder: Path, index: Path, model: str | None, anew: bool = False) -> tuple[Predictor, str]:
    """The model for the index of a folder, and the name that finds it again, from anywhere.

    Without `model` it is the one that made the index; for a new index (or `anew`), the newest one.

    Raises: OpenCoCaError where there is no such model.
    """
    found = None if anew else manifest.read(index, folder, check=False)
    if model is None and found is not None:
        try:
            return loading.load(found.model_name), found.model_name
        except OpenCoCaError as error:
            raise DataError(
                f"the index of {folder} was made by the model {found.model_name}, which can't be loaded ({error}); "
                f"name where it is with --model, or make the index anew: coca index {folder} --anew"
            ) from error
    return loading.load(model), lasting_name(model)


def lasting_name(model: str | None) -> str:
    """A name for `loading.load` that means the same in another folder: a pulled model's name, else the whole path."""
    path = Path(model) if model is not None else loading.newest()
    if not path.exists():
        return str(model)
    known = [entry.name for entry in pulled.entries() if not entry.problem and entry.folder.resolve() == path.resolve()]
    return known[0] if known else str(path.resolve())
