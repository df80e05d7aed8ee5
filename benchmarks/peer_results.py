"""A peer's results, sample by sample, in the form that `coca eval --vs FILE` reads: open_clip or transformers models.

Run it where the peer is installed (benchmarks/peer_environment.sh makes such a place). The data, splits, class names,
templates and measures are those of `coca eval`; the model, its preprocessing and its tokenizer are the peer's.

    python benchmarks/peer_results.py --open-clip ViT-B-32 --pretrained laion2b_s34b_b79k \\
        --data coco=/data/coco imagenet=/data/imagenet/val --only coco/retrieval imagenet/zeroshot --json peer.json
    python benchmarks/peer_results.py --transformers openai/clip-vit-base-patch32 --data pairs=photos.csv
    python benchmarks/peer_results.py --write-names /data/imagenet/val

The last writes ImageNet's class names and templates, as open_clip has them, into the files that `coca eval` reads.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from opencoca.errors import DataError
from opencoca.eval import registry
from opencoca.eval.run import checked_json, measure, report
from opencoca.files import write_atomically

BATCH = 64


class Peer:
    """A peer's two towers behind the part of `Predictor` that retrieval and zero-shot use; it writes no captions."""

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        images: Callable[[list[Image.Image]], Tensor],
        texts: Callable[[list[str]], Tensor],
        width: int,
        scale: float,
        size_px: int,
    ) -> None:
        self.name, self._images, self._texts, self.scale, self.batch_size = name, images, texts, scale, BATCH
        self.model = SimpleNamespace(config=SimpleNamespace(embed_dim=width), parameters=model.parameters)
        self.config = SimpleNamespace(
            model=SimpleNamespace(vision=SimpleNamespace(image_size_px=size_px)), pixels=Pixels()
        )
        self.device = torch.device("cpu")

    def fingerprint(self) -> str:
        """The model's name: a peer's weights are told by it alone."""
        return self.name

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings [U,E]."""
        parts = [self._texts(list(texts[i : i + BATCH])).float() for i in range(0, len(texts), BATCH)]
        return F.normalize(torch.cat(parts), dim=-1)

    def squares(self, pictures: Any, on_bad: Callable[[Any, DataError], None]) -> Iterator[Any]:
        """Batches of opened pictures with their places; `on_bad` is told of those that can't be read."""
        images: list[Image.Image] = []
        places: list[int] = []
        for place, picture in enumerate(pictures):
            try:
                images.append(Image.open(io.BytesIO(picture)).convert("RGB"))
                places.append(place)
            except (OSError, ValueError, SyntaxError) as error:
                on_bad(picture, DataError(f"it can't be read ({error})"))
            if len(images) == BATCH:
                yield SimpleNamespace(squares=images, places=places)
                images, places = [], []
        if images:
            yield SimpleNamespace(squares=images, places=places)

    @torch.no_grad()
    def encode_squares(self, squares: list[Image.Image]) -> Any:
        """Unit-norm embeddings of a batch."""
        return SimpleNamespace(embed=F.normalize(self._images(squares).float(), dim=-1))


@dataclass(frozen=True)
class Pixels:
    """What a result says of the preprocessing."""

    preprocessing: str = "the peer's own"


def open_clip_peer(name: str, pretrained: str) -> Peer:
    """A model of open_clip, with its own tokenizer and preprocessing."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
    tokenizer = open_clip.get_tokenizer(name)
    model = model.eval()
    side = open_clip.get_model_config(name)
    size = int(np.atleast_1d(model.visual.image_size)[0])
    return Peer(
        f"open_clip {name} {pretrained}",
        model,
        lambda images: model.encode_image(torch.stack([preprocess(image) for image in images])),
        lambda texts: model.encode_text(tokenizer(texts)),
        side["embed_dim"],
        float(model.logit_scale.exp()),
        size,
    )


def transformers_peer(name: str) -> Peer:
    """A CLIP or SigLIP model of transformers, with its own processor."""
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
    padding = "max_length" if "siglip" in name.lower() else True  # SigLIP was trained on padding

    def embed(found: Any) -> Tensor:
        return found if isinstance(found, Tensor) else found.pooler_output

    def texts(some: list[str]) -> Tensor:
        return embed(
            model.get_text_features(**processor(text=some, return_tensors="pt", padding=padding, truncation=True))
        )

    def images(some: list[Image.Image]) -> Tensor:
        return embed(model.get_image_features(**processor(images=some, return_tensors="pt")))

    width = int(texts(["a"]).shape[-1])
    size = int(getattr(model.config.vision_config, "image_size", 0))
    return Peer(f"transformers {name}", model, images, texts, width, float(model.logit_scale.exp()), size)


def write_names(folder: Path) -> None:
    """ImageNet's class names and templates, from the installed open_clip."""
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    write_atomically(folder / "classnames.txt", "\n".join(IMAGENET_CLASSNAMES) + "\n")
    lines = [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]
    write_atomically(folder / "zeroshot_classification_templates.txt", "\n".join(lines) + "\n")
    print(f"{len(IMAGENET_CLASSNAMES)} names and {len(lines)} templates in {folder}")


def main() -> None:
    """Measures the peer and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-clip", metavar="NAME")
    parser.add_argument("--pretrained", default="", help="open_clip's tag, or a weights file")
    parser.add_argument("--transformers", metavar="NAME")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", nargs="+", default=[], metavar="EVALUATION")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--json", type=Path, default=Path("peer.json"))
    parser.add_argument("--write-names", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    if args.write_names:
        write_names(args.write_names)
        return
    if bool(args.open_clip) == bool(args.transformers):
        parser.error("give --open-clip NAME or --transformers NAME")
    peer = open_clip_peer(args.open_clip, args.pretrained) if args.open_clip else transformers_peer(args.transformers)
    data = registry.parse_data(args.data)
    names = args.only or [
        name
        for name, entry in registry.EVALUATIONS.items()
        if name.endswith(("/zeroshot", "/retrieval")) and not registry.missing(entry, data)
    ]
    entries = registry.chosen(None, names)
    outcome = measure(peer.name, peer, entries, data, registry.Options(limit=args.limit), print)  # type: ignore[arg-type]
    write_atomically(args.json, checked_json(report([outcome], "peer", {"limit": args.limit})))
    print(args.json)


if __name__ == "__main__":
    main()
