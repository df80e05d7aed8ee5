"""The card of the model that ships: what it is good for, what not, whose drawings it learnt from, how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROWS = (
    ("zero-shot, first of all {labels} names", "zeroshot_top1", 100),
    ("zero-shot, among the first five", "zeroshot_top5", 100),
    ("picture to name, R@1", "i2t_recall@1", 100),
    ("picture to name, R@5", "i2t_recall@5", 100),
    ("picture to name, R@10", "i2t_recall@10", 100),
    ("name to picture, R@1", "t2i_recall@1", 100),
    ("name to picture, R@5", "t2i_recall@5", 100),
    ("name to picture, R@10", "t2i_recall@10", 100),
    ("caption is the very name", "exact_match", 100),
    ("caption, CIDEr-D (0 to 10)", "cider_d", 1),
)
TITLES = {
    "test_seen": "Emoji that training showed in other styles",
    "test_unseen": "Concepts that training never showed in any style",
}

HEADER = """---
license: "apache-2.0"
library_name: opencoca
pipeline_tag: image-to-text
tags:
- coca
- image-captioning
- zero-shot-image-classification
- image-text-retrieval
---

# drawings

A small Contrastive Captioner (CoCa, arXiv 2205.01917) of drawings and icons. It comes with the package, so that
`coca caption icon.png`, `coca classify` and `coca search` work offline, right after `pip install opencoca`.

**Made for** drawings of single things on a plain ground, in the styles that it learnt from: Noto, Fluent (two styles)
and Twemoji emoji, and clip art. It says in a few English words what is drawn, finds drawings by such words, and sorts
them by labels.

**Weak in any other style**, as the tables below show for OpenMoji's, which it never saw. There its lists of five and
ten are of use, for search, and its single captions are not to be relied on.

**Not for photographs: it knows none.** It never saw one, so whatever it says of a photograph is a guess with nothing
behind it, given in the same tone as a good answer. Take a published model for these, such as
`coca models pull hf:laion/CoCa-ViT-B-32-laion2B-s13B-b90k`. It reads no text, counts nothing, knows no brands, answers
no questions, and has no word for what its drawings don't show: of concepts outside its training it names a similar one
(second table). Skin tones and genders are in its training as the emoji standard names them; don't sort people by it.
"""

SOURCES = """
## Whose drawings and words it learnt from

| what | whose | licence |
|---|---|---|
| [Noto Emoji](https://github.com/googlefonts/noto-emoji) | Google | Apache-2.0 |
| [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), two styles | Microsoft | MIT |
| [Twemoji](https://github.com/jdecked/twemoji) | Copyright Twitter, Inc and other contributors | [CC BY 4.0][by] |
| [Open Clip Art Library](https://openclipart.org) | its authors | public domain |
| names and keywords | Unicode CLDR, through emojibase-data (MIT) | Unicode-3.0 |

The drawings were scaled, moved, turned a little and changed in colour strength. The weights are under Apache-2.0; name
the sources above when you pass them on. [OpenMoji](https://openmoji.org) (CC BY-SA 4.0), whose drawings measure it
below, was never trained on.

[by]: https://creativecommons.org/licenses/by/4.0/
"""


def card(result: Mapping[str, Any] | None) -> str:
    """The README of the shipped folder; `result` is what `benchmarks/drawings.py` measured, None for not yet."""
    parts = [HEADER, SOURCES]
    if result is not None:
        parts.append(_figures(result))
    return "\n".join(parts)


def _figures(result: Mapping[str, Any]) -> str:
    training, counts = result["training"], result["pictures"]
    lines = [
        "## How well it does, in a style that it never saw",
        "",
        "All pictures are OpenMoji's, one each, without skin tones. They were measured twice: first with captions from",
        "8 beams; then greedy captions were chosen, on `val` alone, and everything was measured again, as shown.",
        "Percentages, except CIDEr-D. *Nearest pixels* copies the name of the training drawing that differs least.",
    ]
    labels = sum(counts[name] for name in TITLES)
    for name, title in TITLES.items():
        figures = result["figures"][name]
        lines += ["", f"### {title} ({counts[name]} pictures)", "", "| | model | nearest pixels | chance |"]
        lines.append("|---|---:|---:|---:|")
        for words, key, factor in ROWS:
            cells = [
                f"{factor * figures[who][key]:.{1 if factor == 100 else 2}f}" if key in figures[who] else "–"
                for who in ("model", "nearest_pixels", "chance")
            ]
            lines.append(f"| {words.format(labels=labels)} | {' | '.join(cells)} |")
    seen = result["figures"]["test_seen"]
    model, nearest = (100 * seen[who]["i2t_recall@1"] for who in ("model", "nearest_pixels"))
    if model < nearest:
        lines += [
            "",
            f"**In a style that it doesn't know, its first guess is right less often ({model:.1f}%) than the nearest "
            f"pixels' ({nearest:.1f}%).**",
        ]
    lines += [
        "",
        "## How it was made",
        "",
        f"{training['parameters'] / 1e6:.1f}M parameters, stored in float16; recipe `{training['recipe']}`, "
        f"{training['steps']} steps of {training['batch_size']} pairs, seed {training['seed']}, "
        f"{training['minutes']:.0f} minutes on one core of a shared {training['processor']}.",
        f"Training showed {training['samples']:,} samples of {training['drawings']:,} drawings; "
        f"{training['clip_art_left_out']:,} of {training['clip_art_left_out'] + training['clip_art_kept']:,} pieces of "
        "clip art were left out, most for a title that names their series and not the picture.",
        f"Pictures are read at {training['size_px']} px.",
        "",
    ]
    return "\n".join(lines)
