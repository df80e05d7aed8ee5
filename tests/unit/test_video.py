"""Clips: decoded as told, refused in one line, and read by a model of pictures as the paper has it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support import tiny_tokenizer

from opencoca import recipes
from opencoca.config import PixelConfig
from opencoca.data.clips import ClipSource, read_table
from opencoca.data.sprite_clips import write_frames, write_video
from opencoca.data.video import Limits, Window, places, read_frames
from opencoca.errors import ConfigError, DataError
from opencoca.infer.predictor import Predictor
from opencoca.infer.video import caption_videos, embed_videos, encode_videos
from opencoca.model.init import build
from opencoca.model.video import encode_video, frame_tokens, space_time, time_positions


def grey_clip(count: int, side: int = 32) -> np.ndarray:
    """Frames whose level says which one it is: 10, 15, 20, ..."""
    levels = np.arange(10, 10 + 5 * count, 5, dtype=np.uint8)[:count]
    return np.broadcast_to(levels[:, None, None, None], (count, side, side, 3)).copy()


def numbers(frames) -> list[int]:
    return [round((np.asarray(frame).mean() - 10) / 5) for frame in frames]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """48 frames, 8 a second, a key frame every 12."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(path, grey_clip(48))
    return path


def predictor(**model) -> Predictor:
    config = recipes.tiny.tiny()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    return Predictor(build(config.model, 0).requires_grad_(False), tiny_tokenizer(), config)


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 16, 48])
def test_frames_are_those_in_the_middle_of_equal_parts(clip, count):
    assert numbers(read_frames(clip, count)) == places(count, 48)


def test_a_window_is_in_seconds(clip):
    assert numbers(read_frames(clip, 4, Window(3.0, 4.0))) == [25, 27, 29, 31]
    assert numbers(read_frames(clip, 2, Window(5.0))) == [42, 46]


def test_few_frames_are_shown_more_than_once(tmp_path):
    write_video(tmp_path / "short.mp4", grey_clip(2))
    assert numbers(read_frames(tmp_path / "short.mp4", 6)) == [0, 0, 0, 1, 1, 1]


def test_a_folder_holds_its_frames_in_natural_order(tmp_path):
    write_frames(tmp_path / "clip", grey_clip(12))
    for path in (tmp_path / "clip").iterdir():
        path.rename(path.with_name(f"{int(path.stem)}.png"))
    assert numbers(read_frames(tmp_path / "clip", 12)) == list(range(12))
    with pytest.raises(DataError, match="leave out its start"):
        read_frames(tmp_path / "clip", 2, Window(1.0))


def bad_files(folder: Path, clip: Path) -> dict[str, bytes]:
    return {
        "is empty": b"",
        "can't be decoded": b"not a video" * 99,
        "can't be decoded .": clip.read_bytes()[:-200],  # an MP4's index stands at its end
        "can't be decoded (": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://" + bytes(clip) + b"\n",
        "can't be decoded (I": b"ffconcat version 1.0\nfile " + bytes(clip) + b"\n",
    }


def test_what_does_not_decode_is_refused_in_one_line(tmp_path, clip):
    for number, (said, content) in enumerate(bad_files(tmp_path, clip).items()):
        path = tmp_path / f"bad{number}.mp4"
        path.write_bytes(content)
        with pytest.raises(DataError) as refused:
            read_frames(path, 4)
        assert said.rstrip(" .") in str(refused.value) and path.name in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_clip_that_is_cut_short_is_refused(tmp_path):
    """A file whose index is whole and whose end is missing would else pass for a shorter clip."""
    path = tmp_path / "long.mkv"
    noise = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), np.uint8)
    write_video(path, noise)
    assert len(read_frames(path, 4)) == 4
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cut short"):
        read_frames(path, 4)


