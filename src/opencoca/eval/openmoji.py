"""What is measured on OpenMoji beyond retrieval and captions: attributes that pictures show and captions name."""

from __future__ import annotations

from opencoca.eval.zeroshot import Attribute

SKIN_TONE = Attribute(
    name="skin_tone",
    field="tones",
    labels=("light", "medium-light", "medium", "medium-dark", "dark"),
    words=("light skin tone", "medium-light skin tone", "medium skin tone", "medium-dark skin tone", "dark skin tone"),
    templates=("person, {}", "man, {}", "woman, {}", "hand, {}", "person running, {}", "person gesturing, {}"),
)
GENDER = Attribute(
    name="gender",
    field="gender",
    labels=("man", "woman"),
    words=("man", "woman"),
    templates=("{}", "{} running", "{} standing", "{} gesturing OK", "{} cook", "{} with a beard"),
)
ATTRIBUTES = (SKIN_TONE, GENDER)
