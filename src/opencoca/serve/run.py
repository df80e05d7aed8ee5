"""A server from its start to its end: one process, or several that share a memory-mapped model and a socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import functools
import gc
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import uvicorn

from opencoca.errors import ConfigError
from opencoca.infer.predictor import Predictor
from opencoca.loading import load, newest
from opencoca.serve import logs, workers
from opencoca.serve.app import make_app
from opencoca.serve.connection import GuardedProtocol, sweep
from opencoca.serve.service import Searchable, Service
from opencoca.serve.settings import Settings

GRACE_S = 0.3  # between the end of listening and that of idle connections: for requests that are on their way
PASSES = 10  # of the event loop, of which a connection needs five from its arrival to its request
SPARE_FILES = 128  # beside connections, of which there may be twice as many for a moment
BACKLOG = 1024


class Server(uvicorn.Server):
    """uvicorn's server, which looks after slow connections, and drains without losing what it has let in."""

    def __init__(self, config: uvicorn.Config, service: Service | None = None) -> None:
        super().__init__(config)
        self.service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts; where it was told to end by then, uvicorn closes at once, and we answer first what has come."""
        early, self.should_exit = self.should_exit, False
        await super().startup(sockets)
        if early or self.should_exit:
            self.should_exit = False
            asyncio.get_running_loop().call_later(GRACE_S, self.handle_exit, signal.SIGTERM, None)

    async def on_tick(self, counter: int) -> bool:
        """Ends what is overdue, twice a second."""
        if counter % 5 == 0:
            sweep(self.server_state)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, answers what has come, and ends."""
        await self._let_in()
        for server in self.servers:
            server.close()
        if self.service is not None:
            self.service.draining = True
        sweeping = asyncio.create_task(self._sweep())
        await asyncio.sleep(GRACE_S)
        for _ in range(PASSES):  # a busy machine may have slept through that
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)
        sweeping.cancel()

    async def _let_in(self) -> None:
        """Accepts the connections that wait already, which closing the socket would cut, as those half accepted."""
        waiting = [one for server in self.servers for one in server.sockets]
        clock = asyncio.get_running_loop().time
        until = clock() + GRACE_S
        while clock() < until and (select.select(waiting, [], [], 0)[0] or _accepting()):
            await asyncio.sleep(0)

    async def _sweep(self) -> None:
        while True:
            sweep(self.server_state)
            await asyncio.sleep(0.5)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal: the first drains, the second ends at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _accepting() -> bool:
    """Whether asyncio has taken a connection for which it has no transport yet; a closed server gives it none."""
    tasks = asyncio.all_tasks()
    return any(getattr(task.get_coro(), "__name__", "") == "_accept_connection2" for task in tasks)


def make_service(settings: Settings, predictor: Predictor | None = None, index: Searchable | None = None) -> Service:
    """The parts of a server, warmed up.

    Raises: CheckpointError, ConfigError, DataError for what can't be loaded.
    """
    predictor = predictor or load(settings.model)
    if index is None and settings.index is not None:
        from opencoca.search.index import Index

        index = Index.open(settings.index, predictor, model_name=settings.model or "NAME")
    service = Service(predictor, settings, model_name(settings.model), index)
    size_px = predictor.config.model.vision.image_size_px
    blank = torch.zeros(3, size_px, size_px, dtype=torch.uint8)
    predictor.caption([blank])  # reads the weights, and lays them out
    return service


def model_name(name: str | None) -> str:
    """What a model is called in answers: never more of a path than its end."""
    return str(name) if name and name.startswith("hf:") else Path(name or newest()).resolve().name


def config_of(app: Any, settings: Settings, cut: dict[str, int]) -> uvicorn.Config:
    """uvicorn's settings: our protocol, our limits, and none of its extras."""
    protocol = type("Protocol", (GuardedProtocol,), {"limits": settings.limits, "cut": cut})
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a header must not change who the log says has asked
        h11_max_incomplete_event_size=settings.limits.header_bytes,
        timeout_keep_alive=settings.limits.idle_s,
        timeout_graceful_shutdown=settings.limits.drain_s,
        backlog=BACKLOG,
    )


def bind(settings: Settings) -> socket.socket:
    """A socket with the address; it listens once the model is loaded. Raises: ConfigError where it can't be had."""
    bound = None
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(found[0], found[1])
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(found[4])
    except OSError as error:
        if bound is not None:
            bound.close()
        taken = "it is taken; choose another with --port, or 0 for a free one"
        why = taken if error.errno == errno.EADDRINUSE else f"{error}; give one of this machine's with --host"
        raise ConfigError(f"can't listen at {settings.host} port {settings.port}: {why}") from error
    bound.setblocking(False)
    return bound


def serve(settings: Settings) -> None:
    """Serves until SIGINT or SIGTERM, then answers what has come and returns.

    Raises: OpenCoCaError for what can't be loaded or listened at.
    """
    settings = with_room(settings)
    listening = bind(settings)
    with contextlib.closing(listening):
        if settings.workers == 1:
            service = make_service(settings)
            run_here(service, listening, functools.partial(announce, settings, listening, service))
        else:
            workers.supervise(settings, listening)


def run_here(service: Service, listening: socket.socket, begin: Callable[[], None] | None = None) -> None:
    """Serves in this process, and ends the service. `begin` is called when signals are heard: then clients may come."""
    logs.set_up()
    gc.collect()
    gc.freeze()  # what is there now stays: no need to look at it again
    server = Server(config_of(make_app(service), service.settings, service.cut), service)
    before = {one: signal.signal(one, server.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        if begin is not None:
            begin()
        server.run([listening])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        service.close()


def announce(settings: Settings, listening: socket.socket, service: Service) -> None:
    """Begins to listen, and says where on standard output: who connects from now on gets an answer."""
    listening.listen(BACKLOG)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    pictures = f", {len(service.index)} pictures to search" if service.index is not None else ""
    several = f", {settings.workers} workers" if settings.workers > 1 else ""
    print(f"http://{shown}:{port}  (model {service.provenance.model}{pictures}{several}; Ctrl-C ends it)", flush=True)


def with_room(settings: Settings) -> Settings:
    """The settings with as many connections as the system lets a process have files."""
    try:
        import resource
    except ImportError:  # Windows has no such bound
        return settings
    wanted = 2 * settings.limits.connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    connections = max(16, min(settings.limits.connections, (max(soft, most) - SPARE_FILES) // 2))
    return dataclasses.replace(settings, limits=dataclasses.replace(settings.limits, connections=connections))
