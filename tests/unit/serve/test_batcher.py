"""The gathering of jobs, with fake work: order, batches, cancellation, deadlines, places."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from llmrec.serve.batcher import FullError, Lane

SOON = 30.0


class Work:
    """Doubles each job; keeps the batches; waits for `go` where a test wants to fill the queue."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.started = threading.Event()

    def __call__(self, jobs: list[int]) -> list[int | Exception]:
        self.batches.append(jobs)
        self.started.set()
        assert self.go.wait(SOON)
        if 13 in jobs:
            raise ValueError("13 is to blame")
        return [KeyError(job) if job < 0 else 2 * job for job in jobs]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def lane(work: Work) -> Iterator[Lane[int, int]]:
    lane: Lane[int, int] = Lane("test", work, size=4, wait=0.2, room=8)
    yield lane
    work.go.set()
    lane.close()


def at(seconds: float = SOON) -> float:
    return time.monotonic() + seconds


async def results(lane: Lane[int, int], jobs: list[int], key: Callable[[int], object] = lambda job: "same") -> list:
    return await asyncio.gather(*(lane.ask(job, key(job), at()) for job in jobs), return_exceptions=True)


def test_jobs_share_batches_in_their_order(lane: Lane[int, int], work: Work) -> None:
    assert asyncio.run(results(lane, list(range(6)))) == [0, 2, 4, 6, 8, 10]
    assert work.batches == [[0, 1, 2, 3], [4, 5]]


def test_a_full_batch_does_not_wait(work: Work) -> None:
    lane: Lane[int, int] = Lane("test", work, size=2, wait=SOON, room=8)
    assert asyncio.run(results(lane, [1, 2])) == [2, 4]
    lane.close()


def test_a_lone_job_waits_no_longer_than_it_may(lane: Lane[int, int]) -> None:
    started = time.monotonic()
    assert asyncio.run(results(lane, [1])) == [2]
    assert time.monotonic() - started < SOON / 2


def test_other_keys_are_other_batches(lane: Lane[int, int], work: Work) -> None:
    assert asyncio.run(results(lane, [0, 1, 2, 3], key=lambda job: job % 2)) == [0, 2, 4, 6]
    assert work.batches == [[0, 2], [1, 3]]


def test_without_a_key_each_job_is_alone(lane: Lane[int, int], work: Work) -> None:
    asyncio.run(results(lane, [0, 1], key=lambda job: None))
    assert work.batches == [[0], [1]]


def test_one_bad_job_does_not_spoil_its_batch(lane: Lane[int, int], work: Work) -> None:
    one, bad, three, own = asyncio.run(results(lane, [1, 13, 3, -1]))
    assert (one, three) == (2, 6)
    assert isinstance(bad, ValueError)
    assert isinstance(own, KeyError)
    assert work.batches == [[1, 13, 3, -1], [1], [13], [3], [-1]]


def test_cancelled_jobs_leave_the_queue(lane: Lane[int, int], work: Work) -> None:
    async def run() -> int:
        work.go.clear()
        first = asyncio.create_task(lane.ask(0, "first", at()))
        await asyncio.to_thread(work.started.wait, SOON)
        gone, stays = (asyncio.create_task(lane.ask(job, "then", at())) for job in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        work.go.set()
        await first
        return await stays

    assert asyncio.run(run()) == 4
    assert work.batches == [[0], [2]]


def test_work_can_ask_whether_anybody_waits() -> None:
    ended = threading.Event()

    def endless(jobs: list[int]) -> list[int]:
        try:
            while True:
                lane.require_callers()
                time.sleep(0.001)
        finally:
            ended.set()

    lane: Lane[int, int] = Lane("test", endless, size=4, wait=0.0, room=8)

    async def run() -> None:
        with pytest.raises(TimeoutError):
            await lane.ask(0, None, at(0.05))

    asyncio.run(run())
    assert ended.wait(SOON)
    lane.close()


def test_a_job_past_its_deadline_is_not_worked_on(lane: Lane[int, int], work: Work) -> None:
    async def run() -> None:
        work.go.clear()
        first = asyncio.create_task(lane.ask(0, "first", at()))
        await asyncio.to_thread(work.started.wait, SOON)
        with pytest.raises(TimeoutError):
            await lane.ask(1, "late", at(0.05))
        work.go.set()
        await first
        assert await lane.ask(2, "then", at()) == 4

    asyncio.run(run())
    assert work.batches == [[0], [2]]


def test_places_are_bounded_and_given_back(lane: Lane[int, int]) -> None:
    with lane.place(7), lane.place():
        with pytest.raises(FullError) as full, lane.place():
            pass
        assert full.value.seconds >= 1
    with pytest.raises(FullError), lane.place(9):
        pass
    with lane.place(8):
        assert lane.busy
    assert not lane.busy


def test_close_lets_nobody_wait(lane: Lane[int, int], work: Work) -> None:
    async def run() -> None:
        work.go.clear()
        first = asyncio.create_task(lane.ask(0, "first", at()))
        await asyncio.to_thread(work.started.wait, SOON)
        second = asyncio.create_task(lane.ask(1, "then", at()))
        await asyncio.sleep(0)
        lane.close()
        with pytest.raises(asyncio.CancelledError):
            await second
        work.go.set()
        assert await first == 0
        with pytest.raises(FullError):
            await lane.ask(2, "then", at())

    asyncio.run(run())
