"""The training loop, top to bottom."""

from __future__ import annotations

import contextlib
import copy
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.data.loader import PairLoader
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, DataError, TrainingError
from opencoca.train.evals import Evaluation, run_evaluations
from opencoca.train.machine import keep_freed_memory, matmul_rate, peak_memory_bytes, placement
from opencoca.train.metrics import ConsoleSink, JsonlSink, Sink, TensorBoardSink
from opencoca.train.optim import schedule
from opencoca.train.state import Prepare, TrainState, fresh_state, load_state, save_state
from opencoca.train.step import update
from opencoca.train.task import Task
from opencoca.types import Batch


def train(
    config: Config,
    run: Path,
    task: Task,
    loader: PairLoader,
    tokenizer: Tokenizer,
    evaluations: list[Evaluation] | None = None,
    prepare: Prepare | None = None,
) -> TrainState:
    """Trains to `config.optim.steps` in the folder `run`, from its latest checkpoint if it has one.

    `prepare` changes the new model before its first step: loads weights, freezes or adds parts.

    Ctrl-C, unreadable data and a loss that isn't finite leave a checkpoint; after a kill the last one counts. Either
    way the same call goes on and ends with the same weights, bit for bit, on the same machine.

    Raises: TrainingError for a loss that isn't finite, or a run folder in use; CheckpointError for one that
        belongs to another configuration or other data.
    """
    device, autocast = placement(config.run)
    keep_freed_memory()
    steps = config.optim.steps
    with _only_writer(run):
        latest = checkpoint.latest_checkpoint(run)
        state = (
            load_state(latest, config, tokenizer, device, prepare) if latest else fresh_state(config, device, prepare)
        )
        if latest and state.data != loader.fingerprint:
            raise CheckpointError(
                f"{latest} was trained on other pairs than those of data.folder {config.data.folder}; "
                "prepare the same data again, or train into another --run folder"
            )
        state.data = loader.fingerprint
        if state.step >= steps and not state.owes_evaluation:
            return state
        checkpoint.write_atomically(run / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        peak_flops = matmul_rate(device, _fast_dtype(device, autocast))
        sinks = _open_sinks(run, config, state.step)
        saved_step = state.step
        meter = _Meter(peak_flops)
        state.model.train()
        try:
            if state.owes_evaluation:
                _measure(sinks, state, evaluations or [])
                _save(run, state, config, tokenizer)
            if state.step >= steps:
                return state
            for batch, position in loader.batches(state.position):
                meter.data_arrived()
                with _undivided():
                    values = update(state, task, _on(device, batch), config, autocast)
                    state.position = position
                state.seconds += meter.count(len(batch.keys), 3 * task.forward_flops(batch))
                done = state.step == steps
                if done or state.step % config.run.log_every_steps == 0 or state.step == 1:
                    logged = {name: float(value) for name, value in values.items()}
                    logged |= {
                        "learning_rate": config.optim.peak_lr * schedule(state.step - 1, config.optim),
                        **meter.rates(),
                    }
                    _write(sinks, state, logged)
                if evaluations and (done or _every(config.run.eval_every_steps, state.step)):
                    _measure(sinks, state, evaluations)
                    meter.restart()
                if done or _every(config.run.checkpoint_every_steps, state.step):
                    _save(run, state, config, tokenizer)
                    saved_step = state.step
                    meter.restart()
                if done:
                    return state
        except (KeyboardInterrupt, DataError, TrainingError):
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
            "matmul_gflops": self.peak_flops / 1e9,
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


def _measure(sinks: list[Sink], state: TrainState, evaluations: list[Evaluation]) -> None:
    """Measures the weights that would be shipped (the moving average, where there is one).

    They stand in a copy of the model, so that an interruption leaves the raw weights as they are; the state says
    meanwhile that it owes the evaluation, so that a resumed run makes up for it.
    """
    state.owes_evaluation = True
    model = state.model
    if state.average:
        model = copy.deepcopy(state.model)
        checkpoint.load_weights(model, state.average, "the moving average")
    _write(sinks, state, run_evaluations(evaluations, model))
    state.owes_evaluation = False


def _save(run: Path, state: TrainState, config: Config, tokenizer: Tokenizer) -> None:
    folder = checkpoint.checkpoint_folder(run, state.step)
    save_state(folder, state, config, tokenizer)
    checkpoint.mark_latest(folder, config.run.keep_checkpoints)


@contextlib.contextmanager
def _undivided() -> Iterator[None]:
    """Holds Ctrl-C back until the end of the block, which changes what belongs together: weights, step and position."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    held_back = []
    signal.signal(signal.SIGINT, lambda *call: held_back.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if held_back:
            usual(*held_back[0])


def _fast_dtype(device: torch.device, autocast: torch.autocast) -> torch.dtype:
    with autocast:
        return torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _on(device: torch.device, batch: Batch) -> Batch:
    moved = {name: x.to(device) for name, x in batch._asdict().items() if isinstance(x, torch.Tensor)}
    return batch._replace(**moved)
