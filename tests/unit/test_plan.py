"""`coca train --plan`: what a run takes, and what is refused before it starts."""

import dataclasses
import json
import sys

import pytest
from tests.support import tiny_config, tiny_tokenizer, write_shards

from opencoca import recipes
from opencoca.cli import train as command
from opencoca.cli.main import main
from opencoca.cli.planned import duration
from opencoca.errors import ConfigError, DataError, TrainingError
from opencoca.jobs.plan import Machine, another_machine, plan
from opencoca.model.flops import forward_flops

CPU = Machine("cpu", 1, 16e9, 1e11, True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = write_shards(tmp_path_factory.mktemp("pairs"))
    tiny_tokenizer().save(folder / "tokenizer.json")
    return folder


def config_on(shards, **sections):
    sections["data"] = {"tokenizer": str(shards / "tokenizer.json"), **sections.get("data", {})}
    return tiny_config(shards, **sections)


def test_the_plan_counts_what_training_does(shards):
    config = config_on(shards, optim={"steps": 30}, run={"eval_every_steps": 10}, data={"workers": 2})
    made = plan(config, CPU._replace(devices=2), mfu=0.5)
    assert (made.data_samples, made.steps, made.samples, made.epochs) == (60, 30, 240, 4.0)
    assert (made.pairs_per_device, made.micro_batch, made.micro_batches, made.mode) == (4, 4, 1, "ddp")
    assert (made.shards, made.shards_per_reader) == (3, 0.75), "3 shards for 2 workers of 2 ranks"
    lengths = [len(tiny_tokenizer().encode(caption)) for caption in ("red square", "red square on the left")]
    assert lengths[0] < made.captions.mean <= made.captions.padded <= lengths[1] + 4
    whole = int(made.captions.mean)
    low, high = (3 * forward_flops(config.model, 4, length).total for length in (whole, whole + 1))
    assert low <= made.step_flops <= high and made.computed_flops == made.step_flops
    assert made.step_s == pytest.approx(made.step_flops / 0.5e11) and made.eta_s == pytest.approx(30 * made.step_s)
    assert made.tokens == pytest.approx(240 * (made.captions.mean - 1))


def test_what_is_computed_twice_costs_time_but_is_no_model_operation(shards):
    plain = plan(config_on(shards), CPU)
    light = plan(config_on(shards, run={"checkpoint_activations": True}), CPU)
    cut = plan(config_on(shards, run={"micro_batch": 2}), CPU)
    assert plain.step_flops == light.step_flops == cut.step_flops
    assert 1.2 < light.step_s / plain.step_s < 4 / 3, "the blocks, but not poolers and head, once more"
    assert 1.05 < cut.step_s / plain.step_s < 4 / 3 and cut.micro_batches == 4
    assert cut.memory.activations < plain.memory.activations


def test_a_tokenizer_that_is_not_there_yet_is_not_trained(shards, tmp_path):
    made = plan(tiny_config(shards), CPU, tmp_path / "run")
    assert "estimated" in made.captions.how and not (tmp_path / "run").exists()


def test_another_machine_without_data():
    config = recipes.get("paper.base").with_values(["run.micro_batch=128"])
    made = plan(config, another_machine(64, 80, 989), samples=10**9)
    assert (made.mode, made.precision, made.pairs_per_device, made.micro_batches) == ("ddp", "bf16", 1024, 8)
    assert made.epochs == pytest.approx(500_000 * 65_536 / 1e9)
    assert 20e9 < made.need_bytes < 40e9
    big = plan(
        recipes.get("paper.coca").with_values(["run.micro_batch=32"]), another_machine(64, 80, 989), samples=10**9
    )
    assert big.mode == "fsdp" and big.memory.weights < 4 * big.parameters / 60


def test_what_training_leaves_out_is_not_planned_for():
    whole = recipes.get("paper.base").with_values(["run.micro_batch=128"])
    options = ["model.text.token_drop=0.5", "model.text.parallel_share=0.75", "model.pooler.train_queries=64"]
    plans = [
        plan(config, another_machine(64, 80, 989), samples=10**9) for config in (whole, whole.with_values(options))
    ]
    assert plans[1].step_flops < 0.9 * plans[0].step_flops and plans[1].memory.peak < plans[0].memory.peak
    masks = whole.model.text.width * (whole.model.text.context_length - 1)
    assert plans[1].parameters - plans[0].parameters == masks


def refused(config, machine=CPU, error=ConfigError, **arguments):
    with pytest.raises(error) as raised:
        plan(config, machine, **arguments)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_batch_that_ranks_cannot_share_is_refused(shards):
    assert "8 can't be shared by 3 devices; set it to 6 or 9" in refused(config_on(shards), CPU._replace(devices=3))
    assert "8 can't be shared by 16 devices; set it to 16" in refused(config_on(shards), CPU._replace(devices=16))


def test_too_little_memory_is_refused_with_what_would_fit(shards):
    config = recipes.get("paper.large")
    said = refused(config, another_machine(64, 80, 989), TrainingError, samples=10**9)
    values = said.partition("--set ")[2].removesuffix(" would fit").split()
    assert "has 80.0 GB" in said and values
    made = plan(config.with_values(values), another_machine(64, 80, 989), samples=10**9)
    assert made.need_bytes <= 80e9
    first, _, number = values[0].partition("=")
    assert first == "run.micro_batch"
    doubled = [f"{first}={2 * int(number)}", *values[1:]]
    refused(config.with_values(doubled), another_machine(64, 80, 989), TrainingError, samples=10**9)
    whole = recipes.get("paper.coca")
    assert "take more devices" in refused(whole, another_machine(1, 16, 100), TrainingError, samples=10**9)


def test_too_little_data_is_refused(shards):
    said = refused(config_on(shards, data={"batch_size": 64}), error=DataError)
    assert "60 training pairs, fewer than one batch of 64" in said and "data.batch_size=60" in said


def test_no_validation_split_is_refused_if_it_would_be_measured(shards):
    fields = {"val_split": "nothing"}
    assert "data.val_split 'nothing'" in refused(
        config_on(shards, data=fields, run={"eval_every_steps": 5}), error=DataError
    )
    plan(config_on(shards, data=fields), CPU)


@pytest.mark.parametrize(
    ("changes", "package"),
    [({"run": {"wandb": True}}, "wandb"), ({"pixels": {"decoder": "simplejpeg"}}, "simplejpeg")],
)
def test_a_missing_package_is_refused(shards, monkeypatch, changes, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    assert f"needs the package {package}, which isn't installed; pip install" in refused(config_on(shards, **changes))


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("opencoca.jobs.plan.matmul_rate", lambda *_, **__: 1e11)


def test_the_command_prints_rows_and_json_and_writes_nothing(shards, tmp_path, monkeypatch, capsys, quick):
    monkeypatch.chdir(tmp_path)
    words = ["train", "tiny", "--data", str(shards), "--plan", "--set", "run.device=cpu"]
    assert main(words) == 0
    printed = dict(line.rsplit("\t", 1) for line in capsys.readouterr().out.splitlines())
    assert printed["run\tdevices"] == "1 x cpu, one device" and "measured here" in printed["time\tmatrix products"]
    assert printed["work\tsamples"] == "160, 2.67 epochs of 60"
    assert main([*words, "--json", "--nproc", "2", "--mfu", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["machine"]["devices"], found["mfu"], found["steps"]) == (2, 0.5, 20)
    assert found["memory"]["peak"] > found["memory"]["weights"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plan", "--gpus", "3"], "--gpu-memory, --gpu-tflops is missing"),
        (["--plan", "--gpus", "3", "--gpu-memory", "80", "--gpu-tflops", "900", "--samples", "99"], "shared by 3"),
        (["--plan", "--mfu", "1.5"], "--mfu 1.5 must be a share"),
        (["--plan", "--samples", "0"], "--samples 0 must be above 0"),
        (["--json"], "--json belongs to --plan"),
        (["--run", "r", "--nodes", "2"], "--nodes belongs to --launch"),
        (["--run", "r", "--nproc", "3"], "8 can't be shared by 3"),
        (["--run", "r", "--from", "x", "--init-text", "y"], "choose one way to begin"),
        ([], "no --run given"),
        (["--run", "r"], "data/tiny, where tiny looks for its pairs, does not exist; name yours by --data\n"),
        (["--plan"], "does not exist; name yours by --data; to plan without data, give how many pairs"),
        (["--run", "/proc/r"], "can't write /proc/r (No such file or directory); choose another folder"),
    ],
)
def test_what_the_command_refuses(words, said, capsys, quick):
    assert main(["train", "tiny", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_recipe_without_its_data_says_how_to_make_them(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "openmoji", "--run", "r"]) == 2
    assert "does not exist; make it: coca data get openmoji; or name yours by --data" in capsys.readouterr().err


def test_nproc_becomes_torchrun_with_the_same_words(monkeypatch):
    started = []
    monkeypatch.setattr("os.execv", lambda path, words: started.append((path, words)) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["train", "tiny", "--run", "r", "--nproc", "4", "--from", "m", "--set", "optim.steps=5", "run.seed=1"])
    ((path, words),) = started
    assert path == words[0] == sys.executable and "--nproc-per-node=4" in words
    own = words[words.index("opencoca") + 1 :]
    assert own == ["train", "tiny", "--run", "r", "--from", "m", "--set", "optim.steps=5", "run.seed=1"]


def test_every_option_that_changes_training_is_handed_on():
    """A new option of `coca train` must be handed to ranks and scripts, or be one of those that don't train."""
    others = {"nproc", "plan", "gpus", "gpu_memory", "gpu_tflops", "mfu", "samples", "json", "launch", "nodes", "out"}
    names = {each.name for each in dataclasses.fields(command.Args)}
    assert names - others == {"recipe", "run", "data", "set", "start", "init_vision", "init_text"}


def test_durations_have_two_units():
    assert [duration(s) for s in (0, 1, 61, 3600, 90000, 364988)] == [
        "0 seconds",
        "1 second",
        "1 minute 1 second",
        "1 hour 0 minutes",
        "1 day 1 hour",
        "4 days 5 hours",
    ]
