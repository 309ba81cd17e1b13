"""The items of a recommender. Items can be added, updated and removed without training.

Weights and the codes of other items do not change. The encoder embeds the text of an added item, the item tokenizer
turns the vector into codes, and the trie gets these codes; then the item can be found and recommended. No step needs
the language model, so the items of a bundle change without loading it.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from llmrec.atomic import put_in_place, replacing, usual_modes
from llmrec.checks import checked
from llmrec.collaborative import fused
from llmrec.console import get_logger
from llmrec.data import Catalog
from llmrec.data.ids import id_list, rows_of
from llmrec.embed import GivenVectors, as_vectors, item_texts
from llmrec.errors import UserError
from llmrec.index.dense import DenseIndex
from llmrec.index.text import TextIndex
from llmrec.index.trie import ItemTrie
from llmrec.manifest import note_change
from llmrec.quantize.tokenizer import CODES, ItemTokenizer
from llmrec.recommender import bundle
from llmrec.recommender.request import ItemLookup

log = get_logger(__name__)


IfExists = Literal["refuse", "update"]


FILES = (bundle.INDEX, f"{bundle.QUANTIZER}/{CODES}", bundle.TRIE, bundle.DENSE, *fused.FILES)
"""The files of a bundle with data about single items."""


@dataclass(frozen=True)
class ItemStore:
    """All data about single items. Immutable: a change makes a new store.

    Attributes:
        catalog: N items.
        item_tokenizer: their semantic IDs, and the quantizer and encoder that make them.
        trie: the trie of these semantic IDs.
        train_counts: int64 [N], training events of each item; 0 for a cold item, which the model knows by its text.
        dense: the vectors of the items for the dense head; None for a model without one.
        experts: collaborative models and text neighbours that rank the same items, where the run has them.
    """

    catalog: Catalog
    item_tokenizer: ItemTokenizer
    trie: ItemTrie
    train_counts: np.ndarray
    dense: DenseIndex | None = None
    experts: fused.FusedExperts | None = None

    @classmethod
    def untrained(cls, catalog: Catalog, item_tokenizer: ItemTokenizer) -> Self:
        """The items of a model before its training.

        Raises:
            UserError: `catalog` and `item_tokenizer` do not list the same items in the same order.
        """
        if not item_tokenizer.ids.equals(catalog.frame["item_id"]):
            raise UserError(
                f"catalog: found {len(catalog)} items, expected the {len(item_tokenizer.ids)} of the item tokenizer in "
                "its order; fit the item tokenizer on this catalogue."
            )
        trie = ItemTrie.build(item_tokenizer.codes, item_tokenizer.level_sizes)
        return cls(catalog, item_tokenizer, trie, np.zeros(len(catalog), np.int64))

    @classmethod
    def load(
        cls, folder: Path, header: bundle.Header, encoder: str | None = None, image_encoder: str | None = None
    ) -> Self:
        """The items of the bundle in `folder`.

        Raises:
            UserError: a file can't be read, or the files don't belong together.
        """
        index = bundle.read_index(folder)
        catalog, events = Catalog(bundle.catalog_frame(index)), index[bundle.EVENTS].to_numpy()
        tokenizer = ItemTokenizer.load(folder / bundle.QUANTIZER, False, encoder, image_encoder)
        if not tokenizer.ids.equals(catalog.frame["item_id"]):
            raise UserError(f"{folder}: {bundle.INDEX} and {bundle.QUANTIZER}/{CODES} list other items.")
        if tokenizer.level_sizes != header.level_sizes:
            raise UserError(
                f"{folder}: levels of {header.level_sizes} codes in {bundle.HEADER}, of {tokenizer.level_sizes} "
                f"in {bundle.QUANTIZER}; they belong to different tokenizers."
            )
        dense = DenseIndex.load(folder / bundle.DENSE) if (folder / bundle.DENSE).exists() else None
        if dense is not None and len(dense) != len(catalog):
            raise UserError(
                f"{folder}: {len(dense)} items in {bundle.DENSE}, {len(catalog)} in {bundle.INDEX}; they belong to "
                "different bundles."
            )
        experts = fused.FusedExperts.load(folder) if (folder / fused.CONFIG).exists() else None
        if experts is not None and len(experts) != len(catalog):
            raise UserError(
                f"{folder}: {len(experts)} items in {fused.CONFIG}, {len(catalog)} in {bundle.INDEX}; they "
                "belong to different bundles."
            )
        return cls(catalog, tokenizer, _trie(folder, tokenizer), events, dense, experts)

    @cached_property
    def lookup(self) -> ItemLookup:
        """Finds the items that requests name."""
        return ItemLookup(self.catalog)

    @cached_property
    def behaviour_trie(self) -> ItemTrie | None:
        """The trie of the semantic IDs of behaviour, without the items that have none; None if no item has one."""
        second = self.item_tokenizer.behaviour
        if second is None or not second.known.any():
            return None
        rows = np.flatnonzero(~second.known)
        return ItemTrie.build(np.maximum(second.codes, 0), second.level_sizes).without_items(rows)

    @cached_property
    def text_index(self) -> TextIndex:
        """What finds the items by words; its vectors come from the encoder of the item tokenizer."""
        encoder = None if self.item_tokenizer.unconfirmed else self.item_tokenizer.encoder
        encode = None if encoder is None or isinstance(encoder, GivenVectors) else encoder.encode
        return TextIndex(lambda: self.catalog.texts(self.catalog.whole_text), encode)

    def save(self, folder: Path) -> None:
        """Write the `FILES` of a bundle, after removing the old ones: another folder may share them by hard links."""
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        bundle.write_index(
            self.catalog.ids, self.item_tokenizer.codes.tolist(), self.train_counts.tolist(), self.catalog.frame, folder
        )
        self.item_tokenizer.save_codes(folder / bundle.QUANTIZER)
        self.trie.save(folder / bundle.TRIE)
        if self.dense is not None:
            self.dense.save(folder / bundle.DENSE)
        if self.experts is not None:
            self.experts.save(folder)
        usual_modes(folder)
        if (folder / bundle.HEADER).exists():
            bundle.write_header(bundle.parse_header(folder), folder)

    @checked
    def with_items(self, catalog: Catalog, vectors: ArrayLike | None = None, if_exists: IfExists = "refuse") -> Self:
        """A store with the items of `catalog` too. Added items come last; all other items keep their codes and order.

        Args:
            catalog: n items. A field of the store that `catalog` lacks is empty for an added item and unchanged for an
                updated one. Fields that the store lacks are left out, and the log says so.
            vectors: floats [n, D], made as those of the fit were; default: the item tokenizer's encoder makes them.
            if_exists: for an item that the store already has, `refuse` raises an error. `update` replaces its text and
                keeps its codes, as the model knows the item by them.

        Raises:
            UserError: the store already has an item (`refuse`), an item has no text, there is neither an encoder nor
                vectors, the vectors are not [n, D] or not finite, or no free codes are left.
        """
        rows = rows_of(self.catalog.frame["item_id"], catalog.ids)
        old, new = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        if len(old) and if_exists == "refuse":
            raise UserError(
                f"item {catalog.ids[old[0]]!r} is in the catalogue already ({len(old)} such items); leave it out, or "
                "say --if-exists update to change its text"
            )
        added = self._with_our_fields(catalog, rows)
        by_text = self.dense is not None or self.experts is not None
        made = self._vectors(added, vectors, np.arange(len(catalog)) if by_text else new)
        tokenizer, trie, dense, experts = self.item_tokenizer, self.trie, self.dense, self.experts
        if len(new):
            tokenizer = tokenizer.with_items([catalog.ids[row] for row in new], made[new])
            trie = trie.with_items(tokenizer.codes[len(self.catalog) :])
        if dense is not None:
            dense = dense.with_texts(rows[old], made[old]).with_items(made[new])
        if experts is not None:
            experts = experts.with_texts(rows[old], made[old]) if len(old) else experts
            experts = experts.with_items(made[new]) if len(new) else experts
        train_counts = np.append(self.train_counts, np.zeros(len(new), np.int64))
        return replace(
            self,
            catalog=self.catalog.with_items(added, rows),
            item_tokenizer=tokenizer,
            trie=trie,
            train_counts=train_counts,
            dense=dense,
            experts=experts,
        )

    def without_items(self, item_ids: Sequence[str]) -> Self:
        """A store without these items; the others keep their order and codes.

        Raises:
            UserError: the store lacks one of the items, or no item would be left.
        """
        item_ids = id_list(item_ids, "--remove")
        gone = self.lookup.rows(item_ids, "--remove")
        stays = np.setdiff1d(np.arange(len(self.catalog)), gone)
        if not len(stays):
            raise UserError(f"--remove: nothing would be left of the {len(self.catalog)} items of the catalogue.")
        tokenizer = self.item_tokenizer.without_items(item_ids)
        return replace(
            self,
            catalog=self.catalog.take_rows(pl.Series(stays)),
            item_tokenizer=tokenizer,
            trie=ItemTrie.build(tokenizer.codes, tokenizer.level_sizes),
            train_counts=self.train_counts[stays],
            dense=self.dense.rows(stays) if self.dense is not None else None,
            experts=self.experts.of_rows(stays) if self.experts is not None else None,
        )

    def semantic_ids(self, rows: Iterable[int], names: Sequence[Sequence[str]]) -> dict[str, str]:
        """Item id -> semantic ID for the items in `rows`; `names[l][c]` is the token of code c of level l."""
        ids, codes = self.catalog.frame["item_id"], self.item_tokenizer.codes
        return {ids[row]: "".join(level[code] for level, code in zip(names, codes[row], strict=True)) for row in rows}

    def _with_our_fields(self, catalog: Catalog, rows: np.ndarray) -> Catalog:
        """The items of `catalog` with the fields of this store, in the order of this store's fields.

        `rows` int64 [n] has the row of each item in this store, or -1 for an added item.
        """
        unknown = [field for field in catalog.fields if field not in self.catalog.fields]
        if unknown:
            log.info("left out fields that the catalogue lacks: %s", ", ".join(unknown))

        def column(name: str) -> pl.Series:
            if name in catalog.frame.columns:
                return catalog.frame[name]
            ours = self.catalog.frame[name]
            return pl.Series(name, [ours[row] if row >= 0 else "" for row in rows.tolist()], pl.String)

        return Catalog(pl.DataFrame([column(name) for name in self.catalog.frame.columns]), catalog.images)

    def _vectors(self, added: Catalog, given: ArrayLike | None, wanted: np.ndarray) -> np.ndarray:
        """Vectors float32 [n, D] of the items in `added`: `given`, or else made by the encoder.

        The encoder makes vectors only for the rows `wanted`; all other rows are 0.
        """
        dims = self.item_tokenizer.dims
        if given is not None:
            vectors = np.asarray(as_vectors(given, "vectors", added.ids), np.float32)
            if vectors.shape[1] != dims:
                raise UserError(
                    f"vectors of shape {vectors.shape} for {len(added)} items; expected ({len(added)}, {dims}), "
                    f"since the item tokenizer was fitted on vectors of {dims} dimensions"
                )
            return vectors
        encoder = self.item_tokenizer.encoder
        if encoder is not None and not isinstance(encoder, GivenVectors):
            item_texts(added, encoder.config)  # raises if any item has no text
        if not len(wanted):
            return np.zeros((len(added), dims), np.float32)
        made = self._embedded(added.take_rows(pl.Series(wanted)))
        vectors = np.zeros((len(added), made.shape[1]), np.float32)
        vectors[wanted] = made
        return vectors

    def _embedded(self, added: Catalog) -> np.ndarray:
        """Vectors float32 [n, D] of items, by the item tokenizer's encoder."""
        vectors = self.item_tokenizer.embed(added)
        silent = np.flatnonzero(~vectors.any(axis=1))
        if len(silent):
            first = added.ids[silent[0]]
            log.warning(
                "%d items hold no word that the encoder knows, such as %r: their codes mean little", len(silent), first
            )
        return vectors


