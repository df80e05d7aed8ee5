"""What is measured on OpenMoji beyond retrieval and captions: attributes that pictures show and captions name."""

from __future__ import annotations

from functools import cache

from opencoca.data.openmoji import load_table
from opencoca.eval.zeroshot import Attribute

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


@cache
def attributes() -> tuple[Attribute, ...]:
    """Skin tone (five labels) and gender (man or woman).

    Their sentences are the training captions themselves, with the attribute's words taken out: every role for the
    tone, and for gender every caption that training has in both forms.
    """
    captions = sorted(row.caption for row in load_table() if row.split == "train")
    roles = dict.fromkeys(caption.rpartition(", ")[0] for caption in captions if _has_one_tone(caption))
    known = set(captions)
    twins = [c.replace("woman", "{}", 1) for c in captions if c.startswith("woman") and c[2:] in known]
    tone_words = tuple(f"{tone} skin tone" for tone in TONES)
    return (
        Attribute("skin_tone", "tones", TONES, tone_words, tuple(f"{role}, {{}}" for role in roles)),
        Attribute("gender", "gender", ("man", "woman"), ("man", "woman"), tuple(twins)),
    )


def _has_one_tone(caption: str) -> bool:
    return caption.endswith(" skin tone") and caption.count("skin tone") == 1
