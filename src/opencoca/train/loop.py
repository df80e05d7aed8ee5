"""The training loop, top to bottom."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.data.loader import PairLoader
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import TrainingError
from opencoca.train.evals import Evaluation, run_evaluations
from opencoca.train.machine import keep_freed_memory, matmul_rate, peak_memory_bytes, placement
from opencoca.train.metrics import ConsoleSink, JsonlSink, Sink, TensorBoardSink
from opencoca.train.optim import learning_rate
from opencoca.train.state import TrainState, fresh_state, load_state, save_state
from opencoca.train.step import update
from opencoca.train.task import Task


def train(
    config: Config,
    run: Path,
    task: Task,
    loader: PairLoader,
    tokenizer: Tokenizer,
    evaluations: list[Evaluation] | None = None,
) -> TrainState:
    """Trains to `config.optim.steps` in the folder `run`, from its latest checkpoint if it has one.

    Ctrl-C, and every other way out but a kill, leaves a checkpoint; after a kill the last one counts. Either way
    the same call goes on and ends with the same weights, bit for bit, on the same machine.

    Raises: TrainingError for a loss that isn't finite, or a run folder in use; CheckpointError for one that
        belongs to another configuration.
    """
    device, autocast = placement(config.run)
    keep_freed_memory()
    steps = config.optim.steps
    with _only_writer(run):
        latest = checkpoint.latest_checkpoint(run)
        state = load_state(latest, config, tokenizer, device) if latest else fresh_state(config, device)
        if state.step >= steps:
            return state
        checkpoint.write_atomically(run / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        peak_flops = matmul_rate(device, torch.bfloat16 if autocast.fast_dtype == torch.bfloat16 else torch.float32)
        sinks = _open_sinks(run, config, state.step)
        saved_step = state.step
        meter = _Meter(peak_flops)
        state.model.train()
        try:
            for batch, position in loader.batches(state.position):
                meter.data_arrived()
                values = update(state, task, type(batch)(*(_to(x, device) for x in batch)), config, autocast)
                state.position = position
                state.seconds += meter.count(len(batch.keys), 3 * task.forward_flops(batch))
                done = state.step == steps
                if done or state.step % config.run.log_every_steps == 0 or state.step == 1:
                    logged = {name: float(value) for name, value in values.items()}
                    logged |= {"learning_rate": learning_rate(state.step - 1, config.optim), **meter.rates()}
                    _write(sinks, state, logged)
                if evaluations and (done or _every(config.run.eval_every_steps, state.step)):
                    _write(sinks, state, _evaluate(state, evaluations))
                    meter.restart()
                if done or _every(config.run.checkpoint_every_steps, state.step):
                    _save(run, state, config, tokenizer)
                    saved_step = state.step
                    meter.restart()
                if done:
                    return state
        except KeyboardInterrupt:
            if state.step > saved_step:
                _save(run, state, config, tokenizer)
            raise
        finally:
            for sink in sinks:
                sink.close()
    raise AssertionError("the loader ended, and it is endless")


class _Meter:
    """Samples per second, share of time spent waiting for data, and model-FLOPs utilisation since the last report."""

    def __init__(self, peak_flops: float) -> None:
        self.peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        self._began = self._mark = self._step_began = time.perf_counter()
        self._waited = self._flops = 0.0
        self._samples = 0

    def data_arrived(self) -> None:
        self._waited += time.perf_counter() - self._mark

    def count(self, samples: int, flops: int) -> float:
        """Notes a finished step and returns the seconds that it took, waiting for its data included."""
        self._samples += samples
        self._flops += flops
        seconds = time.perf_counter() - self._step_began
        self._mark = self._step_began = time.perf_counter()
        return seconds

    def rates(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._began
        rates = {
            "samples_per_s": self._samples / seconds,
            "mfu": self._flops / seconds / self.peak_flops,
            "data_wait": self._waited / seconds,
            "peak_memory_gb": peak_memory_bytes() / 1e9,
        }
        self.restart()
        return rates


@contextlib.contextmanager
def _only_writer(run: Path) -> Iterator[None]:
    """Holds the run folder's lock, so that two processes never write one run; the system frees it on a kill."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # no such lock on Windows, where training isn't supported
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(
                f"another process is training in {run}; wait for it, or name another --run folder"
            ) from None
        yield


def _open_sinks(run: Path, config: Config, resumed_step: int) -> list[Sink]:
    sinks: list[Sink] = [
        JsonlSink(run / "metrics.jsonl", resumed_step),
        ConsoleSink(config.optim.steps, resumed_step),
    ]
    if config.run.tensorboard and TensorBoardSink.available():
        sinks.append(TensorBoardSink(run / "tensorboard", resumed_step))
    return sinks


def _write(sinks: list[Sink], state: TrainState, values: dict[str, float]) -> None:
    state.metrics |= values
    for sink in sinks:
        sink.write(state.step, values)


def _evaluate(state: TrainState, evaluations: list[Evaluation]) -> dict[str, float]:
    """Measures the weights that would be shipped (the moving average, where there is one)."""
    if not state.average:
        return run_evaluations(evaluations, state.model)
    raw = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
    checkpoint.load_weights(state.model, state.average, "the moving average")
    try:
        return run_evaluations(evaluations, state.model)
    finally:
        checkpoint.load_weights(state.model, raw, "the raw weights")


def _save(run: Path, state: TrainState, config: Config, tokenizer: Tokenizer) -> None:
    folder = checkpoint.checkpoint_folder(run, state.step)
    save_state(folder, state, config, tokenizer)
    checkpoint.mark_latest(folder, config.run.keep_checkpoints)


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _to(item, device: torch.device):
    return item.to(device) if isinstance(item, torch.Tensor) else item
