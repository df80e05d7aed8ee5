"""Ranking: order, ties, what is refused."""

import pytest
import torch

from opencoca.errors import ConfigError, DataError
from opencoca.ranking import group_targets, ranks_of_targets, recall_at, top_k


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_top_k_returns_scores_and_indices_in_order() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    candidates = torch.tensor([[0.5, 1.0], [-2.0, 0.0], [3.0, -4.0]])
    scores, indices = top_k(queries, candidates, 2)
    assert scores.tolist() == [[3.0, 0.5], [4.0, 0.0]]
    assert indices.tolist() == [[2, 0], [2, 1]]
    assert scores.dtype == torch.float32 and indices.dtype == torch.int64


@pytest.mark.parametrize("block", [1, 3, 64])
def test_equal_candidates_come_in_index_order(block: int) -> None:
    queries = unit(5, 48)
    candidates = unit(1, 48, seed=1).repeat(100, 1)
    scores, indices = top_k(queries, candidates, 7, block=block)
    assert indices.tolist() == [list(range(7))] * 5
    assert (scores == scores[:, :1]).all()


def test_zero_and_minus_zero_tie() -> None:
    candidates = torch.tensor([[-0.0], [0.0], [-0.0]])
    assert top_k(torch.ones(1, 1), candidates, 3)[1].tolist() == [[0, 1, 2]]


def test_k_beyond_the_candidates_returns_all_of_them() -> None:
    scores, indices = top_k(unit(2, 4), unit(3, 4), 10)
    assert scores.shape == indices.shape == (2, 3)


def test_no_queries_give_empty_results() -> None:
    scores, indices = top_k(torch.empty(0, 4), unit(9, 4), 5)
    assert scores.shape == indices.shape == (0, 5)
    assert ranks_of_targets(torch.empty(0, 4), unit(9, 4), []).shape == (0,)


def test_half_precision_inputs_are_ranked_by_their_exact_values() -> None:
    queries, candidates = unit(20, 32).half(), unit(300, 32, seed=1).half()
    expected = (queries.double() @ candidates.double().T).argmax(dim=1)
    assert top_k(queries, candidates, 1)[1][:, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("block", [7, 2048])
def test_constant_embeddings_earn_the_worst_rank(block: int) -> None:
    queries, candidates = unit(1, 512).repeat(40, 1), unit(1, 512, seed=1).repeat(40, 1)
    ranks = ranks_of_targets(queries, candidates, list(range(40)), block=block)
    assert ranks.tolist() == [39] * 40
    assert recall_at(ranks, 10) == 0.0


def test_perfect_embeddings_earn_rank_0() -> None:
    queries = unit(50, 16)
    ranks = ranks_of_targets(queries, queries, torch.arange(50), block=8)
    assert ranks.tolist() == [0] * 50
    assert recall_at(ranks, 1) == 1.0


def test_the_best_of_several_correct_candidates_counts_and_the_others_are_no_rivals() -> None:
    queries = torch.ones(1, 1)
    candidates = torch.tensor([[1.0], [5.0], [3.0], [3.0], [2.0]])
    assert ranks_of_targets(queries, candidates, [[0, 2, 3]]).tolist() == [1]
    assert ranks_of_targets(queries, candidates, [[2]]).tolist() == [2], (
        "a wrong candidate with an equal score is above"
    )
    assert ranks_of_targets(queries, candidates, [[1, 4, 4]]).tolist() == [0]


def test_groups_name_the_correct_candidates() -> None:
    targets = group_targets(torch.tensor([7, 3, 9]), torch.tensor([3, 7, 7]))
    assert targets == [[1, 2], [0], []]
    with pytest.raises(DataError, match="query 2 has no correct candidate"):
        ranks_of_targets(torch.ones(3, 2), torch.ones(3, 2), targets)


def test_recall_is_a_share_of_queries() -> None:
    ranks = torch.tensor([0, 1, 4, 5])
    assert [recall_at(ranks, k) for k in (1, 5, 10)] == [0.25, 0.75, 1.0]
    with pytest.raises(DataError, match="no queries"):
        recall_at(torch.empty(0), 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite_are_refused(value: float) -> None:
    candidates = unit(6, 4)
    candidates[5, 1] = value
    with pytest.raises(DataError, match="not finite"):
        ranks_of_targets(unit(2, 4), candidates, [0, 1], block=2)
    with pytest.raises(DataError, match="not finite"):
        top_k(unit(2, 4), candidates, 1, block=2)


def test_bad_arguments_are_refused_with_their_values() -> None:
    with pytest.raises(ConfigError, match="k is 0"):
        top_k(unit(2, 4), unit(3, 4), 0)
    with pytest.raises(ConfigError, match="block is 0"):
        top_k(unit(2, 4), unit(3, 4), 1, block=0)
    with pytest.raises(DataError, match=r"\[2, 4\].*\[3, 5\]"):
        top_k(unit(2, 4), unit(3, 5), 1)
    with pytest.raises(DataError, match="no candidates"):
        top_k(unit(2, 4), torch.empty(0, 4), 1)
    with pytest.raises(DataError, match="2 queries have 1"):
        ranks_of_targets(unit(2, 4), unit(3, 4), [0])
    with pytest.raises(DataError, match="query 1 names candidate 3"):
        ranks_of_targets(unit(2, 4), unit(3, 4), [0, [1, 3]])
