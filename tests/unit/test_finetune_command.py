"""`coca finetune` from end to end: it learns, what it leaves can be used, and bad input is one line."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.support import tiny_tokenizer
from tests.unit.test_finetune import write_table

from opencoca import checkpoint
from opencoca.cli.main import main
from opencoca.data.clip_tokenizer import ClipTokenizer
from opencoca.interop import open_clip_folder
from opencoca.loading import load, newest
from opencoca.model.init import build
from opencoca.model_card import Origin
from opencoca.recipes import open_clip as open_clip_recipes
from opencoca.train import loop


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A folder with a table, a base model and what a fine-tuning of it left."""
    folder = tmp_path_factory.mktemp("finetune")
    write_table(folder / "data")
    tiny.save_model(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(loop, "matmul_rate", lambda *_, **__: 1e12)  # it takes longer than these trainings
        assert command(folder, "--rate", "0.01", "--steps", "80", "--wise", "0", "1") == 0
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """Without the quickstart's pictures, which would be measured too, and without measuring the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "matmul_rate", lambda *_, **__: 1e12)


def command(folder: Path, *more: str, data: str = "data/captions.csv") -> int:
    run = [] if "--run" in more else ["--run", str(folder / "runs/mine")]
    return main(["finetune", str(folder / data), "--from", str(folder / "base"), *run, *more])


def test_it_learns_and_says_so(tuned):
    results = json.loads((tuned / "runs/mine/results.json").read_text())
    assert results["after"]["cider_d"] > results["before"]["cider_d"] + 1  # of 10; it reads colours and shapes
    assert results["after"]["i2t_recall@5"] > results["before"]["i2t_recall@5"]
    assert results["alpha"] == 1 and set(results["by_alpha"]) == {"0", "1"}
    assert results["by_alpha"]["0"] == results["before"]
    assert (results["train_pictures"], results["val_pictures"]) == (65, 7)
    page = (tuned / "runs/mine/report.html").read_text()
    assert "base, fine-tuned on captions.csv" in page and "caption before" in page and "picture to caption, R@1" in page


def test_the_run_folder_is_a_model_with_a_card_and_an_origin(tuned, capsys):
    run = tuned / "runs/mine"
    saved = checkpoint.load(run / "model")
    assert saved.origin is not None and saved.origin.source == "fine-tuned from base on captions.csv with OpenCoCa"
    card = (run / "model/README.md").read_text()
    assert (
        "## Fine-tuning" in card and "| caption CIDEr-D |" in card and card.index("## Fine") < card.index("## Limits")
    )
    latest = checkpoint.load(run).weights
    different = {name for name, tensor in latest.items() if not torch.equal(saved.weights[name], tensor)}
    assert different <= {"log_scale"}  # alpha is 1, and the temperature is fitted in the end
    assert main(["caption", str(next((tuned / "data").glob("*.png"))), "--model", str(run)]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert newest(tuned / "runs") == run or os.environ.get("OPENCOCA_HOME")


def test_the_same_command_again_trains_no_more(tuned, capsys):
    before = (tuned / "runs/mine/metrics.jsonl").read_text()
    assert command(tuned, "--rate", "0.01", "--steps", "80", "--wise", "0.5") == 0
    assert (tuned / "runs/mine/metrics.jsonl").read_text() == before
    assert "model (0.5 of the tuned weights)" in capsys.readouterr().out
    original = dict(build(tiny.CONFIG.model).named_parameters())
    tuned_weights = checkpoint.load(checkpoint.latest_checkpoint(tuned / "runs/mine") or tuned).weights
    half = load(tuned / "runs/mine").model.state_dict()
    name = "unimodal.cls_D"
    assert torch.allclose(half[name], (original[name] + tuned_weights[name]) / 2)
    assert command(tuned, "--rate", "0.01", "--steps", "80", "--wise", "1") == 0  # as the fixture left it


def test_low_rank_updates_are_merged_into_a_plain_model(tuned, tmp_path):
    assert command(tuned, "--lora", "2", "--steps", "6", "--run", str(tmp_path / "run"), "--wise", "1") == 0
    saved = checkpoint.load(tmp_path / "run/model")
    original = dict(build(tiny.CONFIG.model).named_parameters())
    assert set(saved.weights) == set(original)
    changed = {name for name, tensor in saved.weights.items() if not torch.equal(tensor, original[name])}
    assert changed - {"log_scale"}
    assert all("attention." in name or ".mlp." in name for name in changed - {"log_scale"})


def test_a_base_of_parallel_prediction_is_tuned_without_it(tuned, tmp_path):
    """Or captions of a few pictures would be learnt blindly, all words at once."""
    model = dataclasses.replace(
        tiny.CONFIG.model, text=dataclasses.replace(tiny.CONFIG.model.text, parallel_share=0.75, token_drop=0.5)
    )
    weights = {name: p.detach() for name, p in build(model).named_parameters()}
    assert "multimodal.mask_TD" in weights
    checkpoint.save(tmp_path / "base", dataclasses.replace(tiny.CONFIG, model=model), tiny.tokenizer(), weights)
    base, run = str(tmp_path / "base"), str(tmp_path / "run")
    assert main(["finetune", str(tuned / "data/captions.csv"), "--from", base, "--run", run, "--steps", "4"]) == 0
    saved = checkpoint.load(tmp_path / "run/model")
    assert saved.config.model.text == tiny.CONFIG.model.text
    assert set(saved.weights) == set(weights) - {"multimodal.mask_TD"}


def test_a_published_model_with_its_own_tokenizer_goes_in_and_out(tuned, tmp_path):
    tokenizer = ClipTokenizer.from_merges(["r e", "re d</w>", "! !"])
    model = open_clip_recipes.layout(
        image_size_px=16, patch_size_px=4, vision_width=64, vision_depth=1, vision_heads=1, vision_mlp_width=64,
        text_width=64, text_depth=1, multimodal_depth=1, text_heads=1, text_mlp_width=64, num_queries=5,
        pooler_heads=1, vocab_size=tokenizer.vocab_size, context_length=40,
    )  # fmt: skip
    config = open_clip_recipes.settings("small", model, tiny.CONFIG.pixels)
    base = tmp_path / "published"
    open_clip_folder.write_folder(base, build(model).requires_grad_(False), config, tokenizer, Origin("somewhere"))
    words = ["finetune", str(tuned / "data/captions.csv"), "--from", str(base), "--run", str(tmp_path / "run")]
    assert main([*words, "--lora", "2", "--steps", "6", "--wise", "0.5"]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "open_clip"]) == 0
    ours, theirs = load(tmp_path / "run").model.state_dict(), load(tmp_path / "out").model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_scratch_takes_the_shape_only_and_must_be_spelled_out(tuned, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tuned)  # the newest model there is the tiny one
    monkeypatch.setenv("OPENCOCA_HOME", str(tmp_path / "home"))
    words = ["finetune", "data/captions.csv", "--from", "scratch", "--run", str(tmp_path / "run"), "--steps", "3"]
    assert main(words) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["base"] == "scratch" and results["peak_lr"] == 1e-3 and results["alpha"] == 1
    again = [word for word in words if word not in ("--from", "scratch")]
    assert main(again) == 0  # it was spelled out when the run began
    assert main([*words, "--lora", "4"]) == 2
    assert "--from scratch has no weights to keep" in capsys.readouterr().err


def test_another_base_in_the_same_run_is_refused(tuned, capsys):
    tiny.save_model(tuned / "other", seed=5)
    words = ["finetune", str(tuned / "data/captions.csv"), "--from", str(tuned / "other")]
    assert main([*words, "--run", str(tuned / "runs/mine")]) == 2
    assert "was fine-tuned from base" in capsys.readouterr().err


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    table = write_table(folder / "data")
    rows = table.read_text().splitlines()
    (folder / "data/few.csv").write_text("\n".join(rows[:4]))
    (folder / "data/same.csv").write_text("\n".join([rows[0], *(f"{row.split(',')[0]},a thing" for row in rows[1:])]))
    (folder / "data/headless.csv").write_text("\n".join(["path,size", *rows[1:]]))
    return {
        "no captions": (["few.csv", "--from", "base"], "there are 3 pictures; give 20 or more"),
        "same": (["same.csv", "--from", "base"], "all 72 captions are 'a thing'"),
        "no column": (["headless.csv", "--from", "base"], "captions"),
        "no model": (["captions.csv", "--from", "nothing"], "nothing doesn't exist"),
        "no data": (["missing.csv", "--from", "base"], "missing.csv"),
        "wise": (["captions.csv", "--from", "base", "--wise", "2"], "--wise 2 must be from 0"),
        "val": (["captions.csv", "--from", "base", "--val", "1.5"], "--val 1.5 is no share"),
        "set": (["captions.csv", "--from", "base", "--set", "optim.speed=1"], "optim.speed"),
    }


def test_bad_input_is_one_line_and_leaves_no_run(tmp_path, capsys):
    tiny.save_model(tmp_path / "base")
    for name, (words, wanted) in bad_inputs(tmp_path).items():
        words = [str(tmp_path / "data" / words[0]), *(str(tmp_path / "base") if w == "base" else w for w in words[1:])]
        assert main(["finetune", *words, "--run", str(tmp_path / "run")]) == 2, name
        error = capsys.readouterr().err.strip()
        assert "\n" not in error and error.startswith("coca: error: ") and wanted in error, (name, error)
        assert not (tmp_path / "run").exists(), name


def test_the_tokenizer_of_the_base_is_kept(tuned):
    assert load(tuned / "runs/mine").tokenizer.fingerprint == tiny_tokenizer().fingerprint
