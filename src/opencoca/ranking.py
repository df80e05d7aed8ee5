"""Exact ranking of candidates by inner product, in blocks: what evaluation and search share.

Scores are computed in float64 and rounded to float32. The last bits of a float32 product depend on the block, the
thread count and the precision mode, so equal candidates would not tie; after rounding they do. Memory is a few times
`block` squared scores of 8 bytes, whatever the number of queries and candidates.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch

from opencoca.errors import ConfigError, DataError

BLOCK = 2048


def top_k(
    queries: torch.Tensor, candidates: torch.Tensor, k: int, block: int = BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k candidates of each query: scores float32 [I,k] in descending order and their indices int64 [I,k].

    Of candidates with the same score the one with the lower index comes first. With fewer than k candidates all of
    them come back. Results lie on the queries' device; candidates may stay elsewhere and travel block by block.

    Args: queries [I,E]; candidates [U,E]; block is how many queries and how many candidates are compared at once.
    Raises: ConfigError if k or block is below 1; DataError for shapes that don't fit or scores that aren't finite.
    """
    _check(queries, candidates, block)
    if k < 1:
        raise ConfigError(f"k is {k}; ask for 1 candidate or more")
    k = min(k, len(candidates))
    rows = []
    for first in range(0, len(queries), block):
        best: torch.Tensor | None = None
        for start, scores in _score_blocks(queries[first : first + block], candidates, block):
            keys = _keys(scores, start)
            best = keys if best is None else torch.cat((best, keys), dim=1)
            best = best.topk(min(k, best.shape[1]), dim=1).values
        assert best is not None
        rows.append(best)
    keys = torch.cat(rows) if rows else torch.empty(0, k, dtype=torch.int64, device=queries.device)
    return _unkeyed(keys)


def ranks_of_targets(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    targets: Sequence[int | Iterable[int]] | torch.Tensor,
    block: int = BLOCK,
) -> torch.Tensor:
    """The 0-based rank of each query's best correct candidate, int64 [I]: how many wrong ones score at least as high.

    Ties count against the query, so embeddings that are all equal earn the worst rank and not the best.

    Args: queries [I,E]; candidates [U,E]; targets holds for each query the indices of its correct candidates, or one
      index (see `group_targets`); block is how many queries and how many candidates are compared at once.
    Raises: DataError for a query without a correct candidate, an index out of range, or scores that aren't finite.
    """
    _check(queries, candidates, block)
    owners, correct = _flat_targets(targets, len(queries), len(candidates))
    ranks = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for first in range(0, len(queries), block):
        part = queries[first : first + block]
        low, high = torch.searchsorted(owners, torch.tensor([first, first + len(part)])).tolist()
        rows, columns = owners[low:high] - first, correct[low:high]
        best = torch.full((len(part),), -torch.inf, device=queries.device)
        for start, scores in _score_blocks(part, candidates, block):
            row, column = _cells(rows, columns, start, scores)
            best.scatter_reduce_(0, row, scores[row, column], "amax")
        for start, scores in _score_blocks(part, candidates, block):
            rivals = scores >= best[:, None]
            rivals[_cells(rows, columns, start, scores)] = False
            ranks[first : first + len(part)] += rivals.sum(dim=1)
    return ranks


def group_targets(query_groups: torch.Tensor, candidate_groups: torch.Tensor) -> list[list[int]]:
    """For each query the indices of the candidates of its own group, for `ranks_of_targets`.

    Args: query_groups int [I] and candidate_groups int [U] name what belongs together, a picture and its captions say.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(candidate_groups.tolist()):
        members.setdefault(group, []).append(index)
    return [members.get(group, []) for group in query_groups.tolist()]


def recall_at(ranks: torch.Tensor, k: int) -> float:
    """The share of queries whose best correct candidate is among the first k, 0 to 1; ranks from `ranks_of_targets`."""
    if not len(ranks):
        raise DataError("recall of no queries; give at least one")
    return (ranks < k).double().mean().item()


def _check(queries: torch.Tensor, candidates: torch.Tensor, block: int) -> None:
    if block < 1:
        raise ConfigError(f"block is {block}; compare at least 1 row at once, {BLOCK} by default")
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise DataError(
            f"queries {list(queries.shape)} and candidates {list(candidates.shape)} must be two-dimensional and of one "
            "width; embed both with the same model"
        )
    if not len(candidates):
        raise DataError("no candidates to rank; give at least one")


def _score_blocks(queries: torch.Tensor, candidates: torch.Tensor, block: int) -> Iterator[tuple[int, torch.Tensor]]:
    """First index and float32 scores [I,block] of one block of candidates after the other."""
    device = torch.device("cpu") if queries.device.type == "mps" else queries.device  # MPS has no float64
    left = queries.to(device, torch.float64)
    for start in range(0, len(candidates), block):
        right = candidates[start : start + block].to(device, torch.float64)
        scores = (left @ right.T).float()
        if not scores.isfinite().all():  # a NaN compares as "not better" and would earn the first rank
            raise DataError(
                "some scores are not finite, so an embedding holds NaN, infinity or huge values; "
                "check the model that made it"
            )
        yield start, scores.to(queries.device)


def _keys(scores: torch.Tensor, start: int) -> torch.Tensor:
    """int64 keys in the order of (score, then lower index): all different, so any top-k of them is the same one.

    The high half is the score's bits, turned so that they sort as an integer does; the low half counts indices down.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    high = _turned(bits).long() << 32
    index = torch.arange(start, start + scores.shape[1], device=scores.device)
    return high + ((1 << 32) - 1 - index)


def _unkeyed(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scores = _turned((keys >> 32).int()).view(torch.float32)
    return scores, (1 << 32) - 1 - (keys & ((1 << 32) - 1))


def _turned(bits: torch.Tensor) -> torch.Tensor:
    """float32 bits as int32 in the floats' order, and back: negative floats grow with their magnitude's bits."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _flat_targets(
    targets: Sequence[int | Iterable[int]] | torch.Tensor, count: int, candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query index and candidate index of every correct pair, both int64 on the CPU, ordered by query."""
    lists = targets.tolist() if isinstance(targets, torch.Tensor) else targets
    if len(lists) != count:
        raise DataError(f"{count} queries have {len(lists)} entries of targets; give one for each query")
    owners: list[int] = []
    correct: list[int] = []
    for query, entry in enumerate(lists):
        indices = list(entry) if isinstance(entry, Iterable) else [entry]
        if not indices:
            raise DataError(f"query {query} has no correct candidate; leave it out or add its candidate")
        wrong = next((index for index in indices if not 0 <= index < candidates), None)
        if wrong is not None:
            raise DataError(f"query {query} names candidate {wrong}, but there are {candidates}; they count from 0")
        owners.extend([query] * len(indices))
        correct.extend(indices)
    return torch.tensor(owners, dtype=torch.int64), torch.tensor(correct, dtype=torch.int64)


def _cells(
    rows: torch.Tensor, columns: torch.Tensor, start: int, scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the correct pairs that lie in this block of scores, on its device."""
    inside = (columns >= start) & (columns < start + scores.shape[1])
    return rows[inside].to(scores.device), columns[inside].to(scores.device) - start
