"""The bundle that a server serves: it is loaded, its items change durably, and a change on the disk is noticed.

Readers take `LiveBundle.recommender`, which is never changed but replaced; so no change blocks them. `change_items`
writes a change: it is on the disk, as a whole, and read by all workers, before it is acknowledged. The same lock keeps
it apart from those of `llmrec add-items` and of other servers. Several changes that wait are written at once.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.atomic import MANIFEST
from llmrec.console import get_logger
from llmrec.data import Catalog
from llmrec.data.ids import rows_of
from llmrec.embed import GivenVectors
from llmrec.errors import UserError
from llmrec.model.tokens import token_names
from llmrec.recommender import bundle, hub
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.store import FILES, IfExists, ItemStore, change_items
from llmrec.serve.limits import ApiError
from llmrec.serve.workers import Peers

log = get_logger(__name__)

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and modification time of files."""
TRIES = 5
"""A bundle that changes while it is read is read again, so often at most."""
OTHERS_SECONDS = 5.0
"""Longest time that the acknowledgement of a change waits for the other workers to read it."""


@dataclass(frozen=True)
class Changed:
    """What a change of the catalogue did.

    Attributes:
        added: ids of the items that are new.
        updated: number of items whose text was replaced.
        removed: number of items that were removed.
        items: number of items of the catalogue afterwards.
        semantic_ids: of the added items.
    """

    added: list[str]
    updated: int
    removed: int
    items: int
    semantic_ids: dict[str, str]


@dataclass(frozen=True)
class AddItems:
    """A change that adds items, or replaces their text; the attributes are the arguments of `ItemStore.with_items`."""

    catalog: Catalog
    vectors: np.ndarray | None
    if_exists: IfExists

    def apply(self, store: ItemStore) -> ItemStore:
        """The store with the items.

        Raises:
            ApiError: an item is there already, or the items have no vectors and this server has no encoder.
            UserError: as `ItemStore.with_items`.
        """
        ids = self.catalog.ids
        there = np.flatnonzero(rows_of(store.catalog.frame["item_id"], ids) >= 0)
        if len(there) and self.if_exists == "refuse":
            message = (
                f"items: {ids[there[0]]!r:.80} is in the catalogue already; leave it out, or say if_exists update."
            )
            raise ApiError(409, "item_exists", message, "items")
        tokenizer = store.item_tokenizer
        by_hand = tokenizer.encoder is None or isinstance(tokenizer.encoder, GivenVectors)
        if self.vectors is None and (by_hand or tokenizer.unconfirmed):
            message = "vectors: this server has no encoder for the texts of items; give a vector for each item."
            raise ApiError(409, "no_encoder", message, "vectors")
        return store.with_items(self.catalog, self.vectors, self.if_exists)


@dataclass(frozen=True)
class RemoveItem:
    """A change that removes an item."""

    item_id: str

    def apply(self, store: ItemStore) -> ItemStore:
        """The store without the item.

        Raises:
            ApiError: there is no such item, or it is the last one.
        """
        if self.item_id not in store.catalog.index:
            raise unknown_item(self.item_id)
        if len(store.catalog) == 1:
            raise ApiError(409, "last_item", f"{self.item_id!r:.80} is the last item of the catalogue.", "item_id")
        return store.without_items([self.item_id])


Change = AddItems | RemoveItem


def unknown_item(item_id: str) -> ApiError:
    """The error for an item that the catalogue does not have."""
    return ApiError(404, "unknown_item", f"{item_id!r:.80}: no such item in the catalogue.", "item_id")


