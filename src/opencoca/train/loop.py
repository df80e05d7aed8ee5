"""The training loop, top to bottom; the same on one process and on many ranks."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.data.loader import PairLoader
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, DataError, TrainingError
from opencoca.parallel.mesh import Ranks, current, lost_peers_named
from opencoca.train.engine import Engine
from opencoca.train.evals import Evaluation, evaluate
from opencoca.train.feed import Skips, batches_for_all
from opencoca.train.machine import keep_freed_memory, matmul_rate, placement, short_turns
from opencoca.train.metrics import Sink, open_sinks
from opencoca.train.optim import schedule
from opencoca.train.run_folder import latest_of_all, note_bad_batch, only_writer
from opencoca.train.saver import Saver
from opencoca.train.signals import Signals
from opencoca.train.state import Prepare, TrainState, fresh_state, load_state
from opencoca.train.step import LEFT_OUT, NotFiniteError, update
from opencoca.train.task import Task
from opencoca.train.watch import Meter, SpikeGuard, StallWatchdog
from opencoca.types import Batch

MOST_SPIKES_IN_A_ROW = 10


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

    `prepare` changes the new model before its first step: loads weights, freezes or adds parts. In a process group
    (`parallel.mesh.process_group`) every rank calls this alike, with a loader of its own share.

    Ctrl-C, SIGTERM, unreadable data and a loss that isn't finite leave a checkpoint; after a kill the last one counts.
    Either way the same call goes on and ends with the same weights, bit for bit, on the same machines.

    Raises: TrainingError for a loss that isn't finite, a lost rank, or a run folder in use, StoppedError after SIGTERM;
        CheckpointError for a checkpoint of another configuration or other data. All ranks raise alike.
    """
    ranks, steps, every = current(), config.optim.steps, config.run
    device, autocast = placement(config.run)
    fast_dtype = _fast_dtype(device, autocast)
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        stack.callback(loader.close)
        stack.enter_context(short_turns())
        stack.enter_context(lost_peers_named(ranks))
        stack.enter_context(only_writer(run, ranks))
        latest = latest_of_all(run, ranks)
        engine = Engine(config.run, ranks, bf16=fast_dtype == torch.bfloat16)
        if latest:
            state = load_state(latest, config, tokenizer, device, prepare, engine.arrange)
        else:
            state = fresh_state(config, device, prepare, engine.arrange)
        if latest and state.data != loader.fingerprint:
            raise CheckpointError(
                f"{latest} was trained on other pairs than those of data.folder {config.data.folder}; "
                "prepare the same data again, or train into another --run folder"
            )
        state.data = loader.fingerprint
        if state.step >= steps and not state.owes_evaluation:
            return state
        engine.begin(state.model)
        state.model.train()
        saved_step = state.step

        if ranks.first:
            checkpoint.write_atomically(run / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        peak = functools.partial(matmul_rate, device, fast_dtype, repeats=1)
        meter = Meter(peak if ranks.first else lambda: math.inf, device)
        skips = Skips(loader, run, ranks, config.data.max_skip_fraction)
        guard = None
        if every.max_loss_spike:
            guard = SpikeGuard(every.max_loss_spike, most_in_a_row=MOST_SPIKES_IN_A_ROW)
            guard.restore(state.spikes)
        watchdog = StallWatchdog(every.stall_timeout_s, ranks.rank, loader.describe, run)
        sinks = stack.enter_context(_sinks(run, config, state.step, ranks))
        signals = stack.enter_context(Signals(alone=ranks.world == 1))
        stack.enter_context(watchdog)
        saver = stack.enter_context(Saver(run, config, tokenizer))

        def measure() -> None:
            with watchdog.paused("an evaluation"):
                state.owes_evaluation = True
                _write(sinks, state, evaluate(evaluations or [], state, config, ranks, prepare, engine.is_cut_up))
                state.owes_evaluation = False
            meter.restart()

        def save() -> None:
            nonlocal saved_step
            with watchdog.paused("a checkpoint"):
                state.spikes = guard.state() if guard is not None else {}
                saver.save(state)
            saved_step = state.step
            meter.restart()

        stack.enter_context(_on_the_way_out(lambda: save() if state.step > saved_step else None))
        if state.owes_evaluation:
            measure()
            save()
        if state.step >= steps:
            return state
        watchdog.alive(state.step)
        for batch, position in batches_for_all(loader, state.position, ranks):
            watchdog.alive(state.step, batch.keys)
            meter.data_arrived()
            told = functools.partial(_told, batch, signals)
            with signals.undivided(), _bad_batches_noted(run, ranks, state, batch):
                values = update(state, task, batch, config, autocast, engine, guard, told)
                state.position = position
            sums = {name: float(values.pop(name)) for name in told()}
            flops = 3 * task.forward_flops(batch)
            state.seconds += meter.count(int(sums["samples"]), flops, int(sums["tokens"]))
            left_out = values.pop(LEFT_OUT, None) is not None
            if left_out:
                note_bad_batch(run, ranks, batch.keys, state.step, "spike", values)
            done = state.step == steps
            if done or left_out or state.step % every.log_every_steps == 0 or state.step == 1:
                logged = {name: float(value) for name, value in values.items()}
                rate = config.optim.peak_lr * schedule(state.step - 1, config.optim)
                _write(sinks, state, {**logged, "learning_rate": rate, **meter.rates(), **skips.check()})
                meter.look_again()
            signals.agreed(sums)
            saver.check()
            if evaluations and (done or _is_due(every.eval_every_steps, state.step)):
                measure()
            if done or _is_due(every.checkpoint_every_steps, state.step):
                save()
            if done:
                return state
            watchdog.alive(state.step)
    raise AssertionError("the loader ended, and it is endless")


@contextlib.contextmanager
def _on_the_way_out(save: Callable[[], None]) -> Iterator[None]:
    """Saves where the run ends by an error that leaves the state whole; a crash and a lost rank may not."""
    try:
        yield
    except (KeyboardInterrupt, DataError, TrainingError):
        save()
        raise


@contextlib.contextmanager
def _bad_batches_noted(run: Path, ranks: Ranks, state: TrainState, batch: Batch) -> Iterator[None]:
    try:
        yield
    except NotFiniteError as error:
        note_bad_batch(run, ranks, batch.keys, state.step, "not finite", error.values)
        raise


@contextlib.contextmanager
def _sinks(run: Path, config: Config, step: int, ranks: Ranks) -> Iterator[list[Sink]]:
    """Where the first rank writes rows; the others write none."""
    sinks = open_sinks(run, config, step) if ranks.first else []
    try:
        yield sinks
    finally:
        for sink in sinks:
            sink.close()


def _write(sinks: list[Sink], state: TrainState, values: dict[str, float]) -> None:
    state.metrics |= values
    for sink in sinks:
        sink.write(state.step, values)


def _told(batch: Batch, signals: Signals) -> dict[str, float]:
    """What the ranks tell each other with their losses."""
    return {"samples": len(batch.keys), "tokens": int(batch.valid.sum()), **signals.received()}


def _fast_dtype(device: torch.device, autocast: torch.autocast) -> torch.dtype:
    with autocast:
        return torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32


def _is_due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
