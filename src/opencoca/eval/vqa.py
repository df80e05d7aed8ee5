"""The official accuracy of visual question answering, and the form that answers are compared in."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# Words that are compared with their apostrophes, whichever one of them was left out.
_APOSTROPHES = """\
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
    y'all y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at
"""
FEWEST_ANNOTATORS = 4  # below, three others can't agree


_SPELLINGS = {
    word[:i] + word[i + 1 :]: word for word in _APOSTROPHES.split() for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}


def normalise_answer(text: str) -> str:
    """The answer in the form that answers are compared in: small letters, digits for numbers, no articles.

    Source: the official VQA evaluation (Antol et al. 2015), its odd rules included: punctuation becomes a space unless
    it stands beside one, or a number has a comma.
    """
    return _words(_unpunctuated(text.replace("\n", " ").replace("\t", " ").strip()))


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """min(others who say so / 3, 1), averaged over leaving out each annotator in turn.

    Where fewer than FEWEST_ANNOTATORS answered, it is 1 for an answer that one of them gave.

    Source: the official VQA evaluation, where annotators' answers are compared as they stand if they all agree, and
    without punctuation if they don't.
    """
    said = normalise_answer(answer)
    if len(truths) < FEWEST_ANNOTATORS:
        return float(said in {normalise_answer(truth) for truth in truths})
    given = list(truths)
    if len(set(given)) > 1:
        given = [_unpunctuated(truth) for truth in given]
    agreeing = [truth == said for truth in given]
    return sum(min((sum(agreeing) - own) / 3, 1.0) for own in agreeing) / len(agreeing)


def _unpunctuated(text: str) -> str:
    number_with_comma = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or number_with_comma else " ")
    return re.sub(r"\.(?!\d)", "", plain, count=32)


def _words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)
