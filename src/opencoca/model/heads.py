"""What a task adds to a CoCa: a new 1-query pooler and a linear classifier, over the picture or over a question."""

from __future__ import annotations

from torch import Tensor, nn

from opencoca.config import HeadConfig, ModelConfig
from opencoca.errors import ConfigError
from opencoca.model.pooler import AttentionalPooler


class TaskHead(nn.Module):
    """A 1-query attentional pooler and a linear classifier (CoCa section 3.3).

    Where samples have several pictures, each picture's tokens are pooled alone, and their outputs stand side by side.
    """

    def __init__(self, config: HeadConfig, model: ModelConfig) -> None:
        super().__init__()
        self.pictures = config.pictures
        part = model.vision if config.reads == "encoder" else model.text
        self.pooler = AttentionalPooler(1, part.width, part.num_heads, part.width)
        self.classifier = nn.Linear(config.pictures * part.width, len(config.labels))

    def forward(self, tokens_BSD: Tensor, keep_BS: Tensor | None = None) -> Tensor:
        """Logits [B,L] of tokens [B,S,D], those of a sample's pictures in consecutive rows; `keep` hides padding."""
        pooled_BD = self.pooler(tokens_BSD, keep_BS)[:, 0]
        return self.classifier(pooled_BD.reshape(-1, self.classifier.in_features))


def task_heads(config: ModelConfig) -> nn.ModuleDict:
    """The heads that a configuration names.

    Raises: ConfigError for a name that torch's modules have taken.
    """
    heads = nn.ModuleDict()
    for head in config.heads:
        if hasattr(heads, head.name):
            raise ConfigError(f"a head can't be called {head.name!r}, which is a name of torch's own; take another")
        heads[head.name] = TaskHead(head, config)
    return heads
