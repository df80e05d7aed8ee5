"""How much of the bare Predictor's speed is left behind HTTP, and how long good clients wait beside hostile ones.

    python -m benchmarks.server                       # the model that ships; 7 minutes
    python -m benchmarks.server --model /tmp/vit      # any other model folder

One core has the server (or the bare Predictor), with one thread of torch; another has the clients, in processes of
their own. Bare and served runs alternate. Pictures differ, and the server's memory for features is off, so that every
picture is encoded on both sides. Run it alone on the machine. Writes benchmarks/results/server.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import io
import itertools
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PICTURES, SERVER_CORE, CLIENT_CORE = 512, 0, 1
SPAWN = multiprocessing.get_context("spawn")
KINDS = ("silent", "dripping headers", "dripping body", "garbage", "pipelined", "half closed")


def pictures(size: tuple[int, int] = (320, 240)) -> list[bytes]:
    """Smooth JPEG pictures, all different, of about 11 KB."""
    made, chance = [], np.random.default_rng(0)
    for _ in range(PICTURES):
        few = Image.fromarray(chance.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        file = io.BytesIO()
        few.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def pin(core: int) -> None:
    os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


# --- the two sides --------------------------------------------------------------------------------------------------


def bare(model: str | None, task: str, seconds: float, reply: Connection) -> None:
    """Sends the pictures per second of a Predictor that has all at hand, and its processor's seconds of each."""
    pin(SERVER_CORE)
    import torch

    from opencoca.loading import load

    torch.set_num_threads(1)
    predictor, files = load(model), pictures()
    run = predictor.caption if task == "caption" else predictor.embed_images
    run(files[: predictor.batch_size])
    done, began, worked = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        part = files[done % PICTURES :][: 2 * predictor.batch_size]
        run(part)
        done += len(part)
    reply.send((done / (time.perf_counter() - began), (time.process_time() - worked) / done))


def served(model: str | None, reply: Connection, queue: int) -> None:
    """A server on its core, which sends its port."""
    pin(SERVER_CORE)
    import torch

    from opencoca.serve import run
    from opencoca.serve.settings import Limits, Settings

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the log, which it still writes
    settings = run.with_room(Settings(model=model, port=0, limits=Limits(features_bytes=1, queue=queue)))
    service, listening = run.make_service(settings), run.bind(settings)
    listening.listen(1024)
    reply.send(listening.getsockname()[1])
    run.run_here(service, listening)


@contextlib.contextmanager
def server(model: str | None, queue: int):
    """The port of a server that has begun to answer, and its process."""
    mine, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=served, args=(model, theirs, queue))
    process.start()
    try:
        yield mine.recv(), process.pid
    finally:
        process.terminate()
        process.join(60)


def worked_s(pid: int) -> float:
    """The processor's seconds that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def apart(target: Any, *args: Any) -> Any:
    """What a function in a process of its own sends."""
    mine, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(*args, theirs))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join(60)


# --- clients --------------------------------------------------------------------------------------------------------


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """The status of an answer that was read to its end."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head[9:12])


def requests_of(task: str) -> list[bytes]:
    head = b"POST /%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    return [head % (task.encode(), len(file)) + file for file in pictures()]


def saturate(port: int, task: str, clients: int, seconds: float, reply: Connection) -> None:
    """Sends good answers per second, their number, and statuses, with so many clients that ask again at once."""
    pin(CLIENT_CORE)
    waiting, statuses, ended = itertools.cycle(requests_of(task)), Counter(), []

    async def one(until: float) -> None:
        while time.perf_counter() < until:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                while time.perf_counter() < until:
                    status = await ask(reader, writer, next(waiting))
                    statuses[status] += 1
                    if status == 200:
                        ended.append(time.perf_counter())
                    else:
                        await asyncio.sleep(0.05)
                writer.close()
            except (OSError, asyncio.IncompleteReadError):
                statuses["cut"] += 1

    async def all_of_them() -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(one(until) for _ in range(clients)))

    asyncio.run(all_of_them())
    every, ended = len(ended), sorted(ended)
    ended = ended[min(clients, len(ended) // 2) :]  # the first of each fill the queue
    took_s = ended[-1] - ended[0] if ended else 0.0
    reply.send(((len(ended) - 1) / took_s if took_s else 0.0, every, dict(statuses)))


def pace(port: int, task: str, rate: float, seconds: float, reply: Connection) -> None:
    """Sends the waits, in seconds, of clients that come at random, `rate` a second, each with a new connection."""
    pin(CLIENT_CORE)
    requests, waits, statuses = requests_of(task), [], Counter()
    chance = random.Random(0)

    async def one(request: bytes) -> None:
        began = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            statuses[await ask(reader, writer, request)] += 1
            waits.append(time.perf_counter() - began)
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            statuses["cut"] += 1

    async def all_of_them() -> None:
        tasks, due = [], time.perf_counter()
        until = due + seconds
        while due < until:
            due += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(chance.choice(requests))))
        await asyncio.gather(*tasks)

    asyncio.run(all_of_them())
    reply.send((waits, dict(statuses)))


