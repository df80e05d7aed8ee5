"""Functions called on several gloo ranks: forked from a server that has imported everything, killed when late."""

import contextlib
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from opencoca.parallel.mesh import process_group

TIMEOUT_S = 60.0
PRELOAD = ["tests.support", "opencoca.parallel.fsdp", "opencoca.train.loop", "torch._dynamo"]


class Ended(NamedTuple):
    """How a rank ended: its exit code, what the function returned, or the error's kind and text."""

    code: int | None
    value: Any = None
    error: str = ""


def on_ranks(world: int, function: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
    """What `function(*args)` returned on each of `world` ranks, in rank order; any error fails the test."""
    ended = ends_of_ranks(world, function, *args, timeout_s=timeout_s)
    assert all(not end.error and end.code == 0 for end in ended), "\n".join(f"{end.code} {end.error}" for end in ended)
    return [end.value for end in ended]


def ends_of_ranks(
    world: int,
    function: Callable[..., Any],
    *args: Any,
    timeout_s: float = TIMEOUT_S,
    group_timeout_s: float = 20.0,
) -> list[Ended]:
    """How each rank ended; one that is still there after `timeout_s` is killed and has the code None."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    port, deadline = free_port(), time.monotonic() + timeout_s
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(
            target=_work, args=(rank, world, port, group_timeout_s, pipes[rank][1], function, args), daemon=True
        )
        for rank in range(world)
    ]
    answers: list[tuple[Any, str]] = []
    try:
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        for receiver, _ in pipes:
            answer = (None, "nothing was said")
            with contextlib.suppress(EOFError, OSError):
                if receiver.poll(max(0.0, deadline - time.monotonic())):
                    answer = receiver.recv()
            answers.append(answer)
        for process in processes:
            process.join(max(0.1, deadline - time.monotonic()))
        return [Ended(p.exitcode, *answer) for p, answer in zip(processes, answers, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _work(
    rank: int,
    world: int,
    port: int,
    group_timeout_s: float,
    sender: Any,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with process_group("cpu", group_timeout_s):
            sender.send((function(*args), ""))
    except BaseException as error:
        sender.send((None, f"{type(error).__name__}: {error}" + ("" if _is_ours(error) else traceback.format_exc())))
        os._exit(getattr(error, "exit_code", 1))


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.startswith("opencoca")
