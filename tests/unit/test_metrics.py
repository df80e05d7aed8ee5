"""Sinks that other packages stand behind, and what the console says of speed."""

import io
import sys
import types

import pytest
from rich.console import Console
from tests.support import tiny_config

from opencoca.errors import ConfigError
from opencoca.train.metrics import ConsoleSink, JsonlSink, TensorBoardSink, WandbSink, open_sinks


class FakeRun:
    def __init__(self, settings):
        self.settings, self.rows, self.metrics, self.finished = settings, [], [], False

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb_runs(monkeypatch):
    """A module `wandb` that keeps what it is given."""
    runs, module = [], types.ModuleType("wandb")

    def init(**settings):
        runs.append(FakeRun(settings))
        return runs[-1]

    module.init = init  # pyright: ignore
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return runs


def test_wandb_gets_every_number_offline_and_keeps_its_id(tmp_path, monkeypatch, wandb_runs):
    run = tmp_path / "mine"
    config = tiny_config(tmp_path, run={"wandb": True})
    for step in (10, 20):
        run.mkdir(exist_ok=True)
        sink = WandbSink(run, config)
        sink.write(step, {"loss": 0.5})
        sink.close()
        monkeypatch.setenv("WANDB_MODE", "online")
    first, second = wandb_runs
    assert (first.settings["mode"], second.settings["mode"]) == ("offline", "online")
    assert first.settings["id"] == second.settings["id"] and second.settings["resume"] == "allow"
    assert (first.settings["name"], first.settings["dir"]) == ("mine", str(run))
    assert first.settings["config"]["optim"]["steps"] == config.optim.steps
    assert first.rows == [{"step": 10, "loss": 0.5}] and first.finished
    assert ("*", "step") in first.metrics, "wandb's own step can't go back to a checkpoint's"


def test_wandb_that_is_missing_is_said_with_the_repair(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what makes `import wandb` fail
    with pytest.raises(ConfigError, match=r"wandb isn't installed; pip install wandb, or set run\.wandb=false"):
        open_sinks(tmp_path, tiny_config(tmp_path, run={"wandb": True}), 0)


def test_the_configuration_chooses_the_sinks(tmp_path, monkeypatch, wandb_runs):
    def kinds(**run):
        sinks = open_sinks(tmp_path, tiny_config(tmp_path, run=run), 0)
        for sink in sinks:
            sink.close()
        return {type(sink) for sink in sinks}

    assert kinds() == {JsonlSink, ConsoleSink}
    assert kinds(wandb=True) == {JsonlSink, ConsoleSink, WandbSink}
    monkeypatch.setattr(TensorBoardSink, "available", staticmethod(lambda: False))
    assert kinds(tensorboard=True) == {JsonlSink, ConsoleSink}


def test_the_console_says_tokens_memory_and_slow_data():
    out = io.StringIO()
    sink = ConsoleSink(100, 0, Console(file=out, width=200))
    values = {"loss": 1.0, "learning_rate": 1e-3, "samples_per_s": 12.3, "tokens_per_s": 1234.5, "peak_memory_gb": 3.21}
    sink.write(10, {**values, "data_wait": 0.09})
    sink.write(20, {**values, "data_wait": 0.4, "gpu_memory_gb": 70.04})
    sink.close()
    first, second = out.getvalue().splitlines()
    assert "12 samples/s  1,234 tokens/s  3.2 GB  ETA" in first
    assert "12 samples/s  1,234 tokens/s  data-wait 40%  70.0 GB  ETA" in second