def torment(port: int, count: int, seconds: float, reply: Connection) -> None:
    """Keeps `count` slow or hostile connections open, each opened again when it is cut; sends how many were open."""
    pin(CLIENT_CORE)
    head = b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    opened, there, most = Counter(), 0, []

    async def one(kind: str, until: float) -> None:
        nonlocal there
        while time.perf_counter() < until:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                opened[kind] += 1
                there += 1
                try:
                    await torment_one(kind, reader, writer, head, until)
                finally:
                    there -= 1
                    writer.close()
            await asyncio.sleep(0.5)

    async def all_of_them() -> None:
        until = time.perf_counter() + seconds
        tasks = [asyncio.create_task(one(KINDS[i % len(KINDS)], until)) for i in range(count)]
        while time.perf_counter() < until:
            most.append(there)
            await asyncio.sleep(0.25)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(all_of_them())
    reply.send({"open_median": statistics.median(most), "opened": dict(opened)})


async def torment_one(
    kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, until: float
) -> None:
    """One connection that means no good, until it is cut."""
    if kind == "dripping headers":
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ")
    elif kind == "dripping body":
        writer.write(head + b"Content-Length: 100000\r\n\r\n")
    elif kind == "garbage":
        writer.write(bytes(random.randrange(256) for _ in range(200)) + b"\r\n\r\n")
    elif kind == "pipelined":
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
    elif kind == "half closed":
        writer.write(head + b"Content-Length: 1000\r\n\r\n" + bytes(500))
        writer.write_eof()
    while time.perf_counter() < until and not writer.is_closing():
        if kind.startswith("dripping"):
            writer.write(b"a")
        if kind != "pipelined":
            with contextlib.suppress(TimeoutError):
                if not await asyncio.wait_for(reader.read(65536), 1.0):
                    return
        else:
            await asyncio.sleep(1)


# --- what is measured -----------------------------------------------------------------------------------------------


def goodput(args: argparse.Namespace, model: str, task: str) -> dict[str, Any]:
    """Served and bare pictures per second, in turn."""
    rates: dict[str, list[float]] = {"bare": [], "served": []}
    worked: dict[str, list[float]] = {"bare": [], "served": []}
    statuses: Counter[Any] = Counter()
    with server(model, 2 * args.clients) as (port, pid):
        apart(saturate, port, task, args.clients, args.seconds / 2)
        for _ in range(args.repeats):
            rate, each_s = apart(bare, model, task, args.seconds)
            rates["bare"].append(rate)
            worked["bare"].append(each_s)
            before = worked_s(pid)
            rate, count, seen = apart(saturate, port, task, args.clients, args.seconds)
            rates["served"].append(rate)
            worked["served"].append((worked_s(pid) - before) / max(count, 1))
            statuses.update(seen)
    bare_rate, served_rate = (statistics.median(rates[name]) for name in ("bare", "served"))
    return {
        "bare_per_s": round(bare_rate, 2),
        "served_per_s": round(served_rate, 2),
        "goodput": round(served_rate / bare_rate, 4),
        "processor_ms_each": {name: round(1000 * statistics.median(some), 3) for name, some in worked.items()},
        "runs": {name: [round(rate, 2) for rate in some] for name, some in rates.items()},
        "clients": args.clients,
        "statuses": {str(status): count for status, count in statuses.items()},
    }


