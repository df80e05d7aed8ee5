"""Ablations as a job: the plan, runs that are done and runs that were interrupted, and what is gathered of them."""

import dataclasses
import json
from pathlib import Path

import pytest
from tests.support import drawing, png

from opencoca import recipes
from opencoca.cli.main import main
from opencoca.config import Config
from opencoca.data.shards import ShardWriter
from opencoca.errors import ConfigError, DataError
from opencoca.eval.openmoji import TONES
from opencoca.jobs.ablate import job, runs
from opencoca.jobs.ablate.gather import gather, paired, read_runs, write_results
from opencoca.jobs.ablate.job import ablate, chosen_tables, plan
from opencoca.jobs.ablate.runs import LISTS
from opencoca.jobs.ablate.settings import BASE, CONTRASTIVE, TABLES
from opencoca.train.step import NotFiniteError

COLOURS = ("red", "green", "blue", "yellow", "black")  # one per skin tone
SHAPES = ("square", "circle", "triangle", "bar")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings with OpenMoji's lists and attributes."""
    folder = tmp_path_factory.mktemp("openmoji")
    with ShardWriter(folder, samples_per_shard=100) as writer:
        for split in ("train", "val", *LISTS):
            for tone, colour in zip(TONES, COLOURS, strict=True):
                for number, shape in enumerate(SHAPES):
                    gender = ("man", "woman")[number % 2]
                    about = {
                        "concept": shape,
                        "tones": [tone],
                        "gender": gender,
                        "picture": f"{split}-{colour}-{shape}",
                    }
                    caption = f"{gender} {shape}, {tone} skin tone"
                    writer.add(split, f"{split}-{colour}-{shape}", png(drawing(colour, shape)), caption, about)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a tiny model."""

    def base(folder: str, steps: int) -> Config:
        config = recipes.get("tiny").with_values(["data.tokenizer=openmoji", "data.batch_size=8"])
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, folder=folder),
            optim=dataclasses.replace(config.optim, steps=steps, warmup_steps=0),
            run=dataclasses.replace(config.run, device="cpu", tensorboard=False, checkpoint_every_steps=5),
        )

    monkeypatch.setattr(runs, "base", base)
    monkeypatch.setattr(job, "measure_time", lambda *_, **__: None)


def result(setting: str, seed: int, operations: float = 1e9, gradients: tuple = (), **figures: float) -> dict:
    return {
        "setting": setting,
        "seed": seed,
        "identity": "",
        "steps": [10],
        "pairs": 80,
        "parameters": 5,
        "operations": operations,
        "figures": figures,
        "gradients": list(gradients),
    }


def test_the_plan_has_each_setting_once_a_seed_and_all_of_one_seed_first() -> None:
    planned = [(setting.key, seed) for setting, seed in plan(chosen_tables(()), (0, 1))]
    assert len(planned) == len(set(planned)) and planned.count(("coca", 0)) == 1
    assert [seed for _, seed in planned] == sorted(seed for _, seed in planned)
    keys = {row.setting.key for table in TABLES.values() for row in table.rows}
    assert {key for key, _ in planned} == keys
    assert [setting.key for setting, _ in plan(chosen_tables(("b",)), (7,))] == ["contrastive", "captioning", "coca"]


def test_what_there_is_not_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'stages'"):
        chosen_tables(("stage",))
    for seeds in ((), (1, 1), (-1,)):
        with pytest.raises(ConfigError, match="seeds"):
            plan(chosen_tables(()), seeds)
    with pytest.raises(DataError, match="coca quickstart"):
        ablate(tmp_path / "none", tmp_path, (), (0,), 20)
    with pytest.raises(ConfigError, match="is a file"):
        ablate(data, Path(__file__), (), (0,), 20)
    with pytest.raises(ConfigError, match="steps 3"):
        ablate(data, tmp_path, (), (0,), 3)
    assert main(["ablate", "--list", "--tables", "d", "--seeds", "0", "1"]) == 0
    assert "6 runs: 3 settings, 2 seeds" in capsys.readouterr().out
    assert main(["ablate", "--tables", "z"]) == 2
    assert "no table is called 'z'" in capsys.readouterr().err


def test_runs_that_are_done_stay_and_an_interruption_keeps_them(
    small: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, begun = runs.train, []

    def interrupted(config: Config, run: Path, *rest: object) -> object:
        begun.append(run.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return train(config, run, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(runs, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ablate(data, tmp_path, ("b",), (0,), 10, lambda _: None)
    first = tmp_path / "runs" / "contrastive" / "seed-0" / "result.json"
    kept = first.read_bytes()
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == 1
    assert "contrastive only" in (tmp_path / "report.html").read_text()
    outcome = ablate(data, tmp_path, ("b",), (0,), 10, lambda _: None)
    assert len(begun) == 4 and first.read_bytes() == kept
    rows = outcome.results["tables"]["b"]["rows"]
    assert [sorted(row["measures"]) for row in rows] == [
        ["contrastive_nats", "retrieval", "zero_shot"],
        ["captioning_nats", "cider_d"],
        ["captioning_nats", "cider_d", "contrastive_nats", "retrieval", "zero_shot"],
    ]
    assert outcome.results["gradients"] and -1 <= outcome.results["gradients"][0]["all_cosine"]["mean"] <= 1
    ablate(data, tmp_path, ("b",), (0,), 10, lambda _: None)
    assert len(begun) == 4
    with pytest.raises(ConfigError, match="other steps"):
        ablate(data, tmp_path, ("b",), (0,), 11, lambda _: None)


def test_a_run_that_fails_is_named_and_the_others_go_on(
    small: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = runs.train

    def failing(config: Config, run: Path, *rest: object) -> object:
        if run.parent.name == "labels_captioned":
            raise NotFiniteError("the loss is nan", {})
        return train(config, run, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(runs, "train", failing)
    outcome = ablate(data, tmp_path, ("a",), (0,), 10, lambda _: None)
    assert outcome.failed == [("labels_captioned, seed 0", "the loss is nan")]
    classified, captioned = outcome.results["tables"]["a"]["rows"]
    assert set(classified["measures"]) == {"probe_tone", "probe_gender", "probe_concept"} and not captioned["seeds"]
    assert "the loss is nan" in outcome.report.read_text()


def test_stages_follow_each_other_and_keep_what_is_frozen(small: None, data: Path, tmp_path: Path) -> None:
    lab = runs.Lab(data, 10)
    setting = next(row.setting for row in TABLES["stages"].rows if row.setting.key == "con_cap_frozen")
    runs.run(tmp_path, setting, 0, lab)
    folder = runs.run_folder(tmp_path, setting, 0)
    states = []
    for number, name in enumerate(("stage-1-contrastive", "stage-2-captioning")):
        before = states[-1] if states else None
        ready = lab.ready(setting, 0, number, before)
        state = runs.train(ready.config, folder / name, ready.task, ready.loader, lab.tokenizer, [], ready.prepare)
        states.append(state)
    first, second = (state.weights() for state in states)
    assert all(first[n].equal(second[n]) for n in first if n.startswith(("encoder.", "generative_pooler.")))
    assert not first["unimodal.blocks.0.mlp.up.weight"].equal(second["unimodal.blocks.0.mlp.up.weight"])


def test_what_is_gathered(tmp_path: Path) -> None:
    gradient = {"step": 5, "all_cosine": 0.5}
    made = [
        result(CONTRASTIVE.key, 0, 1e9, retrieval=0.2),
        result(CONTRASTIVE.key, 1, 1e9, retrieval=0.4),
        result(BASE.key, 0, 1.5e9, (gradient,), retrieval=0.3, cider_d=1.0),
        result(BASE.key, 1, 1.5e9, ({**gradient, "all_cosine": 0.1},), retrieval=0.6, cider_d=2.0),
        result(BASE.key, 2, 1.5e9, retrieval=0.9, cider_d=3.0),
    ]
    for one in made:
        folder = tmp_path / "runs" / one["setting"] / f"seed-{one['seed']}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(one))
    (tmp_path / "runs" / "coca" / "seed-3").mkdir()  # begun, not done
    found = gather(read_runs(tmp_path), {"contrastive/0": 2.0, "coca/0": 3.0})
    contrastive, captioning, coca = found["tables"]["b"]["rows"]
    measured = contrastive["measures"]["retrieval"]
    assert measured["mean"] == pytest.approx(0.3) and (measured["least"], measured["greatest"]) == (0.2, 0.4)
    less = measured["less_reference"]
    assert less["seeds"] == [0, 1] and less["mean"] == pytest.approx(-0.15)  # seed 2 has no partner
    assert less["interval"] == pytest.approx([-0.15 - 12.706 * 0.05, -0.15 + 12.706 * 0.05])
    assert coca["measures"]["retrieval"]["less_reference"] is None and coca["seeds"] == [0, 1, 2]
    assert coca["cost"] == {"step": 1.5, "training": 1.5} and coca["cost_by_time"] == 1.5
    assert captioning["seeds"] == [] and captioning["measures"] == {}
    assert found["gradients"][0]["all_cosine"]["mean"] == pytest.approx(0.3)
    page = write_results(tmp_path, chosen_tables(()), 10)[2].read_text()
    assert "30.0%" in page and "-15.0" in page
    (tmp_path / "runs" / "coca" / "seed-3" / "result.json").write_text("{")
    with pytest.raises(DataError, match="seed-3"):
        read_runs(tmp_path)


def test_differences_are_paired_by_seed() -> None:
    told = paired({0: 1.0, 1: 2.0, 2: 3.0, 5: 9.0}, {0: 0.5, 1: 1.5, 2: 2.5, 4: 0.0})
    assert told is not None and told["values"] == [0.5, 0.5, 0.5] and told["interval"] == [0.5, 0.5]
    alone = paired({0: 1.0}, {0: 2.0})
    assert alone is not None and alone["mean"] == -1 and alone["interval"] is None
    assert paired({0: 1.0}, {1: 1.0}) is None
