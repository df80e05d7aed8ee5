"""Generated ids of open_clip_torch 3.3.0 (with transformers' BeamSearchScorer) for a tiny model with random weights.

Its sequences have length context - 1, start included. In the sampling modes the last id is forced to the end id; its
beams end nowhere here. A minimal length counts start.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opencoca.config import GenerationConfig
from opencoca.data.tokenizer import SpecialIds
from opencoca.infer.generate import generate
from opencoca.infer.score import score
from opencoca.interop.open_clip import from_open_clip
from opencoca.model.coca import CoCa

DATA = Path(__file__).parent / "data"
SPECIAL = SpecialIds(pad=0, start=97, end=98)
LENGTH = 11

GREEDY: dict[str, Any] = {"beams": 1, "max_tokens": LENGTH - 2}
BEAMS: dict[str, Any] = {"beam_scores": "logit", "max_tokens": LENGTH - 1, "min_tokens": 4}
MODES: dict[str, dict[str, Any]] = {
    "greedy_min5": GREEDY | {"min_tokens": 4},
    "greedy_min1": GREEDY,
    "greedy_reppen1.3": GREEDY | {"repetition_penalty": 1.3},
    "beam3_min5": BEAMS | {"beams": 3},
    "beam6_min5": BEAMS | {"beams": 6},
    "group_beam6x3_min5": BEAMS | {"beams": 6, "num_beam_groups": 3},
}


@functools.cache
def cases() -> dict[str, Tensor]:
    return load_file(DATA / "open_clip_tiny.cases.safetensors")


@functools.cache
def model() -> CoCa:
    model_cfg = json.loads((DATA / "open_clip_tiny.config.json").read_text())
    return from_open_clip(model_cfg, load_file(DATA / "open_clip_tiny.weights.safetensors"))


@functools.cache
def tokens() -> Tensor:
    with torch.no_grad():
        return model().encode_image(cases()["input.images"]).tokens


def full(ids: list[int]) -> list[int]:
    """As open_clip writes it: start in front, and the end behind a caption that is shorter than the sequences."""
    return [SPECIAL.start, *ids, *[SPECIAL.end] * (LENGTH - 1 - len(ids))]


@pytest.mark.parametrize("mode", MODES)
def test_generated_ids_are_identical(mode: str) -> None:
    captions = generate(model(), tokens(), SPECIAL, GenerationConfig(**MODES[mode]))
    assert [full(best[0].ids) for best in captions] == cases()[f"expect.{mode}"].tolist()


def test_the_modes_differ() -> None:
    """Otherwise one search for all of them would do."""
    assert len({str(cases()[f"expect.{mode}"].tolist()) for mode in MODES}) == 5  # min1 and min5 agree


@pytest.mark.parametrize("mode", MODES)
def test_log_prob_is_of_the_whole_vocabulary_whatever_ranks_the_captions(mode: str) -> None:
    captions = [best[0] for best in generate(model(), tokens(), SPECIAL, GenerationConfig(**MODES[mode]))]
    expected = score(model(), tokens(), [[SPECIAL.start, *one.ids] for one in captions], SPECIAL)
    assert [one.log_prob for one in captions] == pytest.approx(expected, abs=1e-4)  # worst 6e-6


def test_scores_are_open_clips_logits() -> None:
    """log p of the golden logits, teacher-forced, is what `score` gives."""
    text = cases()["input.text"]
    ids = [[token for token in row if token != SPECIAL.pad] for row in text.tolist()]
    log_p = cases()["expect.caption_logits"].double().log_softmax(dim=-1)
    expected = [sum(log_p[row, t, token].item() for t, token in enumerate(one[1:])) for row, one in enumerate(ids)]
    assert score(model(), tokens(), ids, SPECIAL) == pytest.approx(expected, abs=1e-4)  # worst 4e-6
