"""Load on `llmrec serve`: requests per second and latencies, beside a server with one lock around the model.

    python scripts/bench_serve.py --model runs/quickstart/model --clients 32 64 --seconds 20

Both servers answer the same requests, one server after the other, each in a process of its own. The plain one is what
`llmrec serve` was before it gathered requests into batches. `--beside slow` adds a client that always asks for many
answers, `--beside large` one that sends 10 MB, `--beside stalled` 400 connections that send nothing.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

HOST = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a bundle")
    parser.add_argument("--clients", type=int, nargs="+", default=[32, 64], help="concurrent clients")
    parser.add_argument("--seconds", type=float, default=20.0, help="time of each measurement")
    parser.add_argument("--beside", choices=["slow", "large", "stalled"], nargs="*", default=[], help="further load")
    parser.add_argument("--server", choices=["plain", "llmrec"], nargs="*", default=["plain", "llmrec"])
    parser.add_argument("--plain-port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain_port:
        serve_plain(options.model, options.plain_port)
        return
    import polars as pl

    ids = pl.read_parquet(Path(options.model) / "item_index.parquet", columns=["item_id"])["item_id"].to_list()
    print("server   clients  beside     requests/s   p50 ms   p95 ms   p99 ms  statuses         memory MiB")
    for name in options.server:
        port = free_port()
        own = [sys.executable, __file__, "--model", options.model, "--plain-port", str(port)]
        ours = [sys.executable, "-m", "llmrec", "serve", "--model", options.model, "--port", str(port)]
        process = subprocess.Popen(own if name == "plain" else ours, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(port)
            for clients in options.clients:
                for beside in ["", *options.beside]:
                    seconds, statuses = asyncio.run(measure(port, ids, clients, options.seconds, beside))
                    found = sorted(seconds)
                    p50, p95, p99 = (1000 * found[int(q * (len(found) - 1))] for q in (0.5, 0.95, 0.99))
                    rate = len(found) / options.seconds
                    memory = resident(process.pid)
                    kinds = " ".join(f"{status}:{count}" for status, count in sorted(statuses.items()))
                    print(
                        f"{name:<8} {clients:>7}  {beside or '-':<9} {rate:>11.1f} {p50:>8.0f} {p95:>8.0f} {p99:>8.0f}"
                        f"  {kinds:<16} {memory:>10.0f}",
                        flush=True,
                    )
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


async def measure(
    port: int, ids: list[str], clients: int, seconds: float, beside: str
) -> tuple[list[float], Counter[int]]:
    """Latencies of the answered requests, in seconds, and how often each status came."""
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    end = time.perf_counter() + seconds

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        reader, writer = await asyncio.open_connection(HOST, port)
        while time.perf_counter() < end:
            body = json.dumps({"history": rng.sample(ids, rng.randint(1, 15)), "k": 10}).encode()
            started = time.perf_counter()
            statuses[await ask(reader, writer, body)] += 1
            latencies.append(time.perf_counter() - started)
        writer.close()

    async def other(body: bytes) -> None:
        while time.perf_counter() < end:
            reader, writer = await asyncio.open_connection(HOST, port)
            await ask(reader, writer, body)
            writer.close()

    stalled = [await asyncio.open_connection(HOST, port) for _ in range(400 if beside == "stalled" else 0)]
    bodies = {
        "slow": [json.dumps({"history": ids[:10], "k": 500, "phrasings": 2}).encode()],
        "large": [json.dumps({"prompt": "tea " * 2_500_000}).encode()],
    }
    tasks = [asyncio.create_task(client(seed)) for seed in range(clients)]
    others = [asyncio.create_task(other(body)) for body in bodies.get(beside, [])]
    await asyncio.gather(*tasks)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for _, writer in stalled:
        writer.close()
    return latencies, statuses


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
    """Memory of a process in MiB, where /proc tells it."""
    path = Path(f"/proc/{pid}/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if path.exists() else float("nan")


if __name__ == "__main__":
    main()