@pytest.mark.parametrize(
    ("limits", "said"),
    [(Limits(pixels=99), "32 x 32 pixels"), (Limits(seconds=2), "lasts 6 s"), (Limits(frames=9), "more than 9 frames")],
)
def test_limits_hold_before_anything_is_decoded(clip, limits, said):
    with pytest.raises(DataError, match=said):
        read_frames(clip, 2, limits=limits)


def test_impossible_wishes_are_refused(clip, tmp_path):
    with pytest.raises(ConfigError, match="0 frames"):
        read_frames(clip, 0)
    with pytest.raises(DataError, match=r"lasts 6\.00 s"):
        read_frames(clip, 2, Window(7.0))
    with pytest.raises(DataError, match="the end behind the start"):
        read_frames(clip, 2, Window(2.0, 1.0))
    with pytest.raises(DataError, match="does not exist"):
        read_frames(tmp_path / "none.mp4")
    with pytest.raises(DataError, match="holds no frames"):
        read_frames(tmp_path)


# --- tables -----------------------------------------------------------------------------------------------------------


def table(folder: Path, text: str) -> Path:
    (folder / "clips.csv").write_text(text, encoding="utf-8")
    return folder / "clips.csv"


def test_bad_rows_are_named_and_the_others_are_read(tmp_path, clip):
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "abc_000010_000020.mp4").write_bytes(clip.read_bytes())
    rows = [
        "label,path,start,end,youtube_id,time_start,time_end",
        "run,a.mp4,1,2,,,",
        ",a.mp4,,,,,",
        "run,,,,,,",
        "run,missing.mp4,,,,,",
        "run,a.mp4,3,2,,,",
        "run,a.mp4,soon,,,,",
        "walk,a.mp4,1,2,,,",
        "jump,,,,abc,10,20",
    ]
    found = read_table(table(tmp_path, "\n".join(rows)))
    assert [(clip.label, clip.key, clip.window) for clip in found.clips] == [
        ("run", "a.mp4#1-2", Window(1.0, 2.0)),
        ("jump", "abc_000010_000020.mp4", Window()),
    ]
    assert [row for row, _ in found.skipped] == [f"row {n}" for n in range(3, 9)]
    for (_, reason), said in zip(
        found.skipped, ["no label", "no path", "does not exist", "swap", "'soon'", "in row 2 already"], strict=True
    ):
        assert said in reason


def test_tables_without_columns_or_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="must have the columns label and path"):
        read_table(table(tmp_path, "name,file\na,b\n"))
    with pytest.raises(DataError, match=r"row 2 names 'a\.mp4'"):
        read_table(table(tmp_path, "label,path\nrun,a.mp4\n"))
    with pytest.raises(DataError, match="its splits are train"):
        read_table(table(tmp_path, "label,path,split\nrun,a.mp4,train\n"), "val")


def test_a_sample_holds_square_frames_and_its_error_names_the_row(tmp_path, clip):
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "b.mp4").write_bytes(b"broken")
    source = ClipSource(read_table(table(tmp_path, "label,path\nrun,a.mp4\nrun,b.mp4\n")), 16, PixelConfig(), 5)
    assert len(source[0].pictures) == 5 and source[0].caption == "run"
    with pytest.raises(DataError, match=r"clips\.csv row 3 \(b\.mp4\) can't be decoded"):
        source[1]


# --- the model --------------------------------------------------------------------------------------------------------


