"""`llmrec serve` as a process: killed while items are added, and stopped while an upload stalls."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

pytest.importorskip("fastapi_offline", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

STARTS = 300  # seconds, on a busy machine


@contextmanager
def server(folder: Path, environment: dict[str, str], *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llmrec", "serve", "--model", str(folder), "--port", str(port), *flags]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + STARTS
        while time.monotonic() < end and process.poll() is None:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield process, url
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def added(url: str, names: Callable[[int], str], acknowledged: list[str]) -> None:
    """Add items one after the other until the server is gone."""
    number = 0
    with httpx.Client(timeout=60) as client:
        while True:
            item = names(number)
            try:
                answer = client.post(f"{url}/v1/items", json={"items": [{"item_id": item, "title": f"Soap {item}"}]})
            except httpx.TransportError:
                return
            if answer.status_code == 201:
                acknowledged.append(item)
            number += 1


def test_killed_while_items_are_added_and_stopped_while_an_upload_stalls(
    run_copy: Path, environment: dict[str, str]
) -> None:
    folder, acknowledged = run_copy / "model", []
    with server(folder, environment) as (process, url):
        writers = [
            threading.Thread(target=added, args=(url, lambda number, own=own: f"{own}-{number}", acknowledged))
            for own in "abc"
        ]
        for writer in writers:
            writer.start()
        end = time.monotonic() + STARTS
        while len(acknowledged) < 6 and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        for writer in writers:
            writer.join()
    assert len(acknowledged) >= 6
    with server(folder, environment) as (process, url):
        for item in acknowledged:
            assert httpx.get(f"{url}/v1/items/{item}", timeout=60).json()["title"] == f"Soap {item}"
        answer = httpx.post(f"{url}/v1/recommend", json={"history": acknowledged[:2], "k": 5}, timeout=60)
        assert len(answer.json()["items"]) == 5

        host, _, port = url.removeprefix("http://").partition(":")
        stalled = [socket.create_connection((host, int(port))) for _ in range(3)]
        stalled[0].sendall(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        stalled[1].sendall(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        log = process.communicate()[1]
        assert time.monotonic() - started < 10
        for connection in stalled:
            connection.close()
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"path": "/v1/recommend", "status": 200}.items() <= next(
        line.items() for line in lines if line.get("path") == "/v1/recommend"
    )


@pytest.mark.slow
def test_workers_and_servers_killed_while_items_are_added(run_copy: Path, environment: dict[str, str]) -> None:
    """`scripts/kill_serve.py` in short: the first kill is of a worker, the second of the whole server."""
    words = ["--model", str(run_copy / "model"), "--items", "40", "--every", "15", "--clients", "4"]
    script = Path(__file__).parents[2] / "scripts" / "kill_serve.py"
    command = [sys.executable, str(script), *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "by 2 workers, 1 workers and 1 servers killed" in result.stdout
    assert "0 faults" in result.stdout


@pytest.mark.slow
def test_two_workers_end_within_ten_seconds_whatever_they_do(run_copy: Path, environment: dict[str, str]) -> None:
    """Slow requests run, others wait for them, and uploads stall."""
    with server(run_copy / "model", environment, "--workers", "2") as (process, url):
        slow = {"history": [], "k": 1000, "phrasings": 1}

        def ask() -> None:
            with suppress(httpx.TransportError):
                httpx.post(f"{url}/v1/recommend", json=slow, timeout=60)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(40)]
        for thread in threads:
            thread.start()
        host, _, port = url.removeprefix("http://").partition(":")
        stalled = [socket.create_connection((host, int(port))) for _ in range(8)]
        for connection in stalled[::2]:
            connection.sendall(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        time.sleep(0.5)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        process.communicate()
        assert time.monotonic() - started < 10
        assert process.returncode == 0
        left = psutil.wait_procs(workers, 1)[1]
        # An ended process that its new parent has not collected yet is no worker.
        assert not [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        for connection in stalled:
            connection.close()


def test_what_can_not_be_loaded_ends_the_server_with_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert "llmrec.json is missing" in fails("serve", "--model", tmp_path / "model", "--port", "0")


def test_a_wrong_limit_is_named(fails: Callable[..., str]) -> None:
    assert "--queue 0: expected at least 1" in fails("serve", "--model", "x", "--queue", "0")
    assert "--batch-wait inf" in fails("serve", "--model", "x", "--batch-wait", "inf")
