"""Gathers concurrent jobs into batches: a lane is one thread, and callers on the event loop wait for its results.

    lane = Lane("fast", work, size=32, wait=0.004, room=256)     # work: list of jobs -> list of results
    with lane.place():                                           # FullError if `room` are inside
        result = await lane.ask(job, key, deadline)              # jobs with the same key share a batch

A job whose caller has gone, or whose deadline has passed, leaves the batch.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from llmrec.console import get_logger

Job = TypeVar("Job")
Result = TypeVar("Result")

log = get_logger(__name__)


class FullError(Exception):
    """There is no room for another job.

    Attributes:
        seconds: estimated time until there is.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"full for about {seconds} s")
        self.seconds = seconds


class NobodyWaitsError(Exception):
    """All callers of a batch have gone."""


@dataclass(eq=False)
class Waiting(Generic[Job, Result]):
    """A job in the queue of a lane.

    Attributes:
        job: what `work` gets.
        key: jobs with the same one can share a batch; None: with no other.
        deadline: as of `time.monotonic`.
        future: gets the result.
        gone: whether nobody waits for the result.
    """

    job: Job
    key: Hashable
    deadline: float
    future: Future[Result] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False

    @property
    def dead(self) -> bool:
        """Whether nobody needs the result."""
        return self.gone or time.monotonic() > self.deadline


class Lane(Generic[Job, Result]):
    """A thread that works on batches of jobs, in the order of their arrival.

    Args:
        name: of the lane.
        work: makes the results of a batch of jobs with the same key, in their order; an exception in their place is
            raised to its caller. If it raises an exception for a batch, each job is tried alone.
        size: largest number of jobs in a batch.
        wait: longest time that a job waits for others to share its batch, in seconds.
        room: largest number of jobs that wait or are worked on.
        on_batch: called with the number of jobs of each batch.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Job]], Sequence[Result | Exception]],
        size: int,
        wait: float,
        room: int,
        on_batch: Callable[[int], object] = lambda jobs: None,
    ) -> None:
        self.name, self.work, self.size, self.wait, self.room, self.on_batch = name, work, size, wait, room, on_batch
        self.inside = 0
        self._seconds = 0.0  # per job, a moving average
        self._waiting: deque[Waiting[Job, Result]] = deque()
        self._running: list[Waiting[Job, Result]] = []
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name=f"llmrec-{name}", daemon=True).start()

    @contextmanager
    def place(self, jobs: int = 1) -> Iterator[None]:
        """Take the places of some jobs, on the event loop, until the end of the context.

        Raises:
            FullError: there are not enough places.
        """
        if self.inside + jobs > self.room:
            raise FullError(min(60, max(1, math.ceil(self.inside * self._seconds))))
        self.inside += jobs
        try:
            yield
        finally:
            self.inside -= jobs

    async def ask(self, job: Job, key: Hashable, deadline: float) -> Result:
        """The result of a job. If the caller is cancelled, the job leaves its batch.

        Raises:
            TimeoutError: the deadline has passed.
        """
        waiting: Waiting[Job, Result] = Waiting(job, key, deadline)
        with self._changed:
            if self._closed:
                raise FullError(1)
            self._waiting.append(waiting)
            self._changed.notify()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.wrap_future(waiting.future)
        finally:
            waiting.gone = True

    @property
    def busy(self) -> bool:
        """Whether a job waits or is worked on."""
        return self.inside > 0

    def require_callers(self) -> None:
        """For `work`, now and then.

        Raises:
            NobodyWaitsError: nobody waits for the batch that is being worked on.
        """
        if all(each.dead for each in self._running):
            raise NobodyWaitsError

    def close(self) -> None:
        """Take no more jobs, and end the thread; those that wait get a CancelledError."""
        with self._changed:
            self._closed = True
            for each in self._waiting:
                each.future.cancel()
            self._waiting.clear()
            self._changed.notify()

    def _run(self) -> None:
        while batch := self._next():
            self._running = batch
            started = time.perf_counter()
            self.on_batch(len(batch))
            self._finish(batch)
            seconds = (time.perf_counter() - started) / len(batch)
            self._seconds = seconds if not self._seconds else 0.9 * self._seconds + 0.1 * seconds

    def _next(self) -> list[Waiting[Job, Result]]:
        """Wait for the next batch; empty after `close`."""
        with self._changed:
            while not self._closed:
                self._waiting = deque(each for each in self._waiting if not each.dead)
                left: float | None = None
                if self._waiting:
                    first = self._waiting[0]
                    batch = [each for each in self._waiting if each.key == first.key][: self.size]
                    if first.key is None:
                        batch = [first]
                    left = first.arrived + self.wait - time.monotonic()
                    if first.key is None or len(batch) == self.size or left <= 0:
                        taken = set(map(id, batch))
                        self._waiting = deque(each for each in self._waiting if id(each) not in taken)
                        return batch
                self._changed.wait(left)
            return []

    def _finish(self, batch: list[Waiting[Job, Result]]) -> None:
        """Work on a batch and hand out its results."""
        results: Sequence[Result | Exception]
        try:
            results = self.work([each.job for each in batch])
        except NobodyWaitsError:
            return
        except Exception as error:
            if len(batch) == 1:
                results = [error]
            else:  # one of them is to blame
                for each in batch:
                    self._running = [each]
                    if not each.dead:
                        self._finish([each])
                return
        for each, result in zip(batch, results, strict=True):
            with suppress(InvalidStateError):  # its caller has gone meanwhile
                if isinstance(result, Exception):
                    each.future.set_exception(result)
                else:
                    each.future.set_result(result)
