"""Two captions compared word by word, and the cards that show held-out pictures with what the model said of them."""

import base64
import difflib
import itertools
import string
from collections.abc import Sequence

from opencoca.report.data import Example
from opencoca.report.markup import Html, count, join, tag

PUNCTUATION = string.punctuation + "“”‘’«»…–—،。、"


def compare(truth: str, generated: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The words of both captions, each with whether the other has it in its place; case and punctuation don't count."""
    words = truth.split(), generated.split()
    ours, theirs = ([word.casefold().strip(PUNCTUATION) or word for word in side] for side in words)
    same = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    in_truth = {i for block in same for i in range(block.a, block.a + block.size)}
    in_generated = {i for block in same for i in range(block.b, block.b + block.size)}
    return (
        [(word, i in in_truth) for i, word in enumerate(words[0])],
        [(word, i in in_generated) for i, word in enumerate(words[1])],
    )


def marked(words: Sequence[tuple[str, bool]], name: str) -> Html:
    """The words as text, each run of those that don't match inside one element."""
    runs = itertools.groupby(words, key=lambda word: word[1])
    texts = [(good, " ".join(word for word, _ in run)) for good, run in runs]
    pieces = [text if good else tag(name, text) for good, text in texts]
    return join(part for piece in pieces for part in (piece, " "))


def verdict(exact: bool, truth: Sequence[tuple[str, bool]], generated: Sequence[tuple[str, bool]]) -> Html:
    """One phrase with a sign before it, so that it doesn't need its colour."""
    wrong = sum(not good for _, good in generated)
    missed = sum(not good for _, good in truth)
    if exact:
        sign, style, words = "✓", "right", "exact"
    elif not generated:
        sign, style, words = "✗", "wrong", "no caption"
    elif wrong:
        sign, style, words = "✗", "wrong", f"{count(max(wrong, missed), 'word')} off"
    elif missed:
        sign, style, words = "✗", "wrong", f"{count(missed, 'word')} missing"
    else:
        sign, style, words = "≈", "near", "same words"
    return tag("span", tag("span", sign, aria_hidden="true"), f" {words}", class_=f"verdict {style}")


def picture(example: Example) -> Html:
    """The picture itself, inside the page, on a light plate since its lines may be black and its ground clear."""
    source = "data:image/png;base64," + base64.b64encode(example.png).decode("ascii")
    return tag("span", tag("img", src=source, alt=example.truth), class_="plate")


def card(example: Example) -> Html:
    """One example in full: picture, generated and true caption with their differences, best retrieved captions."""
    truth, generated = compare(example.truth, example.generated)
    said = tag("p", marked(generated, "mark") if not example.exact else example.generated, dir="auto", class_="said")
    true = tag("p", marked(truth, "u") if not example.exact else example.truth, dir="auto", class_="true")
    found = [
        tag(
            "li",
            tag(
                "span", "✓" if one.is_truth else "", class_="tick", aria_label="the true one" if one.is_truth else None
            ),
            tag("span", one.text, dir="auto", class_="text"),
            tag("span", f"{one.score:.2f}", class_="score"),
            class_="truth" if one.is_truth else None,
        )
        for one in example.retrieved
    ]
    head = tag("div", picture(example), tag("div", verdict(example.exact, truth, generated), said), class_="head")
    body = [tag("p", "true caption", class_="label"), true]
    if example.before:
        body += [tag("p", "caption before", class_="label"), tag("p", example.before, dir="auto", class_="true")]
    if found:
        names = tag("span", "captions it finds"), " ", tag("span", "cosine similarity")
        body += [tag("p", *names, class_="label ends"), tag("ol", *found, class_="found")]
    return tag("article", head, *body, class_="card")


def strip(examples: Sequence[Example]) -> Html:
    """A few examples at a glance: picture, generated caption, verdict."""
    items = []
    for example in examples:
        truth, generated = compare(example.truth, example.generated)
        said = example.generated if example.exact else marked(generated, "mark")
        words = tag("p", said, dir="auto", class_="said")
        items.append(tag("li", picture(example), words, verdict(example.exact, truth, generated)))
    return tag("ul", *items, class_="strip")
