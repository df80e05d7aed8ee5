"""The language of queries, filters, and what captions share with them."""

from __future__ import annotations

import datetime

import pytest

from opencoca.errors import DataError
from opencoca.search.answers import Answer, Found, Request
from opencoca.search.filters import Filters, day, size
from opencoca.search.query import Term, parse, wanted_words, words


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("a boat on a lake", [(1, "text", "a boat on a lake")]),
        ('"red car" + ref.jpg - night', [(1, "text", "red car"), (1, "picture", "ref.jpg"), (-1, "text", "night")]),
        ("red car - at night", [(1, "text", "red car"), (-1, "text", "at night")]),
        ("black-and-white c++", [(1, "text", "black-and-white c++")]),
        ("- night + day", [(-1, "text", "night"), (1, "text", "day")]),
        ('"a - b"', [(1, "text", "a - b")]),
        ('"ref.jpg"', [(1, "text", "ref.jpg")]),
        ("my ref.JPG", [(1, "picture", "my ref.JPG")]),
        ("id:12 + dog", [(1, "id", "12"), (1, "text", "dog")]),
        ('a "stop" sign', [(1, "text", "a stop sign")]),
        ('5" disk', [(1, "text", "5 disk")]),
    ],
)
def test_queries_are_sums(query, terms):
    assert parse(query) == [Term(*term) for term in terms]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "is empty"),
        ('""', "is empty"),
        ("red +", "sign without a term"),
        ("+ + red", "sign without a term"),
        ("red - - blue", "sign without a term"),
        ("-", "sign without a term"),
        ("- night", "only says what to avoid"),
    ],
)
def test_queries_that_say_nothing_are_refused(query, says):
    with pytest.raises(DataError, match=says):
        parse(query)


def test_only_what_is_looked_for_counts_as_words():
    assert words("The boats on a Lake, at night!") == {"boat", "lake", "night"}
    assert wanted_words(parse('"red boats" + ref.jpg - night')) == {"red", "boat"}


def test_sizes_and_days():
    assert [size(text) for text in ("200", "200k", "1.5MB", "2MiB", "1 GB")] == [
        200,
        200_000,
        1_500_000,
        2 << 20,
        10**9,
    ]
    assert day("2024-02-29") == datetime.date(2024, 2, 29)
    for wrong in ("big", "-1", "1TB", "1e3"):
        with pytest.raises(DataError, match="is no size"):
            size(wrong)
    for wrong in ("yesterday", "2024-02-30"):
        with pytest.raises(DataError, match="is no day"):
            day(wrong)


@pytest.mark.parametrize("folder", ["..", "a/../../b", "/etc", "a\0b"])
def test_a_filter_stays_in_the_folder(folder):
    with pytest.raises(DataError, match="leaves what is indexed"):
        Filters(folder=folder)


def test_filters_that_leave_nothing_are_refused():
    with pytest.raises(DataError, match="leave no day"):
        Filters(after=day("2024-01-02"), before=day("2024-01-01"))
    with pytest.raises(DataError, match="leave no size"):
        Filters(min_bytes=2, max_bytes=1)
    assert not Filters() and Filters(folder="./a/b/").folder == "a/b"


def test_requests_and_answers_travel_unchanged():
    import json

    request = Request(parse("red + ref.jpg - id:3"), 5, 0.5, Filters(after=day("2024-01-01"), folder="a"))
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
    answer = Answer([Found(1, "a\udcff.png", 0.5, "a", "b", True)], 0.4, 3, 4, [("x.png", "is empty")])
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer
