"""Rows with a history and the next item ("windows"; MiniOneRec, RecBole): those of a user are joined to one sequence.

history    item
1          2
1 2        3       -> 1 2 3 4, also if the rows have another order
2 3        4       (here histories have at most two items)
"""

from collections import deque
from collections.abc import Iterator, Sequence

import polars as pl

from llmrec.console import get_logger
from llmrec.data.ids import id_column

log = get_logger(__name__)


def join_windows(windows: pl.DataFrame, source: str) -> pl.DataFrame:
    """The events of each user in time order.

    An item that stands in histories only, such as the first of a user, has the part of the event before it; the first
    has part 0 (train). A warning counts the windows that do not meet those before.

    Args:
        windows: a row per window: `user_id`, `history` (list of ids), `item_id`, and `part` (uint8). The parts are in
            time order, for each user.
        source: name of the data in messages.

    Returns:
        `user_id`, `item_id`, `part` (uint8), a row per event.

    Raises:
        UserError: for a missing id.
    """
    users = id_column(windows["user_id"], source).to_list()
    targets = id_column(windows["item_id"], source)
    histories = windows["history"].cast(pl.List(pl.String)).list.drop_nulls()
    lengths = histories.list.len().fill_null(0).to_list()
    ids = id_column(pl.concat([histories.explode().drop_nulls().alias("item_id"), targets]), source).to_list()
    by_user: dict[str, dict[int, list[list[str]]]] = {}
    at, first_target = 0, len(ids) - len(targets)
    for row, (user, length, part) in enumerate(zip(users, lengths, windows["part"], strict=True)):
        window = [*ids[at : at + length], ids[first_target + row]]
        by_user.setdefault(user, {}).setdefault(part, []).append(window)
        at += length
    longest = max(lengths, default=0)
    gaps = 0
    events: list[tuple[str, str, int]] = []
    for user, parts in by_user.items():
        sequence = _Sequence(longest)
        for part in sorted(parts):
            gaps += sequence.add(parts[part], part)
        events += ((user, item, part) for item, part in zip(sequence.items, sequence.known_parts(), strict=True))
    if gaps:
        log.warning("%s: %d windows do not meet the ones before; events between them are missing.", source, gaps)
    return pl.DataFrame(events, schema={"user_id": pl.String, "item_id": pl.String, "part": pl.UInt8}, orient="row")


class _Sequence:
    """The events of one user, from the windows added so far."""

    def __init__(self, longest: int) -> None:
        self.items: list[str] = []
        self.parts: list[int | None] = []  # None for an item that is in histories only
        self.longest = longest  # items of the longest history

    def add(self, windows: Sequence[list[str]], part: int) -> int:
        """Add the windows of one part; returns how many of them do not meet the ones before.

        Next comes the window whose history is the end of the sequence. If there is none, one that continues no other
        window comes, with the shortest history.
        """
        ends = {tuple(window[-self.longest :]) for window in windows}
        continues = [tuple(window[:-1]) in ends for window in windows]
        by_history: dict[tuple[str, ...], deque[int]] = {}
        for place, window in enumerate(windows):
            by_history.setdefault(tuple(window[:-1]), deque()).append(place)
        starts = iter(sorted(range(len(windows)), key=lambda place: (continues[place], len(windows[place]))))
        used = [False] * len(windows)
        gaps = 0
        for _ in windows:
            following = by_history.get(tuple(self.items[-self.longest :]), deque())
            while following and used[following[0]]:
                following.popleft()
            if following:
                place = following.popleft()
                self._append(windows[place][-1:], part)
            else:
                place = next(place for place in starts if not used[place])
                gaps += not self._extend(windows[place], part)
            used[place] = True
        return gaps

    def _extend(self, window: list[str], part: int) -> bool:
        """Add the events of a window that the sequence lacks; False if the window shares none with the sequence."""
        if (end := _end_of(window, self.items)) is not None:
            self.parts[end - 1] = part if self.parts[end - 1] is None else self.parts[end - 1]
        elif _end_of(window[:-1], self.items) is not None:
            self._append(window[-1:], part)
        else:
            overlaps = range(min(len(self.items), len(window)), 0, -1)
            overlap = next((size for size in overlaps if self.items[-size:] == window[:size]), 0)
            first = not self.items
            self._append(window[overlap:], part)
            return bool(overlap) or first
        return True

    def _append(self, items: list[str], part: int) -> None:
        self.items += items
        self.parts += [None] * (len(items) - 1) + [part]

    def known_parts(self) -> Iterator[int]:
        """The part of each event, not decreasing; an item that is in histories only has that of the event before."""
        latest = 0
        for part in self.parts:
            latest = max(latest, part or 0)
            yield latest


def _end_of(window: list[str], items: list[str]) -> int | None:
    """The position after the last occurrence of `window` in `items`, None if there is none; an empty one has none."""
    for end in range(len(items), len(window) - 1, -1):
        if items[end - len(window) : end] == window:
            return end if window else None
    return None
