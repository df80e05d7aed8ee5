"""`coca video`: clips described, embedded, recognised, and learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from opencoca.cli.main import Flag, ModelName
from opencoca.cli.options import ARRAY_SUFFIXES, EmbeddingOptions
from opencoca.cli.targets import check_folder
from opencoca.cli.task_runs import name_skipped
from opencoca.errors import DataError

if TYPE_CHECKING:
    from opencoca.cli.forms import Row
    from opencoca.infer.predictor import Predictor
    from opencoca.infer.video import OnBad

Clips = Annotated[tuple[Path, ...], Positional, arg(metavar="CLIP...", help_behavior_hint="")]


@dataclass(frozen=True)
class Args:
    """Describe, embed and recognise clips with a model of pictures, or teach it their labels.

    A CLIP is a video file (MP4, MOV, MKV, WEBM, AVI, ...), a folder of frames, or a folder of video files. Of each,
    --frames frames are read, spread evenly. caption prints a line per clip; embed makes unit vectors, the mean of the
    frames' own or, with --pooled, one over all frames; recognise prints the label that a trained head finds, and its
    probability. A clip that can't be read is named and skipped (exit code 3).

    train takes a CSV with the columns label, path and split (train, val), and perhaps start and end in seconds.

    Examples:
      coca video caption holiday.mp4 clips/
      coca video embed clips/ --output clips.npz
      coca video train clips.csv --run runs/clips
      coca video recognise new.mp4 --model runs/clips
    """

    action: Annotated[Literal["caption", "embed", "recognise", "train"], Positional, arg(help_behavior_hint="")]
    """What to do."""
    clips: Clips
    """Clips, or for train the CSV."""
    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    frames: int = 16
    """So many frames of each clip are read."""
    pooled: Flag = False
    """embed: one vector over all frames, instead of the mean of the frames' own."""
    run: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """train: the folder for the run; the same command goes on with it."""
    tuned: Flag = False
    """train: the encoder learns, too; else only a new pooler and a classifier do."""
    time_positions: Flag = False
    """train: frames know their place in time; else their order changes nothing."""
    steps: int = 300
    """train: so many steps."""
    seed: int = 0
    """train: of the order and the new weights."""
    output: Annotated[EmbeddingOptions, OmitArgPrefixes] = field(default_factory=EmbeddingOptions)


def run(args: Args) -> int:
    """Does it, clip by clip."""
    if args.action == "train":
        return _train(args)
    from opencoca.cli.arrays import ArrayFile
    from opencoca.cli.output import Column, Output, width_of
    from opencoca.loading import load

    arrays = args.output.output is not None and args.output.file_form in ARRAY_SUFFIXES.values()
    if args.action == "embed" and not (args.output.output or args.output.form):
        raise DataError("embeddings are for programs to read; add --output clips.npz, or --jsonl")
    if args.action != "embed" and arrays:
        raise DataError(f"{args.output.output} holds arrays; give --output words.csv, or coca video embed")
    found = _found(args.clips)
    predictor = load(args.model)
    options = {"action": args.action, "frames": args.frames, "pooled": args.pooled, "of": "paths", "dtype": "float32"}

    def about() -> dict[str, Any]:
        return {"command": "video", "model": predictor.fingerprint(), "options": options}

    width, sink = predictor.model.config.embed_dim, None
    if arrays and args.output.output:
        sink = ArrayFile(args.output.output, args.output.file_form, about(), width, args.output.overwrite)
    header = {
        "caption": ["path", "caption"],
        "recognise": ["path", "label", "probability"],
        "embed": ["path", *(f"e{i}" for i in range(width))],
    }[args.action]
    columns = [Column("clip", "cyan", width=width_of(found.paths)), *map(Column, header[1:3])]
    with Output(found, columns, args.output, header, about, sink=sink) as output:
        for row in _rows(args, predictor, output.todo, output.skip):
            output.done(1)
            output.rows([row])
        return output.finish()


def _rows(args: Args, predictor: Predictor, paths: Iterable[Path], skip: OnBad) -> Iterator[Row]:
    from opencoca.cli.embed import embedding_rows
    from opencoca.cli.forms import Row
    from opencoca.infer import heads, video

    if args.action == "caption":
        for clip, words in video.caption_videos(predictor, paths, args.frames, skip):
            yield Row([str(clip), words], {"path": str(clip), "caption": words}, [str(clip), words], [words])
    elif args.action == "recognise":
        labels = heads.head_for(predictor, "encoder", pictures=1).labels
        for clip, shares_L in video.recognise_videos(predictor, paths, args.frames, skip):
            share, best = shares_L.max(dim=0)
            label, value = labels[int(best)], round(float(share), 4)
            record = {"path": str(clip), "label": label, "probability": value}
            yield Row([str(clip), label, f"{value:.1%}"], record, [str(clip), label, value], [label])
    else:
        how = "pooled" if args.pooled else "mean"
        for one in video.encode_videos(predictor, paths, args.frames, skip):
            yield from embedding_rows("path", [one.video], video.embedding(one, how)[None], False)


def _found(names: tuple[Path, ...]) -> Any:
    """The clips that names mean: files, folders of frames, and the video files in other folders."""
    from opencoca.cli.pictures import Found, Skipped, natural
    from opencoca.data.video import is_video

    paths: dict[Path, None] = {}
    skipped: list[Skipped] = []
    for name in names:
        inside = (
            sorted((p for p in name.rglob("*") if is_video(p)), key=lambda p: natural(str(p))) if name.is_dir() else []
        )
        paths |= dict.fromkeys(inside or [name])
    return Found(list(paths), skipped)


def _train(args: Args) -> int:
    from opencoca.jobs.video import Options, train_videos

    if len(args.clips) != 1 or args.run is None:
        raise DataError("train takes one CSV and a folder, as in: coca video train clips.csv --run runs/clips")
    check_folder(args.run)
    options = Options(args.frames, args.tuned, args.time_positions, args.steps, seed=args.seed)
    outcome = train_videos(args.clips[0], args.run, args.model, options)
    code = name_skipped(outcome.skipped)
    print(f"model: {outcome.model}")
    return code
