"""Intervals and paired tests against closed forms, and the results that carry them."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from opencoca.errors import ConfigError, DataError
from opencoca.eval.results import EvaluationResult, skipped_count, skipped_facts
from opencoca.eval.statistics import bootstrap_interval, compare, digest, holm


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    right = np.zeros(5000)
    right[:3000] = 1
    low, high = bootstrap_interval(right)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 5000)
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=5e-4)


def test_the_interval_of_many_values_is_the_normal_one() -> None:
    values = np.random.default_rng(0).exponential(size=5000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(5000)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_ten_thousand_resamples_of_5000_samples_take_no_second() -> None:
    values = np.random.default_rng(0).random(5000)
    began = time.process_time()
    bootstrap_interval(values, resamples=10_000)
    assert time.process_time() - began < 1.0  # measured: 0.2 s


def test_twenty_of_twenty_is_no_certainty() -> None:
    low, high = bootstrap_interval([1.0] * 20)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    assert bootstrap_interval([0.0] * 20) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))


def test_p_is_the_exact_binomial_where_signs_alone_count() -> None:
    """8 samples won and 2 lost: two-sided, (1 + 10 + 45) * 2 of 1024."""
    ours, theirs = [1.0] * 8 + [0.0] * 2 + [1.0] * 30, [0.0] * 8 + [1.0] * 2 + [1.0] * 30
    found = compare(ours, theirs)
    assert found.difference == pytest.approx(6 / 40)
    assert found.p == pytest.approx(112 / 1024, abs=0.01)
    assert found.interval.low < found.difference < found.interval.high


def test_p_is_uniform_where_models_are_alike() -> None:
    generator = np.random.default_rng(0)
    p = [compare(*generator.random((2, 40)), resamples=300, seed=i).p for i in range(200)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.1
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_equal_models_do_not_differ() -> None:
    assert compare([0.1, 0.2], [0.1, 0.2]) == (0.0, (0.0, 0.0), 1.0, 2)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_digests_know_where_parts_end() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert len(digest(["\ud800"])) == 16


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bootstrap_interval([]), "give a list of 1 or more"),
        (lambda: bootstrap_interval([1.0, math.nan]), "value 1 is nan"),
        (lambda: compare([1.0], [1.0, 2.0]), "1 and 2 samples"),
    ],
)
def test_values_without_a_mean_are_refused(call, said) -> None:
    with pytest.raises(DataError, match=said):
        call()
    with pytest.raises(ConfigError, match="confidence 2"):
        bootstrap_interval([1.0], confidence=2)


def test_a_result_survives_json() -> None:
    values = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    result = EvaluationResult("a/b", {"x": 5 / 12, "y": math.inf}, "x", {"x": values}, ["1", "2", "3"], {"n": 3})
    back = EvaluationResult.from_json(result.to_json())
    assert (back.name, back.headline, back.sample_ids, back.facts) == ("a/b", "x", ["1", "2", "3"], {"n": 3})
    assert back.per_sample["x"].equal(values)
    assert math.isnan(back.figures["y"])


@pytest.mark.parametrize("change", [{"version": 9}, {"figures": 3}, {"headline": "z"}, {"sample_ids": ["1"]}])
def test_a_damaged_result_is_refused(change) -> None:
    content = EvaluationResult("a", {"x": 1.0}, "x", {"x": torch.ones(2)}, ["1", "2"]).to_json()
    with pytest.raises(DataError):
        EvaluationResult.from_json(content | change, "r.json")


def test_skipped_items_are_counted_by_reason_and_named() -> None:
    facts = skipped_facts([(f"{i}.png", f"it is empty ({i} bytes); copy it again") for i in range(30)])
    assert (facts["count"], facts["reasons"], len(facts["first"])) == (30, {"it is empty": 30}, 20)
    assert skipped_count(EvaluationResult("a", {"x": 1.0}, "x", facts={"skipped": facts})) == 30
