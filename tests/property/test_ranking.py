"""Ranking equals brute force on small integers, whose products are exact and often tie."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opencoca.ranking import ranks_of_targets, recall_at, top_k


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], int]:
    width = draw(st.integers(1, 3))
    row = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    queries = draw(st.lists(row, min_size=1, max_size=6))
    candidates = draw(st.lists(row, min_size=1, max_size=12))
    return queries, candidates, draw(st.integers(1, 14))


def dot(left: list[int], right: list[int]) -> int:
    return sum(a * b for a, b in zip(left, right, strict=True))


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 14))
def test_top_k_equals_sorting_everything(problem: tuple[list[list[int]], list[list[int]], int], k: int) -> None:
    queries, candidates, block = problem
    scores, indices = top_k(torch.tensor(queries).float(), torch.tensor(candidates).float(), k, block=block)
    for row, query in enumerate(queries):
        order = sorted(range(len(candidates)), key=lambda index: (-dot(query, candidates[index]), index))[:k]
        assert indices[row].tolist() == order
        assert scores[row].tolist() == [dot(query, candidates[index]) for index in order]


@settings(max_examples=150, deadline=None)
@given(problems(), st.data())
def test_ranks_equal_the_worst_order_of_the_ties(
    problem: tuple[list[list[int]], list[list[int]], int], data: st.DataObject
) -> None:
    queries, candidates, block = problem
    one_set = st.sets(st.integers(0, len(candidates) - 1), min_size=1)
    targets = data.draw(st.lists(one_set, min_size=len(queries), max_size=len(queries)))
    ranks = ranks_of_targets(torch.tensor(queries).float(), torch.tensor(candidates).float(), targets, block=block)
    expected = []  # the place of the first correct candidate when wrong ones stand first among equal scores
    for query, correct in zip(queries, targets, strict=True):
        order = sorted(range(len(candidates)), key=lambda index: (-dot(query, candidates[index]), index in correct))
        expected.append(next(place for place, index in enumerate(order) if index in correct))
    assert ranks.tolist() == expected
    assert recall_at(ranks, 3) == sum(rank < 3 for rank in expected) / len(expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 50))
def test_real_scores_keep_their_order_and_value(seed: int, block: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, candidates = torch.randn(5, 8, generator=generator), torch.randn(40, 8, generator=generator)
    scores, indices = top_k(queries, candidates, 40, block=block)
    exact = (queries.double() @ candidates.double().T).float()
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    assert torch.equal(scores, exact.gather(1, indices))
    assert torch.equal(indices.sort(dim=1).values, torch.arange(40).expand(5, -1))
