"""Zero-shot attributes, captions' named labels and the controls, on small made-up cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opencoca.data.openmoji import load_table
from opencoca.eval.controls import another, colour_histogram, nearest_neighbours, tf_idf
from opencoca.eval.held_out import HeldOut
from opencoca.eval.openmoji import TONES, attributes
from opencoca.eval.suite import caption_figures, named_label
from opencoca.eval.zeroshot import Attribute, zero_shot


def test_the_prompts_come_from_training_captions_alone() -> None:
    """Every role was seen in training; no sentence holds a held-out concept's name."""
    train = {row.caption for row in load_table() if row.split == "train"}
    tone, gender = attributes()
    for template in tone.templates:
        assert any(template.replace("{}", words) in train for words in tone.words)
    for template in gender.templates:
        assert {template.replace("{}", "man"), template.replace("{}", "woman")} <= train


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("woman firefighter, medium-light skin tone", "medium-light"),
        ("woman firefighter, light skin tone", "light"),
        ("handshake, light skin tone and dark skin tone", None),
        ("rabbit", None),
        ("twilight skin tone", None),
    ],
)
def test_a_caption_names_a_tone_by_its_whole_words(caption: str, label: str | None) -> None:
    tone = attributes()[0]
    assert named_label(caption, tone.words) == (None if label is None else TONES.index(label))


def test_captions_that_say_no_more_than_the_attributes_are_counted() -> None:
    """A tone named right by naming nothing else shows; where the reference says no more either, it is no fault."""
    truth = {"tones": ["dark"], "gender": "woman"}
    references = ["woman firefighter, dark skin tone"] * 4 + ["woman, dark skin tone", "rabbit"]
    captions = [
        "woman firefighter, dark skin tone",
        "dark skin tone",
        "woman, dark skin tone",
        "person, dark skin tone",
        "woman, dark skin tone",
        "woman",
    ]
    samples = tuple([truth] * 5 + [{}])
    keys, pictures = tuple("abcdef"), np.zeros((6, 8, 8, 3), dtype=np.uint8)
    figures = caption_figures(captions, HeldOut("made up", keys, pictures, tuple(references), samples), attributes())
    assert figures["caption_skin_tone"] == 1.0
    assert figures["caption_attributes_alone"] == 2 / 5
    assert "caption_attributes_alone" not in caption_figures(
        captions, HeldOut("none", keys, pictures, tuple(references), ({},) * 6), attributes()
    )


def test_truths_are_single_labels() -> None:
    attribute = Attribute("a", "tones", ("x", "y"), ("x", "y"), ("{}",))
    samples = [{"tones": ["y"]}, {"tones": ["x", "y"]}, {"tones": []}, {}, {"tones": "x"}]
    assert attribute.truths(samples) == [1, None, None, None, 0]


def test_zero_shot_sums_over_prompts() -> None:
    """One prompt that fits well beats two that fit a little, at a high scale; the mean would say otherwise."""
    image = torch.tensor([[1.0, 0.0, 0.0]])
    fits, little, against = [1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-1.0, 0.0, 0.0]
    prompts = torch.tensor([[fits, against], [little, little]])
    assert zero_shot(image, prompts, [0], scale=20.0).accuracy == 1.0
    assert zero_shot(image, prompts, [0], scale=0.01).accuracy == 0.0
    assert zero_shot(image, prompts, [None], scale=20.0).counts == [[0, 0], [0, 0]]


def test_another_leaves_nothing_in_place() -> None:
    for count in (2, 3, 50):
        moved = another(count, seed=0)
        assert sorted(moved) == list(range(count))
        assert all(i != j for i, j in enumerate(moved))


def coloured(colours: list[tuple[int, int, int]], names: list[str]) -> HeldOut:
    pictures = np.stack([np.full((8, 8, 3), colour, dtype=np.uint8) for colour in colours])
    return HeldOut(
        "made up",
        tuple(map(str, range(len(colours)))),
        pictures,
        tuple(names),
        tuple({"colour": name} for name in names),
    )


def test_pixel_neighbours_and_histograms_find_plain_colours() -> None:
    train = coloured([(250, 0, 0), (0, 250, 0), (0, 0, 250)], ["red", "green", "blue"])
    held_out = coloured([(0, 0, 240), (240, 0, 0)], ["blue", "red"])
    assert nearest_neighbours(held_out, train) == [2, 0]
    attribute = Attribute("colour", "colour", ("red", "green", "blue"), ("red", "green", "blue"), ("{}",))
    result = colour_histogram(held_out, train, attribute)
    assert result.accuracy == 1.0
    assert result.counts == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_rare_words_weigh_more() -> None:
    query, common, rare = tf_idf(["a dog, red", "a cat", "dog"], ["a bird", "a cat", "a tree", "red dog"])
    assert query @ rare > query @ common
