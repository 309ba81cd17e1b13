"""Kill `llmrec serve` while items are added over HTTP, and check that each acknowledged one is there afterwards.

    python scripts/kill_serve.py --model runs/quickstart/model --items 1000 --workers 2

The script works on a copy of the bundle. Clients add items, one per request, and after each acknowledgement read the
item back over a new connection, which any worker may answer. Meanwhile SIGKILL ends one worker, then the whole server,
and so on; the whole server is started again. At the end the bundle is loaded: its files agree, and it has each
acknowledged item once. Exit code 1 says that something was lost.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

HOST = "127.0.0.1"
START = 600  # seconds in which a server must be ready, on a busy machine


class Additions:
    """Clients that add items until enough are acknowledged, whatever happens to the server."""

    def __init__(self, address: str, wanted: int, clients: int) -> None:
        self.address, self.wanted = address, wanted
        self.acknowledged: list[str] = []
        self.faults: list[str] = []
        self.refused = 0
        self.threads = [threading.Thread(target=self._add, args=(place,), daemon=True) for place in range(clients)]
        for thread in self.threads:
            thread.start()

    @property
    def done(self) -> bool:
        return len(self.acknowledged) >= self.wanted

    def _add(self, place: int) -> None:
        number = 0
        while not self.done:
            item = f"added-{place}-{number}"
            number += 1
            try:
                body = {"items": [{"item_id": item, "title": f"Added soap {item}"}]}
                answer = httpx.post(f"{self.address}/v1/items", json=body, timeout=60)
                if answer.status_code != 201:
                    self.refused += 1
                    time.sleep(0.1)
                    continue
                self.acknowledged.append(item)
                found = httpx.get(f"{self.address}/v1/items/{item}", timeout=60)
                if found.status_code != 503 and found.json().get("title") != f"Added soap {item}":
                    self.faults.append(f"{item}: acknowledged, then status {found.status_code}")
            except httpx.TransportError:
                time.sleep(0.1)


def start(folder: Path, port: int, workers: int) -> subprocess.Popen[bytes]:
    """A server that is ready."""
    command = [sys.executable, "-m", "llmrec", "serve", "--model", str(folder), "--port", str(port)]
    process = subprocess.Popen([*command, "--workers", str(workers)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://{HOST}:{port}/readyz", timeout=10).status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.1)
    kill(process)
    raise SystemExit("the server does not start")


def kill(server: subprocess.Popen[bytes]) -> None:
    """Kill a server and its workers at once, and wait until the port is free."""
    if server.poll() is not None:
        return
    own = psutil.Process(server.pid)
    family = [own, *own.children(recursive=True)]
    for each in family:
        each.kill()
    server.wait()
    psutil.wait_procs(family)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a bundle")
    parser.add_argument("--items", type=int, default=1000, help="items that must be acknowledged (default 1000)")
    parser.add_argument("--workers", type=int, default=2, help="workers of the server (default 2)")
    parser.add_argument("--clients", type=int, default=8, help="concurrent clients (default 8)")
    parser.add_argument("--every", type=int, default=100, help="items between two kills (default 100)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, socket.socket() as probe:
        folder = Path(shutil.copytree(options.model, Path(temporary) / "model"))
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
        probe.close()
        server = start(folder, port, options.workers)
        additions = Additions(f"http://{HOST}:{port}", options.items, options.clients)
        kills = {"worker": 0, "server": 0}
        try:
            while not additions.done:
                if len(additions.acknowledged) >= options.every * (sum(kills.values()) + 1):
                    workers = [
                        each for each in psutil.Process(server.pid).children() if "spawn_main" in str(each.cmdline())
                    ]
                    if options.workers > 1 and kills["worker"] <= kills["server"] and len(workers) > 1:
                        workers[kills["worker"] % len(workers)].kill()
                        kills["worker"] += 1
                    else:
                        kill(server)
                        kills["server"] += 1
                        server = start(folder, port, options.workers)
                time.sleep(0.01)
            for thread in additions.threads:
                thread.join()
        finally:
            kill(server)
        faults = additions.faults + lost(folder, additions.acknowledged)
    print(
        f"{len(additions.acknowledged)} items acknowledged by {options.workers} workers, {kills['worker']} workers and "
        f"{kills['server']} servers killed, {additions.refused} requests refused, {len(faults)} faults"
    )
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(bool(faults))


def lost(folder: Path, acknowledged: list[str]) -> list[str]:
    """What the bundle lacks; loading it checks that its files agree."""
    from llmrec.recommender.bundle import read_header
    from llmrec.recommender.store import ItemStore

    store = ItemStore.load(folder, read_header(folder))
    titles = dict(zip(store.catalog.ids, store.catalog.frame["title"].to_list(), strict=True))
    faults = [f"{item}: lost" for item in acknowledged if titles.get(item) != f"Added soap {item}"]
    if len(titles) != len(store.catalog) or store.trie.n_items != len(store.catalog):
        faults.append("an item is there twice, or has no semantic ID")
    return faults


if __name__ == "__main__":
    main()
