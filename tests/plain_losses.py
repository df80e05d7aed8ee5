"""The losses as their definitions read, whole matrices and all, or as Python's sums: what ours must equal."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def belong_together(count: int, group_ids: Tensor | None, true_texts: Tensor | None) -> Tensor:
    """Which pictures (rows) and texts [G,G] are of one group, or texts that are true of the picture."""
    ids = torch.arange(count) if group_ids is None else group_ids
    same = ids[:, None] == ids
    return same if true_texts is None else same | (true_texts[:, None] == true_texts[:, :1]).any(dim=2)


def contrastive(
    image: Tensor,
    text: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    scale: Tensor,
    first: int = 0,
    group_ids: Tensor | None = None,
    multi_positive: bool = False,
    true_texts: Tensor | None = None,
) -> Tensor:
    targets = torch.arange(first, first + len(image))
    together = belong_together(len(all_images), group_ids, true_texts)
    own = torch.zeros(len(image), len(all_images), dtype=image.dtype)
    own[torch.arange(len(image)), targets] = 1
    total = image.new_zeros(())
    for queries, keys, relation in ((image, all_texts, together), (text, all_images, together.T)):
        same = relation[targets].to(image.dtype)
        logits = scale * (queries @ keys.T)
        if multi_positive:
            total = total + F.cross_entropy(logits, same / same.sum(dim=1, keepdim=True))
        else:
            total = total + F.cross_entropy(logits.masked_fill(same > own, float("-inf")), targets)
    return total


def sigmoid(
    image: Tensor,
    text: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int = 0,
    group_ids: Tensor | None = None,
    multi_positive: bool = False,
    true_texts: Tensor | None = None,
) -> Tensor:
    targets = torch.arange(first, first + len(image))
    same = belong_together(len(all_images), group_ids, true_texts)[targets]
    own = torch.zeros_like(same)
    own[torch.arange(len(image)), targets] = True
    yes = same if multi_positive else own
    asked = torch.ones_like(same) if multi_positive else own | ~same
    logits = scale * (image @ all_texts.T) + bias
    return -(F.logsigmoid(torch.where(yes, logits, -logits)) * asked).sum() / len(image)


def value_and_gradients(loss: Callable[..., Tensor], leaves: Sequence[Tensor], **settings) -> list[Tensor]:
    """loss(*leaves), and its gradient by each leaf that wants one."""
    value = loss(*leaves, **settings)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [value.detach(), *torch.autograd.grad(2.5 * value, wanted, materialize_grads=True)]


class Operations(TorchDispatchMode):
    """Counts the matrix products that run inside it, and notes the most elements that any result has."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and not func.is_view:
                self.largest = max(self.largest, x.numel())
        return result


def written_out(image: Tensor, text: Tensor, scale: float, groups: list[int]) -> float:
    """CoCa Eq. 2 with Python's sums: minus the mean over pairs of both log-ratios."""
    total = 0.0
    pairs = range(len(groups))
    for i in pairs:
        rivals = [j for j in pairs if j == i or groups[j] != groups[i]]
        own = math.exp(scale * float(image[i] @ text[i]))
        total -= math.log(own / sum(math.exp(scale * float(image[i] @ text[j])) for j in rivals))
        total -= math.log(own / sum(math.exp(scale * float(image[j] @ text[i])) for j in rivals))
    return total / len(groups)