class LiveBundle:
    """A bundle that is served.

    Args:
        load: loads the recommender; may take minutes.
        folder: folder of its bundle, whose items can be changed; None if they can't.
        encoder: as for `Recommender.from_pretrained`.
        peers: the workers of this server.

    Attributes:
        recommender: as of now; None until `open` has ended.
    """

    def __init__(
        self,
        load: Callable[[], Recommender],
        folder: Path | None = None,
        encoder: str | None = None,
        peers: Peers | None = None,
    ) -> None:
        self.recommender: Recommender | None = None
        self.folder = None if folder is None else folder.resolve()
        self.encoder = encoder
        self._peers = peers or Peers([0])
        self._load = load
        self._items: Stamp = ()
        self._others: Stamp = ()
        self._writing = threading.Lock()

    def open(self) -> None:
        """Load the bundle, and build its ranker; errors are those of loading."""
        with self._writing:
            self._read(self._whole)
        self.refresh()  # from the report on, the changes of other workers wait for this one; not so those before

    def changed(self) -> bool:
        """Whether the bundle on the disk is another one than that which was read last."""
        return self.folder is not None and self._stamp([bundle.HEADER]) != self._items

    def refresh(self) -> None:
        """Read the bundle again if it has changed on the disk: only its items, if nothing else has changed.

        If it can't be read, the server goes on with what it has, and the log says why.
        """
        if not self.changed():
            return
        try:
            with self._writing:
                self._read(self._items_only if self._stamp(self._other_files()) == self._others else self._whole)
        except (UserError, OSError) as error:
            log.warning("the changed bundle can't be used: %s The server goes on with the one before.", error)
            self._items = self._stamp([bundle.HEADER])  # not again until the next change

    def work(self, changes: list[Change | None]) -> Sequence[Changed | Exception]:
        """Make changes in one write, then read what is on the disk; None only reads. The work of a lane.

        Returns:
            For each, what it did, or the error for which it was left out.
        """
        outcomes: list[Changed | Exception] = [Changed([], 0, 0, 0, {}) for _ in changes]
        if any(change is not None for change in changes):
            self._write(changes, outcomes)
        self.refresh()
        if any(change is not None for change in changes) and not self._peers.wait(self._state, OTHERS_SECONDS):
            log.warning("a worker has not read a change within %g s, which is on the disk", OTHERS_SECONDS)
        return outcomes

    @property
    def _state(self) -> int:
        """Modification time of the bundle that was read last, in nanoseconds; 1 for a bundle that is not local."""
        return self._items[0][3] if self._items else 1

    def _write(self, changes: list[Change | None], outcomes: list[Changed | Exception]) -> None:
        if self.folder is None:
            raise ApiError(409, "read_only", "The items of this server can't be changed; its bundle is not local.")

        prefix = self.recommender.base.token_prefix if self.recommender is not None else ""

        def change(store: ItemStore) -> ItemStore:
            self._share_encoder(store)
            for place, each in enumerate(changes):
                if each is not None:
                    try:
                        outcomes[place], store = _applied(each, store, prefix)
                    except (ApiError, UserError) as error:
                        outcomes[place] = error
            if not any(isinstance(each, Changed) for each in outcomes):
                raise _NothingToWriteError
            return store

        with self._writing:
            try:
                change_items(self.folder, None, change, self.encoder, by="serve", wait=True)
            except _NothingToWriteError:
                return
            except UserError as error:
                log.error("the items can't be changed: %s", error)
                raise ApiError(503, "not_written", "The change could not be written; nothing has changed.") from None

    def _read(self, read: Callable[[], Recommender]) -> None:
        """Replace the recommender by what `read` finds on the disk."""
        for left in reversed(range(TRIES)):
            before = self._stamp([bundle.HEADER]), self._stamp(self._other_files())
            try:
                recommender = read()
            except (UserError, OSError):
                if not left or before[0] == self._stamp([bundle.HEADER]):
                    raise
                continue
            if before == (self._stamp([bundle.HEADER]), self._stamp(self._other_files())):
                break
        self.recommender, (self._items, self._others) = recommender, before
        self._peers.report(self._state)

    def _whole(self) -> Recommender:
        recommender = self._load()
        _ = recommender.ranker  # built now, not at the first request
        return recommender

    def _items_only(self) -> Recommender:
        assert self.recommender is not None
        assert self.folder is not None
        store = ItemStore.load(self.folder, bundle.read_header(self.folder), self.encoder)
        self._share_encoder(store)
        return self.recommender.with_store(store)

    def _share_encoder(self, store: ItemStore) -> None:
        """Give a store that was just read the encoder in memory, which may have taken seconds to load."""
        if self.recommender is not None and self._stamp(self._other_files()) == self._others:
            store.item_tokenizer.encoder = self.recommender.item_tokenizer.encoder

    def _other_files(self) -> list[str]:
        """The files of the bundle that a change of its items keeps."""
        changing = {*FILES, bundle.HEADER, MANIFEST, hub.CARD}
        try:
            return [] if self.folder is None else sorted(set(hub.published_files(self.folder)) - changing)
        except OSError:  # the folder is being exchanged with another one
            return []

    def _stamp(self, names: Sequence[str]) -> Stamp:
        found = []
        for name in names:
            try:
                state = os.stat(self.folder / name) if self.folder is not None else None
            except OSError:
                state = None
            if state is not None:
                found.append((name, state.st_ino, state.st_size, state.st_mtime_ns))
        return tuple(found)


class _NothingToWriteError(Exception):
    """No change of a batch could be made."""


def _applied(change: Change, store: ItemStore, prefix: str) -> tuple[Changed, ItemStore]:
    """What a change did, and the new store."""
    new = change.apply(store)
    if isinstance(change, RemoveItem):
        return Changed([], 0, 1, len(new.catalog), {}), new
    rows = range(len(store.catalog), len(new.catalog))
    added = new.catalog.frame["item_id"][len(store.catalog) :].to_list()
    names = token_names(new.item_tokenizer.level_sizes, prefix)
    updated = len(change.catalog) - len(added)
    return Changed(added, updated, 0, len(new.catalog), new.semantic_ids(rows, names)), new
