"""What `coca doctor` looks at: packages, models, the device, the disk, and how fast they are.

Everything here must work on an installation that is half broken: torch is imported late and with care.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODULES = ("torch", "numpy", "PIL", "safetensors", "tokenizers")  # imported to see that they load, not only exist
COPIED_BYTES = 2**28  # far more than any cache holds
PICTURE_PX = (1600, 1200)  # what a phone's picture is once it has been sent to somebody
DECODE_S = 0.7


def sections(speed: bool = True) -> Iterator[tuple[str, Any]]:
    """The report, section by section: a name and its facts; the last is the list of "problems", one line each."""
    problems: list[str] = []
    yield "versions", _versions(problems)
    yield "extras", _extras()
    sound = not problems
    yield "models", _guarded(_models, problems) if sound else {}
    yield "device", _guarded(_device, problems) if sound else {}
    yield "disk", _disk()
    if speed and sound:
        yield "speed", _guarded(_speed, problems)
    yield "problems", problems


def _versions(problems: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    for name, floor, extra in requirements():
        if extra is None:
            found[name] = version = _installed(name)
            if version is None:
                problems.append(f"{name} is not installed; run: pip install -U opencoca")
            elif _numbers(version) < _numbers(floor):
                problems.append(f"{name} {version} is older than {floor}; run: pip install -U '{name}>={floor}'")
    for module in MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken installation raises whatever it likes
            problems.append(f"{module} can't be imported ({error}); install it again")
    return found


def _extras() -> dict[str, Any]:
    """Each extra: "installed", or what it lacks and the command that installs it."""
    lacking: dict[str, list[str]] = {}
    for name, floor, extra in requirements():
        if extra not in (None, "dev"):
            version = _installed(name)
            missing = lacking.setdefault(extra, [])
            if version is None or _numbers(version) < _numbers(floor):
                missing.append(name)
    return {
        extra: f"lacks {', '.join(missing)}; pip install 'opencoca[{extra}]'" if missing else "installed"
        for extra, missing in lacking.items()
    }


def requirements() -> list[tuple[str, str, str | None]]:
    """What the package needs: (name, lowest version, the extra it belongs to or None)."""
    try:
        lines = importlib.metadata.requires("opencoca") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return []
    found = []
    for line in lines:
        wanted, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", wanted)
        floor, extra = re.search(r">=\s*([\w.]+)", wanted), re.search(r"extra\s*==\s*['\"]([\w-]+)", marker)
        if name:
            found.append((name[0], floor[1] if floor else "0", extra[1] if extra else None))
    return found


def _models() -> dict[str, Any]:
    from opencoca.errors import CheckpointError
    from opencoca.interop import pulled
    from opencoca.loading import RUNS, newest

    runs = sorted(pointer.parent.parent for pointer in RUNS.glob("*/checkpoints/latest"))
    found: dict[str, Any] = {str(folder): "a run" for folder in runs}
    for entry in pulled.entries():
        kind = "shipped" if entry.shipped else "pulled"
        found[entry.name] = (
            f"can't be used: {entry.problem}" if entry.problem else f"{kind}, {entry.bytes / 1e6:.0f} MB"
        )
    try:
        return {"taken without --model": str(newest()), **found}
    except CheckpointError as error:
        return {"taken without --model": f"none: {error}", **found}


def _device() -> dict[str, Any]:
    import torch

    from opencoca.model import attention_native, decode_native

    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "captions computed by": "torch" if decode_native.library() is None else "C",
        "attention in training by": "torch" if attention_native.library() is None else "C, where sequences are short",
        "memory GB": _memory_gb(),
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        found["gpu"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {bf16} bf16"
        found["gpus"] = torch.cuda.device_count()
    elif torch.backends.mps.is_available():
        found["gpu"] = "Apple's, through MPS, which OpenCoCa doesn't use yet"
    return found


def _disk() -> dict[str, Any]:
    places = {"free here GB": Path.cwd()}
    with contextlib.suppress(Exception):  # without torch, or for a user without a home folder
        from opencoca.interop import pulled

        places["free for models GB"] = pulled.home()
    found = {}
    for name, place in places.items():
        while not place.exists():
            place = place.parent
        found[name] = round(shutil.disk_usage(place).free / 1e9, 1)
    return found


def _speed() -> dict[str, Any]:
    import torch

    from opencoca.train.machine import matmul_rate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {"matrix product GFLOP/s": matmul_rate(torch.device("cpu"), repeats=3) / 1e9}
    if device.type == "cuda":
        found["gpu matrix product GFLOP/s"] = matmul_rate(device, torch.bfloat16, size=8192) / 1e9
    found["memory GB/s"] = _copy_rate() / 1e9
    found["pictures read /s"] = _decode_rate()
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def _copy_rate() -> float:
    """Bytes read and written per second, the best of three copies."""
    import torch

    source, target = (torch.zeros(COPIED_BYTES // 4) for _ in range(2))
    return 2 * COPIED_BYTES / min(_seconds(lambda: target.copy_(source)) for _ in range(3))


def _decode_rate() -> float:
    """Pictures per second from a JPEG file's bytes to the encoder's square, in one thread."""
    import numpy as np
    from PIL import Image

    from opencoca.config import PixelConfig
    from opencoca.data.pixels import open_picture, to_square

    ramp = np.linspace(0, 255, PICTURE_PX[0] * PICTURE_PX[1] * 3).reshape(PICTURE_PX[1], PICTURE_PX[0], 3)
    noise = np.random.default_rng(0).integers(-20, 20, ramp.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    count, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < DECODE_S:
        to_square(open_picture(file.getvalue()), 224, PixelConfig())
        count += 1
    return count / seconds


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _guarded(look: Callable[[], dict[str, Any]], problems: list[str]) -> dict[str, Any]:
    """What `look` finds; where it fails, that is a problem to report and not the end of the report."""
    try:
        return look()
    except Exception as error:
        problems.append(f"{look.__name__.strip('_')} can't be looked at ({type(error).__name__}: {error})")
        return {}


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The version's leading numbers, to compare by."""
    return tuple(int(piece) for piece in re.findall(r"\d+", re.split(r"[+a-z]", version)[0]))
