"""Load on `llmrec serve`: requests per second and latencies, beside a server with one lock around the model.

    python scripts/bench_serve.py --model runs/quickstart/model --clients 32 64 --seconds 60 --beside slow large stalled

Both servers answer the same requests, one server after the other, each in a process of its own. The plain one is what
`llmrec serve` was before it gathered requests into batches. Disturbers beside the clients: `--beside slow` keeps 100
requests going that need many searches (`exact` ones, or 500 answers for two phrasings where the ranking has no exact
search), `--beside large` sends 10 MB again and again, `--beside stalled` holds 400 connections that send nothing. The
factor is p95 with the disturber over p95 without. Memory is that of the server's processes after a tenth of the time,
at its highest, and at the end; what they share counts once for each. `--memory-every 60` also prints it minute by
minute. Errors are broken connections and statuses from 500.
"""

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HOST = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a bundle")
    parser.add_argument("--clients", type=int, nargs="+", default=[32, 64], help="concurrent clients")
    parser.add_argument("--seconds", type=float, default=60.0, help="time of each measurement (default 60)")
    parser.add_argument("--beside", choices=["slow", "large", "stalled"], nargs="*", default=[], help="further load")
    parser.add_argument("--server", choices=["plain", "llmrec"], nargs="*", default=["plain", "llmrec"])
    parser.add_argument("--workers", type=int, default=1, help="workers of `llmrec serve` (default 1)")
    parser.add_argument("--memory-every", type=float, metavar="SECONDS", help="print the memory at these intervals")
    parser.add_argument("--plain-port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain_port:
        serve_plain(options.model, options.plain_port)
        return
    import polars as pl

    ids = pl.read_parquet(Path(options.model) / "item_index.parquet", columns=["item_id"])["item_id"].to_list()
    print("server   clients  beside     requests/s   p50 ms   p95 ms   p99 ms  factor  errors  memory MiB  statuses")
    for name in options.server:
        port = free_port()
        own = [sys.executable, __file__, "--model", options.model, "--plain-port", str(port)]
        ours = [sys.executable, "-m", "llmrec", "serve", "--model", options.model, "--port", str(port)]
        ours += ["--workers", str(options.workers)]
        process = subprocess.Popen(own if name == "plain" else ours, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(port)
            for clients in options.clients:
                alone = 0.0
                for beside in ["", *options.beside]:
                    found = asyncio.run(measure(process.pid, port, ids, clients, options.seconds, beside))
                    seconds = sorted(found.seconds) or [float("nan")]
                    p50, p95, p99 = (1000 * seconds[int(q * (len(seconds) - 1))] for q in (0.5, 0.95, 0.99))
                    alone = alone or p95
                    kinds = " ".join(f"{status}:{count}" for status, count in sorted(found.statuses.items()))
                    errors = sum(count for status, count in found.statuses.items() if status == 0 or status >= 500)
                    memory = [mib for _, mib in found.memory]
                    first, last = memory[len(memory) // 10], memory[-1]
                    print(
                        f"{name:<8} {clients:>7}  {beside or '-':<9} {len(found.seconds) / options.seconds:>11.1f} "
                        f"{p50:>8.0f} {p95:>8.0f} {p99:>8.0f} {p95 / alone:>7.2f} {errors:>7}  "
                        f"{first:.0f} {max(memory):.0f} {last:.0f}  {kinds}",
                        flush=True,
                    )
                    if options.memory_every:
                        print("memory MiB after", *found.memory_at(options.memory_every), flush=True)
        finally:
            process.terminate()
            process.wait()


def serve_plain(model: str, port: int) -> None:
    """The opponent: one lock around the model, one request at a time."""
    from threading import Lock
    from typing import Any

    import uvicorn
    from fastapi import FastAPI

    from llmrec.recommender.recommender import Recommender
    from llmrec.recommender.request import Request

    recommender, one_at_a_time, app = Recommender.from_pretrained(model), Lock(), FastAPI()
    _ = recommender.ranker

    @app.post("/v1/recommend")
    def recommend(request: Request) -> dict[str, Any]:
        with one_at_a_time:
            items = recommender.answer(request)
        return {"items": [item.to_dict() for item in items], "reason": items.reason, "notes": items.notes}

    @app.get("/readyz")
    def ready() -> str:
        return "ok"

    uvicorn.run(app, host=HOST, port=port, log_level="warning")


@dataclass
class Found:
    """What a measurement found.

    Attributes:
        seconds: of each answered request.
        statuses: how often each came; 0 is a broken connection.
        memory: seconds since the start, and MiB of the server then; about once a second.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def memory_at(self, interval: float) -> list[str]:
        """The memory after each interval, as `60 s: 512`."""
        times = [second for second, _ in self.memory]
        ends = range(1, int((times[-1] + 1) / interval) + 1)
        return [f"{end * interval:.0f} s: {self.memory[bisect_left(times, end * interval) - 1][1]:.0f}" for end in ends]


async def measure(pid: int, port: int, ids: list[str], clients: int, seconds: float, beside: str) -> Found:
    """Ask for some time."""
    found, start = Found(), time.perf_counter()
    end = start + seconds

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        connection = None
        while time.perf_counter() < end:
            body = json.dumps({"history": rng.sample(ids, rng.randint(1, 15)), "k": 10}).encode()
            started = time.perf_counter()
            try:
                connection = connection or await asyncio.open_connection(HOST, port)
                status = await ask(*connection, body)
            except (OSError, asyncio.IncompleteReadError):
                status, connection = 0, None
            found.statuses[status] += 1
            if status:
                found.seconds.append(time.perf_counter() - started)

    async def other(body: bytes) -> None:
        while time.perf_counter() < end:
            try:
                reader, writer = await asyncio.open_connection(HOST, port)
                status = await ask(reader, writer, body)
                writer.close()
            except (OSError, asyncio.IncompleteReadError):
                status = 0
            await asyncio.sleep(0 if status == 200 else 1)

    async def weigh() -> None:
        while time.perf_counter() < end:
            found.memory.append((time.perf_counter() - start, resident(pid)))
            await asyncio.sleep(1)

    stalled = [await asyncio.open_connection(HOST, port) for _ in range(400 if beside == "stalled" else 0)]
    slow = {"history": ids[:10], "k": 500, "phrasings": 2}
    if beside == "slow":
        reader, writer = await asyncio.open_connection(HOST, port)
        exact = {"history": ids[:10], "k": 10, "exact": True}
        slow = exact if await ask(reader, writer, json.dumps(exact).encode()) == 200 else slow
        writer.close()
    bodies = {
        "slow": [json.dumps(slow).encode()] * 100,
        "large": [json.dumps({"prompt": "tea " * 2_500_000}).encode()],
    }
    tasks = [asyncio.create_task(client(seed)) for seed in range(clients)]
    others = [asyncio.create_task(each) for each in (weigh(), *map(other, bodies.get(beside, [])))]
    await asyncio.gather(*tasks)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for _, writer in stalled:
        writer.close()
    return found


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> int:
    """Send a request on an open connection and read its answer; returns the status."""
    head = f"POST /v1/recommend HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    await reader.readexactly(int(answer.split("content-length: ")[1].split("\r\n")[0]))
    return int(answer.split(" ")[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until_ready(port: int) -> None:
    import httpx

    for _ in range(600):
        try:
            if httpx.get(f"http://{HOST}:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit("the server does not start")


def resident(pid: int) -> float:
    """Memory of a process and its children in MiB."""
    own = psutil.Process(pid)
    return sum(each.memory_info().rss for each in [own, *own.children(recursive=True)]) / 2**20


if __name__ == "__main__":
    main()
