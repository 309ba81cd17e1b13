"""The offline source: items and users told by phrases of item texts."""

import polars as pl

from llmrec.data import Catalog, Interactions
from llmrec.intentions import IntentionsConfig
from llmrec.intentions.reviews import extract


def test_every_item_and_user_is_told(catalog: Catalog, log: Interactions) -> None:
    found = extract(IntentionsConfig("extract", held_out_share=0), catalog, log)
    assert set(found.items) == set(catalog.ids)
    assert set(found.users) == {f"u{n}" for n in range(6)}
    assert found.held_out == {}
    assert all("roof rack" in " ".join(found.items[item]) for item in ("i1", "i7"))


def test_a_preference_is_what_the_items_share() -> None:
    titles = [
        "red wool socks",
        "blue wool socks",
        "grey wool socks",
        "red garden hose",
        "blue garden hose",
        "green lamp",
    ]
    titles += ["green roof rack", "lamp", "steel roof rack"]
    shop = Catalog.from_frame(pl.DataFrame({"item_id": [f"i{n}" for n in range(9)], "title": titles}))
    log = Interactions.from_frame(pl.DataFrame({"user_id": ["u"] * 4, "item_id": ["i0", "i1", "i2", "i3"]}))
    [preference] = extract(IntentionsConfig("extract"), shop, log).users["u"]
    assert preference.startswith("wool socks, ")


def test_held_out_phrases_are_not_learned(catalog: Catalog, log: Interactions) -> None:
    found = extract(IntentionsConfig("extract", held_out_share=0.9), catalog, log)
    assert found.held_out
    for item, [text] in found.held_out.items():
        learned = {word for told in found.items[item] for word in told.replace(",", "").split()}
        assert learned.isdisjoint(text.replace(",", "").split())


def test_limits(catalog: Catalog, log: Interactions) -> None:
    found = extract(IntentionsConfig("extract", per_item=1, per_user=0), catalog, log)
    assert {len(texts) for texts in found.items.values()} == {1}
    assert found.users == {}
    assert extract(IntentionsConfig("extract", per_item=0), catalog, log).items == {}
