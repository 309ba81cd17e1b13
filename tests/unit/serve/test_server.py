"""The process that listens: stalled heads, too many connections, what is not HTTP; and its log."""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

pytest.importorskip("fastapi_offline", reason="the serve extra is not installed")

from fastapi import FastAPI

from llmrec.serve.limits import Limits
from llmrec.serve.server import JsonLines, Server


@contextmanager
def listening(**limits: float) -> Iterator[Callable[[], socket.socket]]:
    """A server of nothing; connects to it."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        server = Server(FastAPI(), Limits(**limits))
        thread = threading.Thread(target=server.listen, args=(own,), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        address = own.getsockname()
        yield lambda: socket.create_connection(address, timeout=20)
        server.should_exit = True
        thread.join()


def test_a_stalled_head_is_given_up_also_after_a_request() -> None:
    with listening(read_seconds=0.3) as connect, connect() as silent, connect() as begun, connect() as second:
        begun.sendall(b"GET / HTTP/1.1\r\nhost:")
        second.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += second.recv(4096)
        assert answer.startswith(b"HTTP/1.1 404")
        second.sendall(b"GET / HTTP/1.1\r\n")
        for connection in (silent, begun, second):
            assert connection.recv(4096) == b""


def test_one_connection_too_many_is_closed() -> None:
    with listening(connections=1) as connect, connect() as first:
        first.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert first.recv(4096)
        with connect() as second, suppress(ConnectionError):
            assert second.recv(4096) == b""
        first.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert first.recv(4096)


def test_what_is_not_http_gets_an_error_in_the_usual_form() -> None:
    with listening() as connect, connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "not_http"


def test_log_lines_are_json_without_control_characters() -> None:
    record = logging.LogRecord("llmrec.x", logging.INFO, "", 0, "a\x1b[31m\x7f\u2028%s", ("\ud83d",), None)
    record.fields = {"path": "/v1/items/\n"}
    line = JsonLines().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == "a\x1b[31m\x7f\u2028\ud83d"
    assert json.loads(line)["path"] == "/v1/items/\n"
