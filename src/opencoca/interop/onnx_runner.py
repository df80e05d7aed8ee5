"""Captions and embeddings from an exported folder with onnxruntime, numpy and `tokenizers`: nothing here imports torch.

python -m opencoca.interop.onnx_runner FOLDER cat.png dog.png
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import ftfy
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from opencoca.config import Config
from opencoca.data.pixels import normalise, open_picture, to_square


class OnnxRunner:
    """The graphs in a folder that `coca export` wrote; `batch_size` pictures or texts pass through them at once."""

    def __init__(self, folder: str | Path, batch_size: int = 64, threads: int = 0) -> None:
        """Opens the graphs; with `threads` 0 onnxruntime takes as many as there are cores."""
        folder = Path(folder)
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.config, self.scale, self.batch_size = Config.from_dict(facts["config"]), facts["scale"], batch_size
        self.repairs_text = facts["repair_text"]  # of CLIP's tokenizer the one step that tokenizer.json can't hold
        self.pad, self.start, self.end = (facts["special"][name] for name in ("pad", "start", "end"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.image_encoder, self.text_encoder, self.decoder_start, self.decoder_step = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in ("image_encoder", "text_encoder", "decoder_start", "decoder_step")
        )
        self._pasts = [given for given in self.decoder_step.get_inputs() if given.name.startswith("past_")]

    def caption(self, pictures: Sequence, max_tokens: int | None = None, min_tokens: int | None = None) -> list[str]:
        """The greedy caption of each picture (a path, bytes, a PIL image or an array)."""
        rows = self.caption_ids(pictures, max_tokens, min_tokens)
        return [self.tokenizer.decode(ids, skip_special_tokens=False).strip() for ids in rows]

    def caption_ids(
        self, pictures: Sequence, max_tokens: int | None = None, min_tokens: int | None = None
    ) -> list[list[int]]:
        """The same as token ids, without start and end; the bounds are the model's own where they aren't given."""
        generation, room = self.config.generation, self.config.model.text.context_length - 2
        longest = min(generation.max_tokens if max_tokens is None else max_tokens, room)
        shortest = generation.min_tokens if min_tokens is None else min_tokens
        return [ids for pixels in self.pixels(pictures) for ids in self._greedy(pixels, longest, shortest)]

    def embed_images(self, pictures: Sequence) -> np.ndarray:
        """Unit-norm embeddings, float32 [I,E]."""
        parts = [_run(self.image_encoder, {"pixels": pixels})[0] for pixels in self.pixels(pictures)]
        return np.concatenate(parts)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm embeddings, float32 [U,E]; a text beyond the context loses its end."""
        parts = []
        for first in range(0, len(texts), self.batch_size):
            ids = self._ids(texts[first : first + self.batch_size])
            parts += _run(self.text_encoder, {"ids": ids, "valid": ids != self.pad})
        return np.concatenate(parts)

    def pixels(self, pictures: Sequence) -> Iterator[np.ndarray]:
        """What the image encoder takes, float32 [B,3,H,W], batch by batch."""
        size_px, settings = self.config.model.vision.image_size_px, self.config.pixels
        for first in range(0, len(pictures), self.batch_size):
            some = pictures[first : first + self.batch_size]
            squares = np.stack([to_square(open_picture(picture), size_px, settings) for picture in some])
            yield normalise(squares, settings.mean, settings.std)

    def start_decoding(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """What `decode_step` carries from step to step: each layer's view of the pictures, and an empty past."""
        _, tokens = _run(self.image_encoder, {"pixels": pixels})
        names = (output.name for output in self.decoder_start.get_outputs())
        feeds = dict(zip(names, _run(self.decoder_start, {"image_tokens": tokens}), strict=True))
        for past in self._pasts:
            _, heads, _, head_width = past.shape
            feeds[past.name] = np.zeros((len(pixels), heads, 0, head_width), np.float32)
        return feeds

    def decode_step(self, ids: np.ndarray, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """Logits [B,V] after the next ids int64 [B]; `feeds` move on by one position."""
        logits, *present = _run(self.decoder_step, {**feeds, "ids": ids[:, None]})
        feeds.update(zip((past.name for past in self._pasts), present, strict=True))
        return logits

    def _greedy(self, pixels: np.ndarray, longest: int, shortest: int) -> list[list[int]]:
        feeds = self.start_decoding(pixels)
        captions: list[list[int]] = [[] for _ in pixels]
        live, last = np.arange(len(pixels)), np.full(len(pixels), self.start)
        for step in range(longest):
            logits = self.decode_step(last, feeds)
            logits[:, [self.pad, self.start, *([self.end] if step < shortest else [])]] = -np.inf
            last = logits.argmax(axis=1)
            going = last != self.end
            if not going.all():
                live, last = live[going], last[going]
                feeds = {name: values[going] for name, values in feeds.items()}
            if not len(live):
                break
            for row, token in zip(live, last, strict=True):
                captions[row].append(int(token))
        return captions

    def _ids(self, texts: Sequence[str]) -> np.ndarray:
        """Ids int64 [U,T] as `Tokenizer.encode_batch` gives them."""
        text = self.config.model.text
        if self.repairs_text:
            texts = [html.unescape(html.unescape(ftfy.fix_text(one))) for one in texts]
        rows = [self.tokenizer.encode(one, add_special_tokens=False).ids for one in texts]
        rows = [[self.start, *ids[: text.context_length - 2], self.end] for ids in rows]
        length = max(map(len, rows))
        return np.array([ids + [self.pad] * (length - len(ids)) for ids in rows])


def _run(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return cast(list[np.ndarray], session.run(None, feeds))  # every output of ours is a plain array


def main(folder: str, *pictures: str) -> None:
    """Prints each picture's path and caption."""
    for picture, caption in zip(pictures, OnnxRunner(folder).caption(pictures), strict=True):
        print(picture, caption, sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
