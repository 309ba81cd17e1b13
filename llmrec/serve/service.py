"""Answers the requests of many clients with one model: three lanes, each a thread.

- fast: requests that one search answers, gathered into batches of the decoder.
- slow: exact searches, many answers, long prompts, limits, offsets, several phrasings. It gives way to the fast lane.
- items: changes of the catalogue.

Checks, filters and tokenizing take place before, in threads of their own.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread

from llmrec.console import get_logger
from llmrec.decode.config import RankingName
from llmrec.decode.context import before_each_pass
from llmrec.decode.ranker import ItemRanker
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.recommender.answer import Prepared, decoded, finished, prepare
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.request import Answer, Request
from llmrec.serve.batcher import FullError, Lane
from llmrec.serve.limits import ApiError, Limits
from llmrec.serve.live import Change, Changed, LiveBundle
from llmrec.serve.metrics import Metrics

log = get_logger(__name__)

PREPARING = 4
"""Threads that check requests and write prompts."""
WATCH_SECONDS = 0.1
"""Time between two looks at the bundle on the disk."""
COMPARED: tuple[RankingName, ...] = ("fusion", "experts", "beam", "dense")
"""Rankings that a request can choose beside that of the server, if the bundle has them."""
PAUSE = 0.25
"""Longest pause of the slow lane, in seconds."""


class Service:
    """What the HTTP application asks.

    Args:
        bundle: what is served.
        limits: of batches, queues and requests.
        metrics: counts.
        on_failure: called if the bundle can't be loaded; `failure` then holds the error.

    Attributes:
        loaded: whether it can answer.
    """

    def __init__(
        self, bundle: LiveBundle, limits: Limits, metrics: Metrics, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        self.bundle, self.limits, self.metrics = bundle, limits, metrics
        self.failure: BaseException | None = None
        self.loaded = threading.Event()
        self._on_failure = on_failure
        self._generate = threading.Lock()  # `generate` changes the model's settings while it decodes
        self._resumed = 0.0
        self._rankers: WeakKeyDictionary[Recommender, dict[RankingName, ItemRanker]] = WeakKeyDictionary()

    def start(self) -> None:
        """Start the threads, the loading of the bundle among them; on the event loop."""
        limits = self.limits

        def lane(name: str, room: int) -> Lane[Prepared, Answer]:
            count = self.metrics.batch.labels(name).observe
            return Lane(name, partial(self._decode, name), limits.batch_size, limits.batch_wait, room, count)

        self.fast, self.slow = lane("fast", limits.queue), lane("slow", limits.slow_queue)
        count = self.metrics.batch.labels("items").observe
        self.items: Lane[Change | None, Changed] = Lane(
            "items", self.bundle.work, limits.queue, 0.0, limits.queue, count
        )
        for name in ("fast", "slow", "items"):
            self.metrics.inside.labels(name)  # shown from the start
        self._threads = CapacityLimiter(PREPARING)
        self._watching = asyncio.create_task(self._watch())
        threading.Thread(target=self._open, name="llmrec-load", daemon=True).start()

    async def stop(self) -> None:
        """End the threads; none is waited for, as they are daemons and what they write is atomic."""
        self._watching.cancel()
        for lane in (self.fast, self.slow, self.items):
            lane.close()

    async def until_loaded(self) -> None:
        """Wait until the bundle is loaded, or has failed to load."""
        while not self.loaded.is_set() and self.failure is None:
            await asyncio.sleep(WATCH_SECONDS)

    @property
    def items_now(self) -> int:
        """Number of items of the catalogue; 0 while it is being loaded."""
        return len(self.bundle.recommender.catalog) if self.bundle.recommender else 0

    @property
    def recommender(self) -> Recommender:
        """The recommender as of now.

        Raises:
            ApiError: it is being loaded.
        """
        if self.bundle.recommender is None or not self.loaded.is_set():
            raise ApiError(503, "loading", "The model is being loaded; try again soon.", retry_after=2)
        return self.bundle.recommender

    def rankers(self, recommender: Recommender) -> dict[RankingName, ItemRanker]:
        """The rankings that requests can choose, the recommender's own first; built at the first use."""
        if recommender not in self._rankers:
            self._rankers[recommender] = _rankers(recommender)
        return self._rankers[recommender]

    async def recommend(
        self, recommender: Recommender, requests: Sequence[Request], listed: bool, ranking: RankingName | None = None
    ) -> list[Answer]:
        """The answers to several requests, in their order.

        Args:
            recommender: of this service.
            requests: at least one.
            listed: whether the client sent a list; a field in an error then begins with the place in it.
            ranking: one of `rankers`; None: the recommender's own.

        Raises:
            ApiError: a request is wrong or exceeds a limit, the queue is full, the deadline has passed, or the model is
                being loaded.
        """
        deadline = time.monotonic() + self.limits.deadline
        ranker = recommender.ranker
        if ranking is not None and ranking != ranker.name:
            ranker = await to_thread.run_sync(self._ranker, recommender, ranking, limiter=self._threads)
        if len(requests) > self.limits.requests:
            message = f"{len(requests):,} requests in a list, expected at most {self.limits.requests}."
            raise ApiError(422, "too_large", message)
        lanes = []
        for place, request in enumerate(requests):
            with _located(place, listed):
                self.limits.check(request)
                if request.exact and ranker.name != "beam":
                    message = f"exact: the ranking {ranker.name} has no exact search; leave exact out."
                    raise ApiError(422, "invalid_request", message, "exact")
            lanes.append(self.slow if self.limits.is_slow(request) else self.fast)

        message = f"No answer within {self.limits.deadline:g} s; ask for less, or try again later."
        late = ApiError(504, "deadline", message)

        async def one(place: int, request: Request) -> Answer:
            with _located(place, listed):
                job = partial(prepare, recommender.store, ranker, request)
                prepared = await to_thread.run_sync(job, limiter=self._threads)
                try:
                    return await lanes[place].ask(prepared, prepared.batch, deadline)
                except TimeoutError:
                    raise late from None

        with ExitStack() as places:
            for lane, jobs in Counter(lanes).items():
                places.enter_context(self._place(lane, jobs))
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.limits.deadline):
                    if len(requests) == 1:
                        return [await one(0, requests[0])]
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(one(place, request)) for place, request in enumerate(requests)]
            except TimeoutError:
                raise late from None
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            return [task.result() for task in tasks]

    async def change(self, change: Change) -> Changed:
        """Make a change of the catalogue; when this returns, it is on the disk, and the next request sees it.

        Raises:
            ApiError: the change is wrong or can't be written, the queue is full, the deadline has passed, or the model
                is being loaded.
        """
        _ = self.recommender
        with self._place(self.items, 1), _located(0, False):
            try:
                return await self.items.ask(change, "items", time.monotonic() + self.limits.deadline)
            except TimeoutError:
                message = f"Not finished within {self.limits.deadline:g} s; the change may still be made."
                raise ApiError(504, "deadline", message) from None

    def _ranker(self, recommender: Recommender, ranking: RankingName) -> ItemRanker:
        rankers = self.rankers(recommender)
        if ranking not in rankers:
            message = f"ranking {ranking}: this server has {', '.join(rankers)}."
            raise ApiError(422, "invalid_request", message, "ranking")
        return rankers[ranking]

    @contextmanager
    def _place(self, lane: Lane[Any, Any], jobs: int) -> Iterator[None]:
        """Places in a lane.

        Raises:
            ApiError: there are not enough.
        """
        inside = self.metrics.inside.labels(lane.name)
        with ExitStack() as stack:
            try:
                stack.enter_context(lane.place(jobs))
            except FullError as error:
                message = "Too many requests are waiting; try again later."
                raise ApiError(429, "queue_full", message, retry_after=error.seconds) from None
            inside.inc(jobs)
            try:
                yield
            finally:
                inside.dec(jobs)

    def _open(self) -> None:
        try:
            self.bundle.open()
            self.loaded.set()
        except BaseException as error:
            self.failure = error
            self._on_failure()

    async def _watch(self) -> None:
        """Look at the bundle on the disk now and then; read it again if it has changed."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                if self.loaded.is_set() and await to_thread.run_sync(self.bundle.changed):
                    await self.items.ask(None, "items", time.monotonic() + 3600)
            except Exception:
                log.exception("the bundle on the disk can't be read")

    def _decode(self, name: str, jobs: list[Prepared]) -> list[Answer]:
        """The work of the lanes fast and slow."""
        check = self.fast.require_callers
        if name == "slow":
            check, self._resumed = self._give_way, time.perf_counter()
        one_at_a_time = nullcontext() if isinstance(jobs[0].ranker.search, TreeSearch) else self._generate
        with one_at_a_time, before_each_pass(check):
            found = decoded(jobs)
        return finished(jobs, found)  # jobs of one batch have one ranker, and so one store

    def _give_way(self) -> None:
        """Before a forward pass of the slow lane: leave two thirds of the time to the fast lane while it is busy."""
        self.slow.require_callers()
        if self.fast.busy:
            time.sleep(min(2 * (time.perf_counter() - self._resumed), PAUSE))
        self._resumed = time.perf_counter()


def _rankers(recommender: Recommender) -> dict[RankingName, ItemRanker]:
    rankers = {recommender.ranker.name: recommender.ranker}
    for name in COMPARED:
        if name not in rankers and (name != "fusion" or recommender.fusion_weights is not None):
            with suppress(UserError):  # the model lacks what it needs
                rankers[name] = recommender.ranked_by(name)
    return rankers


@contextmanager
def _located(place: int, listed: bool) -> Iterator[None]:
    """Turn errors into ApiErrors whose field begins with the place in the list."""
    try:
        yield
    except UserError as error:
        raise ApiError(422, "invalid_request", str(error), _field(error.field, place, listed)) from None
    except FullError:  # the lane has been closed
        raise ApiError(503, "stopping", "The server is being stopped.", retry_after=5) from None
    except ApiError as error:
        error.field = _field(error.field, place, listed)
        raise


def _field(field: str | None, place: int, listed: bool) -> str | None:
    if not listed:
        return field
    return str(place) if field is None else f"{place}.{field}"
