"""What the tests of tasks share: a model that knows nothing yet, drawings in folders of their colours, a run's table.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.support import COLOURS, PLACES, SHAPES, drawing, png, tiny_config, tiny_tokenizer

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.model.init import build

CONTEXT = 64  # the tiny tokenizer has no words of questions


def roomy(folder: Path, **sections: dict) -> Config:
    """`recipes.tiny` on the shards in `folder`, with room for questions."""
    config = tiny_config(folder, **sections)
    text = dataclasses.replace(config.model.text, context_length=CONTEXT)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing yet."""
    folder = tmp_path_factory.mktemp("base") / "model"
    config = roomy(folder)
    weights = {name: p.detach() for name, p in build(config.model, 1).named_parameters()}
    checkpoint.save(folder, config, tiny_tokenizer(), weights)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 drawings, in a folder for each colour."""
    folder = tmp_path_factory.mktemp("colours")
    for colour in COLOURS:
        (folder / colour).mkdir()
        for shape in SHAPES:
            for place in PLACES:
                name = f"{shape}{place}".replace(" ", "-")
                (folder / colour / f"{name}.png").write_bytes(png(drawing(colour, shape, place)))
    return folder


def results_of(run: Path) -> dict:
    """What the command that trained in `run` has written there."""
    return json.loads((run / "results.json").read_text())


def rows_of(run: Path) -> dict[str, dict]:
    """The rows of its table, by how each figure was reached."""
    return {row["how"]: row for row in results_of(run)["rows"]}
