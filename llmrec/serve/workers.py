"""Several processes that serve one bundle on one socket: the parent starts them, and starts a dead one again.

Each worker is a whole server with a model of its own; all read the same mapped weight file. They share no locks. What
they share is `Peers`: the state of the bundle that each has read, so that a change is acknowledged when all have it.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from llmrec.console import get_logger
from llmrec.errors import UserError

log = get_logger(__name__)

SPAWN = multiprocessing.get_context("spawn")
SEVERAL = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the folder in which prometheus_client adds up the counts of several processes."""
END = 8.0
"""Seconds after SIGTERM at which a process of the server ends, whatever hangs."""
TICK = 0.2
"""Seconds between two looks at signals."""
PAUSES = (1.0, 30.0)
"""Shortest and longest pause before a worker that died while it loaded is started again, in seconds; it doubles."""


@dataclass(frozen=True)
class Peers:
    """What the workers of one server know of each other.

    Attributes:
        read: int64 [workers], in shared memory: modification time in nanoseconds of the state of the bundle that each
            has read last, 0 while it loads.
        own: place of this worker.
    """

    read: MutableSequence[int]
    own: int = 0

    def report(self, state: int) -> None:
        """Tell the others which state this worker answers from."""
        self.read[self.own] = state

    def wait(self, state: int, seconds: float) -> bool:
        """Wait until no worker answers from an older state; False if that takes longer than `seconds`."""
        end = time.monotonic() + seconds
        while any(0 < other < state for other in self.read):
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True


def supervise(run: Callable[..., None], workers: int, *arguments: Any) -> None:
    """Run `run(peers, patient, *arguments)` in some processes until SIGTERM or Ctrl-C, which end all within `END`.

    Args:
        run: serves until SIGTERM, and reports to `peers` when it is loaded. If `patient`, it does not listen before
            that, as another worker does. A UserError ends it. It can be imported by its name.
        workers: number of processes, at least 2.
        arguments: can be pickled.

    Raises:
        UserError: that of a worker that died while it loaded, if no other one serves.
    """
    read: MutableSequence[int] = SPAWN.RawArray("q", workers)
    told, errors = SPAWN.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="llmrec-metrics-") as folder:
        os.environ[SEVERAL] = folder
        stopped: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: stopped.append(number))

        def start(place: int, patient: bool) -> BaseProcess:
            return _start((errors, run, Peers(read, place), patient, *arguments), f"llmrec-worker-{place}")

        processes = [start(place, place > 0) for place in range(workers)]
        due = [0.0] * workers  # when a dead worker starts again
        pauses = [PAUSES[0]] * workers
        try:
            while not stopped:
                alive = [process.sentinel for process in processes if process.exitcode is None]
                wait(alive, TICK) if alive else time.sleep(TICK)
                for place, process in enumerate(processes):
                    if stopped or process.exitcode is None:
                        continue
                    if not due[place]:
                        loaded, read[place] = read[place] > 0, 0
                        _forget(process)
                        reason = told.recv() if told.poll() else f"it ended with exit code {process.exitcode}"
                        if not loaded and not any(read):
                            raise UserError(reason if process.exitcode == 2 else f"a worker could not load: {reason}.")
                        pauses[place] = PAUSES[0] if loaded else min(2 * pauses[place], PAUSES[1])
                        due[place] = time.monotonic() + (0 if loaded else pauses[place])
                        log.error("worker %d has died: %s; starting another", place, reason)
                    if time.monotonic() >= due[place]:
                        processes[place], due[place] = start(place, True), 0.0
        finally:
            _end(processes)


def _start(arguments: tuple[Any, ...], name: str) -> BaseProcess:
    """Start a worker. It inherits a mask that keeps Ctrl-C from it: the parent ends it."""
    process = SPAWN.Process(target=_work, args=arguments, name=name)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _work(errors: Connection, run: Callable[..., None], *arguments: Any) -> None:
    """What a worker runs."""
    threading.Thread(target=_end_with_parent, name="llmrec-parent", daemon=True).start()
    try:
        run(*arguments)
    except UserError as error:
        errors.send(error.with_flags)
        raise SystemExit(2) from None


def _end_with_parent() -> None:
    """Wait for the end of the parent, which may have been killed, then stop this worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _forget(process: BaseProcess) -> None:
    """Take the gauges of a dead worker out of the sums."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(process.pid)


def _end(processes: list[BaseProcess]) -> None:
    """End all workers within `END` seconds and one more."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + END + 0.5
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
