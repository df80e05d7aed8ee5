"""Several processes that serve at one socket. Each maps the model's file, so that its weights are in memory once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from multiprocessing.process import BaseProcess

import torch

from opencoca.errors import TrainingError
from opencoca.serve import metrics, run
from opencoca.serve.settings import Settings

TICK_S = 0.2
SHORT_S = 5.0  # a worker that lives less long than this has failed to start


def supervise(settings: Settings, listening: socket.socket) -> None:
    """Keeps `settings.workers` processes running until SIGINT or SIGTERM, then lets them drain.

    Raises: OpenCoCaError for what can't be loaded; TrainingError where workers can't start.
    """
    service = run.make_service(settings)  # what is wrong shows here, once
    run.announce(settings, listening, service)
    service.close()
    del service
    folder = tempfile.mkdtemp(prefix="coca-metrics-")
    os.environ[metrics.FOLDER] = folder
    ended = threading.Event()
    before = {one: signal.signal(one, lambda *_: ended.set()) for one in (signal.SIGINT, signal.SIGTERM)}
    running: list[tuple[BaseProcess, float]] = []
    try:
        while not ended.is_set():
            running = [one for one in running if _lives(*one)]
            while len(running) < settings.workers:
                running.append((_start(settings, listening), time.monotonic()))
            ended.wait(TICK_S)
    finally:
        listening.close()
        for process, _ in running:
            process.terminate()
        for process, _ in running:
            process.join(settings.limits.drain_s + 5)
            if process.is_alive():
                process.kill()
        for one, handler in before.items():
            signal.signal(one, handler)
        shutil.rmtree(folder, ignore_errors=True)


def _lives(process: BaseProcess, since: float) -> bool:
    if process.is_alive():
        return True
    if time.monotonic() - since < SHORT_S:
        raise TrainingError(f"a worker ended with code {process.exitcode} as it started; see the log above")
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(process.pid)
    return False


def _start(settings: Settings, listening: socket.socket) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(settings, listening, os.getpid()))
    process.start()
    return process


def _work(settings: Settings, listening: socket.socket, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the server has its own: Ctrl-C reaches the whole group
    torch.set_num_threads(max(1, torch.get_num_threads() // settings.workers))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.closing(listening):
        run.run_here(run.make_service(settings), listening)


def _end_with(parent: int) -> None:
    """A worker whose supervisor was killed drains and ends, too."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