def waits(args: argparse.Namespace, model: str, task: str, capacity: float) -> dict[str, Any]:
    """How long good clients wait at a part of the capacity, alone and beside hostile connections."""
    found: dict[str, Any] = {"rate_per_s": round(args.load * capacity, 2)}
    for name, count in (("alone", 0), ("beside_hostile", args.hostile)):
        with server(model, 256) as (port, _):
            apart(saturate, port, task, 8, 2.0)
            mine, theirs = SPAWN.Pipe()
            tormentor = SPAWN.Process(target=torment, args=(port, count, args.seconds * 3 + 6, theirs))
            tormentor.start()
            time.sleep(4)
            seconds, statuses = apart(pace, port, task, args.load * capacity, args.seconds * 3)
            hostile = mine.recv()
            tormentor.join()
        ordered = sorted(seconds)
        found[name] = {
            "requests": len(ordered),
            "median_ms": round(1000 * statistics.median(ordered), 1),
            "p99_ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1),
            "statuses": {str(status): many for status, many in statuses.items()},
            "hostile": hostile,
        }
    beside = found["beside_hostile"]
    found["p99_over_median"] = round(beside["p99_ms"] / beside["median_ms"], 2)
    found["p99_over_median_alone"] = round(beside["p99_ms"] / found["alone"]["median_ms"], 2)
    return found


def memory_of_workers(folder: Path) -> dict[str, Any]:
    """What each of two workers takes with a model of a published size (random weights), and how much they share."""
    from opencoca import checkpoint
    from opencoca.data.clip_tokenizer import ClipTokenizer
    from opencoca.model.init import build
    from opencoca.recipes import open_clip

    config = open_clip.vit_b_32()
    model = build(config.model, 0)
    checkpoint.save(folder, config, ClipTokenizer.published(), dict(model.named_parameters()))
    del model
    words = ["serve", "--model", str(folder), "--port", "0", "--workers", "2", "--queue-timeout", "300"]
    command = [sys.executable, "-m", "opencoca", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port, workers = int(re.findall(r":([0-9]+) ", process.stdout.readline())[0]), []
            until = time.monotonic() + 300
            while len(workers) < 2 or not all(_mib(pid, "Rss") > 1000 for pid in workers):
                assert time.monotonic() < until
                workers = [
                    pid for pid in _children(process.pid) if _mib(pid, "Rss") > 100
                ]  # others only track resources
                time.sleep(1)
            for file in pictures()[:12]:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
                connection.request("POST", "/caption?max_tokens=8", file, {"Content-Type": "image/jpeg"})
                assert connection.getresponse().status == 200
                connection.close()
            each = [{name: _mib(pid, name) for name in ("Rss", "Pss", "Shared_Clean")} for pid in workers]
        finally:
            process.terminate()
    return {
        "model": "ViT-B-32",
        "file_MiB": round((folder / "model.safetensors").stat().st_size / 2**20),
        "each_MiB": each,
    }


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _mib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--tasks", choices=("caption", "embed"), nargs="+", default=["caption", "embed"])
    parser.add_argument("--seconds", type=float, default=8, help="of each run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=192)
    parser.add_argument("--hostile", type=int, default=840, help="connections, of which a third is cut at once")
    parser.add_argument("--load", type=float, default=0.3, help="of the capacity, while waits are measured")
    args = parser.parse_args()
    name = Path(args.model).name
    figures: dict[str, Any] = {"model": name, "seconds": args.seconds, "saturated": {}}
    for task in args.tasks:
        figures["saturated"][task] = goodput(args, args.model, task)
        print(task, figures["saturated"][task], flush=True)
    first = args.tasks[0]
    figures["waits"] = {"task": first}
    figures["waits"] |= waits(args, args.model, first, figures["saturated"][first]["served_per_s"])
    print(figures["waits"])
    with tempfile.TemporaryDirectory() as folder:
        figures["two_workers"] = memory_of_workers(Path(folder, "model"))
    print(figures["two_workers"])
    from common import write_result

    write_result("server" if name == "drawings" else f"server_{name}", figures)


if __name__ == "__main__":
    main()