def change_items(
    model: str | Path,
    out: str | Path | None,
    change: Callable[[ItemStore], ItemStore],
    encoder: str | None = None,
    by: str = "add-items",
    wait: bool = False,
    image_encoder: str | None = None,
) -> tuple[ItemStore, ItemStore]:
    """Change the items of a bundle, in place or in a new folder. The change is atomic.

    Args:
        model: folder or Hub id of the bundle.
        out: folder for the new bundle; default: change the bundle in place.
        change: makes the new store from the old one.
        encoder: as for `ItemTokenizer.load`.
        by: the command that makes the change; the manifest of a stage records it.
        wait: wait for another process that changes the bundle, instead of raising.
        image_encoder: as for `ItemTokenizer.load`.

    Returns:
        The old store and the new one.

    Raises:
        UserError: there is no bundle, a bundle of the Hub is to be changed in place, `out` exists already, another
            process changes the bundle, a folder can't be written, or `change` raises it. Nothing has changed then.
    """
    if out is None and not os.path.isdir(model):
        raise UserError(
            f"--model {model}: no such folder; a bundle of the Hub is changed into a new one, named by --out."
        )
    folder = bundle.locate(model).resolve()
    target = folder if out is None else Path(out).resolve()
    if out is not None and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"--out {out}: is there already; name a new folder.")
    with replacing(target, wait) as sibling:
        old = ItemStore.load(folder, bundle.read_header(folder), encoder, image_encoder)
        new = change(old)
        try:
            if out is None:  # hard links: the weights are not copied
                shutil.copytree(folder, sibling, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
            else:
                shutil.copytree(folder, sibling, dirs_exist_ok=True)
            new.save(sibling)
            note_change(sibling, [*FILES, bundle.HEADER], by=by)
            put_in_place(sibling, target)
        except OSError as error:
            raise UserError(f"{target}: can't be written: {error}.") from None
    return old, new


def _trie(folder: Path, tokenizer: ItemTokenizer) -> ItemTrie:
    """The trie of a bundle; built from the codes if its file is missing."""
    path = folder / bundle.TRIE
    if not path.exists():
        return ItemTrie.build(tokenizer.codes, tokenizer.level_sizes)
    trie = ItemTrie.load(path)
    if not trie.matches_codes(tokenizer.codes):
        raise UserError(
            f"{folder}: {bundle.TRIE} has other semantic IDs than {bundle.QUANTIZER}/{CODES}; delete the trie, which "
            "only saves making it of these."
        )
    return trie
