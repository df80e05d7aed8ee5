"""The quickstart on real pictures, with a few steps: it must learn, not merely finish, and leave what it promises."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from opencoca import recipes
from opencoca.cli.main import main
from opencoca.config import Config
from opencoca.data.openmoji import prepare
from opencoca.jobs.pretrain import pretrain
from opencoca.jobs.quickstart import Outcome, quickstart

STEPS = 60  # about 20 s on 2 cores


def short(config: Config) -> Config:
    """The recipe with few steps and few beams; everything else is what the demo runs."""
    optim = dataclasses.replace(config.optim, steps=STEPS, warmup_steps=5)
    run = dataclasses.replace(config.run, eval_every_steps=STEPS, checkpoint_every_steps=STEPS // 2, tensorboard=False)
    generation = dataclasses.replace(config.generation, beams=4)
    return dataclasses.replace(config, optim=optim, run=run, generation=generation)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and a trained run, as after `make demo`."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def outcome(home: Path) -> Outcome:
    return quickstart(
        home / "runs/quickstart",
        home / "data/openmoji",
        say=lambda line: None,
        config=short(recipes.get("openmoji")),
    )


def test_it_learns_far_beyond_chance(outcome: Outcome) -> None:
    """Chance is 1.25% for R@5 of 400 and 20% for the tone; 60 steps reach several times that."""
    figures = outcome.figures
    assert figures["test_pictures/chance/i2t_recall@5"] == pytest.approx(5 / 400)
    assert figures["test_pictures/i2t_recall@5"] > 8 * 5 / 400
    assert figures["test_pictures/t2i_recall@5"] > 8 * 5 / 400
    assert figures["test_pictures/zeroshot_skin_tone"] > 0.30


def test_the_controls_collapse_where_they_must(outcome: Outcome) -> None:
    """Output handed to other pictures keeps nothing, and a blank picture's caption fits none in particular."""
    figures = outcome.figures
    assert figures["test_pictures/shuffled_images/i2t_recall@1"] <= 0.02
    assert figures["test_pictures/shuffled_images/cider_d"] < 0.7 * figures["test_pictures/cider_d"]
    assert figures["test_pictures/no_image/exact_match"] <= 0.01
    assert figures["test_pictures/colour_histogram/zeroshot_skin_tone"] > 0.4  # colours do tell skin tones


def test_results_and_report_hold_the_same_figures(outcome: Outcome) -> None:
    results = json.loads(outcome.results.read_text())
    key = "test_pictures/i2t_recall@1"
    assert results[key] == pytest.approx(outcome.figures[key], abs=1e-6)
    assert results["meta"]["steps"] == STEPS and results["meta"]["train_seconds"] > 0
    assert 0 < results["meta"]["peak_memory_gb"] < 3
    page = outcome.report.read_text()
    assert f"{100 * results[key]:.1f}" in page
    assert "OpenMoji" in page and "CC BY-SA 4.0" in page


def test_a_finished_quickstart_trains_no_further(outcome: Outcome, home: Path) -> None:
    """The second call finds everything done: same weights, same figures."""
    run = home / "runs/quickstart"
    latest = (run / "checkpoints/latest").read_text().split()[0]
    weights = (run / "checkpoints" / latest / "model.safetensors").read_bytes()
    again = quickstart(run, home / "data/openmoji", say=lambda line: None, config=short(recipes.get("openmoji")))
    assert (run / "checkpoints" / latest / "model.safetensors").read_bytes() == weights
    assert again.figures["test_concepts/i2t_recall@5"] == outcome.figures["test_concepts/i2t_recall@5"]


def test_the_readme_example_runs(
    outcome: Outcome, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(home)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("['") and "tensor" in printed


def test_the_commands_use_the_newest_run(
    outcome: Outcome, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """caption, classify, search and eval find the model by themselves."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    pictures = home / "pictures"
    pictures.mkdir()
    from opencoca.data.openmoji import render

    for name, key in (("heart", "2764"), ("dog", "1F436"), ("germany", "1F1E9-1F1EA")):
        (pictures / f"{name}.png").write_bytes(render(key, 96))
    assert main(["caption", str(pictures)]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 3
    assert main(["classify", str(pictures / "germany.png"), "--labels", "flag of Germany,dog face,red heart"]) == 0
    assert main(["search", str(pictures), "flag of Germany"]) == 0
    assert "germany.png" in capsys.readouterr().out
    assert main(["eval", "--data", str(home / "data/openmoji"), "--splits", "val", "--json"]) == 0
    assert "val/i2t_recall@1" in capsys.readouterr().out


def test_preparing_again_does_nothing(outcome: Outcome, home: Path) -> None:
    assert prepare(home / "data/openmoji").written is False


def test_the_recipe_is_exact_on_two_threads(outcome: Outcome, home: Path) -> None:
    """Trained twice, and resumed half-way: the same bytes. A backward that adds in the threads' order would differ."""
    config = recipes.get("openmoji").with_values(
        ["optim.steps=4", "optim.warmup_steps=1", "run.eval_every_steps=0", "run.checkpoint_every_steps=2"]
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=str(home / "data/openmoji")))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ("once", "twice"):
            pretrain(config, home / name)
        shutil.copytree(home / "once", home / "resumed")
        shutil.rmtree(home / "resumed/checkpoints/step-00000004")
        (home / "resumed/checkpoints/latest").write_text("step-00000002\n")
        pretrain(config, home / "resumed")
    finally:
        torch.set_num_threads(threads)
    for file in ("model.safetensors", "training.safetensors"):
        once, twice, resumed = (
            (home / name / "checkpoints/step-00000004" / file).read_bytes() for name in ("once", "twice", "resumed")
        )
        assert once == twice == resumed
