"""A probe: labels learnt from a few pictures each, on top of the image embeddings, with the words as a prior."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from opencoca.errors import CheckpointError, DataError, unwritable
from opencoca.files import replacing

FORMAT, VERSION = "opencoca-probe", "1"
# What held-out pictures choose from, the surest first: it wins a tie.
STRENGTHS = (100.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
TRUSTS = (1.0, 0.5, 0.25, 0.1, 0.0)
UNTESTED = (1.0, 0.5)  # strength and trust where no label has two pictures, so that nothing can be held out
ONE_BY_ONE = 20  # up to so many pictures are left out singly
FOLDS = 5
MAX_LOGITS = 2_000_000  # fitted at once: a few times 16 MB
ALIKE = 1 - 1e-6  # pictures whose cosine similarity is above this are copies


@dataclass(frozen=True)
class Probe:
    """Weights float32 [L,E], one row per label, for unit-norm image embeddings; made by `Probe.fit`.

    model: the fingerprint of the model whose embeddings it reads.
    strength, trust: of the pull towards the prior, and the factor on the prior.
    held_out_nll: the mean cross-entropy that they reached on held-out pictures, in nats; nan where none could be held.
    """

    labels: tuple[str, ...]
    weights: Tensor
    model: str
    pictures: int
    strength: float
    trust: float
    held_out_nll: float

    @classmethod
    def fit(
        cls,
        embeddings: Tensor,
        labels: Sequence[str],
        *,
        prior: Tensor | None = None,
        scale: float = 1.0,
        model: str = "",
    ) -> Probe:
        """Multinomial logistic regression that is pulled towards the words, as strongly as held-out pictures say.

        It minimises the mean cross-entropy, each label counting alike however many pictures it has, plus strength / 2
        times the squared distance of the weights from trust * `scale` * `prior` (without a prior, from 0). Strength and
        trust are those with the least cross-entropy on held-out pictures: few pictures are left out one by one, many a
        fifth at a time. The strongest pull is zero-shot classification, so that a few odd pictures can't do much harm.
        The result depends on nothing but the pictures and labels, not on their order; a picture that occurs twice
        counts once.

        Args: embeddings [N,E] unit-norm and one label each; prior [L,E], unit-norm text embeddings of the sorted
          labels; scale is the model's 1/temperature.
        Raises: DataError for fewer than two labels, equal pictures with different labels, or damaged embeddings.
        """
        names = _checked(embeddings, labels)
        if prior is not None and prior.shape != (len(names), embeddings.shape[1]):
            wanted = [len(names), embeddings.shape[1]]
            raise DataError(f"prior is {list(prior.shape)}; give {wanted}: one row for each of {list(names)}")
        order = sorted(range(len(labels)), key=lambda row: (labels[row], embeddings[row].tolist()))
        targets = torch.tensor([names.index(labels[row]) for row in order])
        inputs, targets = _without_copies(embeddings[order].double().cpu(), targets, names)
        words = torch.zeros(len(names), inputs.shape[1], dtype=torch.float64)
        if prior is not None:
            words = scale * prior.double().cpu()
        # What the weights learn lies in the span of the pictures: a basis of it has fewer numbers than E.
        basis_RE = torch.linalg.svd(inputs, full_matrices=False).Vh
        seen, said = inputs @ basis_RE.T, inputs @ words.T
        grid = [(strength, trust) for strength in STRENGTHS for trust in (TRUSTS if prior is not None else (0.0,))]
        (strength, trust), held_out = _choose(grid, seen, said, targets)
        everything = torch.ones(1, len(inputs), dtype=torch.bool)
        learnt = _learn(seen, said, targets, everything, [(strength, trust)])[0, 0]
        weights = (trust * words + learnt @ basis_RE).float()
        return cls(names, weights, model, len(inputs), strength, trust, held_out)

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """Probabilities float32 [I,L] of the labels, for unit-norm image embeddings [I,E]."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.weights.shape[1]:
            raise DataError(
                f"embeddings are {list(embeddings.shape)} and the probe reads [I, {self.weights.shape[1]}]; "
                "embed the pictures with the model that the probe was fitted for"
            )
        return (embeddings.float().cpu() @ self.weights.T).softmax(dim=-1)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, whole or not at all."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "weights"}
        metadata = {"format": FORMAT, "version": VERSION, "facts": json.dumps(facts)}
        try:
            with replacing(Path(path)) as partial:
                partial.write_bytes(save({"weights": self.weights.contiguous()}, metadata))
        except OSError as error:
            raise CheckpointError(unwritable(path, error)) from error

    @classmethod
    def load(cls, path: str | Path, model: str) -> Probe:
        """What `save` wrote, for the model with this fingerprint (`Predictor.fingerprint()`).

        Raises: CheckpointError if it is missing, damaged, or of another model.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
                    raise ValueError("another format")
                weights = file.get_tensor("weights")
            facts = json.loads(metadata["facts"])
            probe = cls(**{**facts, "labels": tuple(facts["labels"])}, weights=weights)
            if weights.ndim != 2 or len(weights) != len(probe.labels) or not weights.isfinite().all():
                raise ValueError(f"weights {list(weights.shape)} for {len(probe.labels)} labels")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist; fit a probe and save it there") from error
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} holds no probe ({error}); fit it again") from error
        if probe.model != model:
            raise CheckpointError(
                f"{path} was fitted for another model ({probe.model[:12]}, not {model[:12]}); "
                "load that model, or fit the probe again with this one"
            )
        return probe


def _checked(embeddings: Tensor, labels: Sequence[str]) -> tuple[str, ...]:
    """The different labels, sorted."""
    if embeddings.ndim != 2 or len(embeddings) != len(labels) or isinstance(labels, str):
        raise DataError(f"{len(labels)} labels for embeddings {list(embeddings.shape)}; give one label for each row")
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise DataError(f"labels must be strings that aren't empty, got {sorted({repr(label) for label in labels})}")
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise DataError(f"a probe needs two labels or more to choose among, got {list(names)}; add examples of another")
    broken = (~embeddings.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if broken:
        raise DataError(f"embeddings of rows {broken[:8]} are not finite; embed those pictures again")
    return names


def _without_copies(inputs: Tensor, targets: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The rows without those that repeat an earlier one: a copy would tell the answer for its held-out twin."""
    unit, owners = F.normalize(inputs, dim=1), targets.tolist()
    keep: list[int] = []
    for row, owner in enumerate(owners):
        twins = [keep[i] for i in (unit[keep] @ unit[row] > ALIKE).nonzero()[:, 0].tolist()]
        for twin in twins:
            if owners[twin] != owner:
                pair = f"{names[owners[twin]]!r} and {names[owner]!r}"
                raise DataError(f"one picture is an example of both {pair}; keep it in one of them")
        if not twins:
            keep.append(row)
    return inputs[keep], targets[keep]