def pixels(frames: int, seed: int = 0) -> torch.Tensor:
    size = recipes.tiny.tiny().model.vision.image_size_px
    return torch.randn(2, frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_clip_of_one_frame_is_a_picture():
    model = predictor().model
    for own, pictures in zip(encode_video(model, pixels(1)), model.encode_image(pixels(1)[:, 0]), strict=True):
        assert torch.equal(own, pictures)


@torch.no_grad()
@pytest.mark.parametrize("arrangement", ["cascade", "parallel", "shared"])
def test_the_order_of_frames_changes_nothing_without_time_positions(arrangement):
    pooler = dataclasses.replace(recipes.tiny.tiny().model.pooler, arrangement=arrangement)
    model, clips = predictor(pooler=pooler).model, pixels(6)
    forward, backward = encode_video(model, clips), encode_video(model, clips.flip(1))
    torch.testing.assert_close(forward.embed, backward.embed, atol=1e-5, rtol=0)
    torch.testing.assert_close(forward.tokens, backward.tokens, atol=1e-4, rtol=0)
    other = encode_video(model, pixels(6, seed=1))
    assert (forward.embed - other.embed).abs().max() > 1e-3


@torch.no_grad()
def test_time_positions_begin_at_nothing_and_then_tell_the_order():
    plain, timed = predictor().model, predictor(time_positions=6).model
    assert torch.equal(encode_video(plain, pixels(6)).embed, encode_video(timed, pixels(6)).embed)
    timed.time_positions_FD.normal_(generator=torch.Generator().manual_seed(0))
    forward, backward = encode_video(timed, pixels(6)), encode_video(timed, pixels(6).flip(1))
    assert (forward.embed - backward.embed).abs().max() > 1e-3


@torch.no_grad()
def test_time_positions_weigh_the_same_however_large_the_tokens_are():
    timed = predictor(time_positions=6).model
    timed.time_positions_FD.normal_(generator=torch.Generator().manual_seed(0))
    tokens_BFPD = frame_tokens(timed, pixels(6))
    torch.testing.assert_close(space_time(timed, 12 * tokens_BFPD), 12 * space_time(timed, tokens_BFPD))
    moved = space_time(timed, tokens_BFPD) - tokens_BFPD.flatten(1, 2)
    of_tokens, of_positions = tokens_BFPD.square().mean().sqrt(), moved.square().mean().sqrt()
    torch.testing.assert_close(of_positions / of_tokens, torch.tensor(1.0), atol=0.2, rtol=0)


def test_time_positions_are_interpolated():
    trained = torch.arange(4.0)[:, None].expand(4, 3)
    torch.testing.assert_close(time_positions(trained, 8).mean(dim=1).mean(), torch.tensor(1.5))
    assert (time_positions(trained, 8).diff(dim=0) >= 0).all()
    assert torch.equal(time_positions(trained, 4), trained)


def test_old_models_keep_their_fingerprints():
    assert predictor().fingerprint() != predictor(time_positions=2).fingerprint()


# --- prediction -------------------------------------------------------------------------------------------------------


def test_clips_are_embedded_as_the_mean_of_their_frames_or_pooled(clip):
    model, frames = predictor(), grey_clip(3)
    own = torch.nn.functional.normalize(model.embed_images(frames).mean(dim=0), dim=0)
    torch.testing.assert_close(embed_videos(model, frames)[0], own, atol=1e-5, rtol=0)
    [one] = encode_videos(model, frames)
    assert torch.equal(embed_videos(model, frames, how="pooled"), one.features.embed)
    assert embed_videos(model, [clip, str(clip)], 4).shape == (2, model.model.config.embed_dim)


def test_a_clip_of_one_frame_has_the_captions_of_the_picture():
    model, frame = predictor(), grey_clip(1)
    [(_, caption)] = caption_videos(model, frame, beams=2, max_tokens=6)
    assert caption == model.caption(frame[0], beams=2, max_tokens=6)[0]


def test_clips_that_do_not_decode_are_told_and_left_out(clip, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"broken")
    told = []
    embeds = embed_videos(
        predictor(), [tmp_path / "bad.mp4", clip], 2, on_bad=lambda video, error: told.append((video, str(error)))
    )
    assert len(embeds) == 1 and told[0][0] == tmp_path / "bad.mp4" and "can't be decoded" in told[0][1]
    with pytest.raises(DataError):
        embed_videos(predictor(), tmp_path / "bad.mp4", 2)
