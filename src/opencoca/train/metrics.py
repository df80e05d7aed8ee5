"""Where numbers go while a model trains: JSONL, TensorBoard, Weights & Biases, and a person's terminal."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from opencoca.config import Config
from opencoca.errors import ConfigError
from opencoca.files import write_atomically

SLOW_DATA = 0.1  # from this share of time spent waiting for data on, the console says so


class Sink(Protocol):
    """Takes named numbers of a step."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """One JSON object a line in `metrics.jsonl`; on resume, lines from after the checkpoint are cut off."""

    def __init__(self, path: Path, resumed_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_jsonl(path) if row["step"] <= resumed_step] if resumed_step else []
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """TensorBoard scalars; `available` says whether the `train` extra is installed."""

    def __init__(self, folder: Path, resumed_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else None)

    @staticmethod
    def available() -> bool:
        """True where tensorboard can be imported."""
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            return False
        return True

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases' logging, through whatever package is called `wandb`.

    Runs are kept offline in RUN/wandb, for `wandb sync`, unless the environment says otherwise (WANDB_MODE=online). A
    resumed run keeps its id. Steps are a metric of their own, since wandb's count can't go back to a checkpoint's.

    Raises: ConfigError where the package isn't installed.
    """

    def __init__(self, run: Path, config: Config) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                "run.wandb is set, but wandb isn't installed; pip install wandb, or set run.wandb=false"
            ) from None
        kept = run / "wandb_id"
        if not kept.is_file():
            write_atomically(kept, uuid.uuid4().hex + "\n")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "opencoca"),
            name=run.resolve().name,
            id=kept.read_text().strip(),
            resume="allow",
            dir=str(run),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=config.to_dict(),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class ConsoleSink:
    """A live line on a terminal, a plain line per log step elsewhere."""

    _LOSSES = ("loss", "contrastive", "captioning")

    def __init__(self, steps: int, start: int = 0, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._steps, self._start, self._began = steps, start, time.monotonic()
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=steps, completed=start, line="")
            self._progress.start()

    def write(self, step: int, values: dict[str, float]) -> None:
        if "loss" not in values:
            shown = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
            self._console.print(f"step {step}  {shown}", highlight=False, soft_wrap=True)
            return
        rate = (step - self._start) / max(time.monotonic() - self._began, 1e-9)
        losses = "  ".join(f"{name} {values[name]:.3f}" for name in self._LOSSES if name in values)
        line = (
            f"{losses}  lr {values['learning_rate']:.1e}  {_speed(values)}  "
            f"ETA {_clock((self._steps - step) / max(rate, 1e-9))}"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=step, line=line)
        else:
            self._console.print(f"step {step}/{self._steps}  {line}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def open_sinks(run: Path, config: Config, resumed_step: int) -> list[Sink]:
    """The sinks that the configuration asks for, to be opened by one process per run.

    Raises: ConfigError where wandb is asked for and isn't installed.
    """
    sinks: list[Sink] = [WandbSink(run, config)] if config.run.wandb else []
    sinks.append(JsonlSink(run / "metrics.jsonl", resumed_step))
    sinks.append(ConsoleSink(config.optim.steps, resumed_step))
    if config.run.tensorboard and TensorBoardSink.available():
        sinks.append(TensorBoardSink(run / "tensorboard", resumed_step))
    return sinks


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _speed(values: dict[str, float]) -> str:
    """Samples and tokens per second, memory, and waiting for data where that is much."""
    parts = [f"{values['samples_per_s']:.0f} samples/s"]
    if values.get("tokens_per_s"):
        parts.append(f"{values['tokens_per_s']:,.0f} tokens/s")
    if values.get("data_wait", 0.0) >= SLOW_DATA:
        parts.append(f"data-wait {values['data_wait']:.0%}")
    memory_gb = values.get("gpu_memory_gb", values.get("peak_memory_gb"))
    if memory_gb is not None:
        parts.append(f"{memory_gb:.1f} GB")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