def _choose(
    grid: Sequence[tuple[float, float]], seen: Tensor, said: Tensor, targets: Tensor
) -> tuple[tuple[float, float], float]:
    """The strength and trust with the least cross-entropy on held-out pictures, and that cross-entropy."""
    held_FN = _folds(targets)
    if len(held_FN) == 0:
        return UNTESTED if any(trust for _, trust in grid) else (UNTESTED[0], 0.0), float("nan")
    weights_N = _balance(targets, torch.ones(1, len(targets), dtype=torch.bool))[0]
    totals: list[float] = []
    together = max(1, MAX_LOGITS // (len(held_FN) * said.numel()))
    for first in range(0, len(grid), together):
        some = grid[first : first + together]
        trusts_G = torch.tensor([trust for _, trust in some], dtype=seen.dtype)
        totals_G = torch.zeros(len(some), dtype=seen.dtype)
        for held_N, learnt_GLR in zip(held_FN, _learn(seen, said, targets, ~held_FN, some), strict=True):
            logits_GNL = trusts_G[:, None, None] * said[held_N] + seen[held_N] @ learnt_GLR.mT
            truths_NL = F.one_hot(targets[held_N], said.shape[1])
            losses_GN = -(logits_GNL.log_softmax(dim=-1) * truths_NL).sum(dim=-1)
            totals_G += losses_GN @ weights_N[held_N]
        totals += totals_G.tolist()
    best = min(range(len(grid)), key=totals.__getitem__)
    return grid[best], totals[best] / weights_N[held_FN.any(dim=0)].sum().item()


def _folds(targets: Tensor) -> Tensor:
    """Pictures to hold out together, bool [F,N]: each label's are dealt out in turn, and an only one is never held."""
    shared = torch.cat(
        [rows for rows in map(torch.nonzero, F.one_hot(targets).T) if len(rows) > 1] or [targets[:0, None]]
    )
    count = len(shared) if len(shared) <= ONE_BY_ONE else FOLDS
    held_FN = torch.zeros(count, len(targets), dtype=torch.bool)
    for place, row in enumerate(shared[:, 0].tolist()):
        held_FN[place % count, row] = True
    return held_FN


def _balance(targets: Tensor, keep_FN: Tensor) -> Tensor:
    """Weights [F,N] of the kept pictures, of sum 1 over N, that give each label the same share."""
    labels_NL = F.one_hot(targets).double()
    counts_FL = keep_FN.double() @ labels_NL
    shares_FL = 1 / counts_FL.clamp_min(1) / (counts_FL > 0).sum(dim=1, keepdim=True)
    return keep_FN * (shares_FL @ labels_NL.T)


def _learn(seen: Tensor, said: Tensor, targets: Tensor, keep_FN: Tensor, grid: Sequence[tuple[float, float]]) -> Tensor:
    """The additions to the weights [F,G,L,R] that minimise loss plus penalty on the kept pictures of each fold.

    All folds and all of the grid are one problem for the optimiser. The variables are scaled by a bound of their
    curvature (half the pictures' covariance, plus the strength), without which weak pulls would take it very long.
    """
    strengths_G, trusts_G = torch.tensor(grid, dtype=seen.dtype).unbind(dim=1)
    weights_FN = _balance(targets, keep_FN)
    spread_FR, axes_FRR = torch.linalg.eigh(seen.T @ (weights_FN[..., None] * seen))
    scaling_FG1R = (0.5 * spread_FR.clamp_min(0)[:, None] + strengths_G[:, None]).rsqrt()[:, :, None]
    turned_F1NR = (seen @ axes_FRR)[:, None]
    base_GNL = trusts_G[:, None, None] * said
    truths_NL = F.one_hot(targets, said.shape[1]).to(seen.dtype)
    free_FGLR = seen.new_zeros(len(keep_FN), len(grid), said.shape[1], seen.shape[1]).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free_FGLR],
        max_iter=200,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        learnt_FGLR = free_FGLR * scaling_FG1R
        log_p_FGNL = (base_GNL + turned_F1NR @ learnt_FGLR.mT).log_softmax(dim=-1)
        losses_FGN = -(log_p_FGNL * truths_NL).sum(dim=-1)
        penalty_FG = 0.5 * strengths_G * learnt_FGLR.square().sum(dim=(2, 3))
        loss = ((losses_FGN * weights_FN[:, None]).sum(dim=-1) + penalty_FG).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (free_FGLR.detach() * scaling_FG1R) @ axes_FRR[:, None].mT
