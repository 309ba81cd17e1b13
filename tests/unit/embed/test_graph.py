import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog, Interactions
from llmrec.embed import EmbedConfig, embed
from llmrec.embed.graph import smoothed, user_graph
from llmrec.errors import UserError

IDS = ["a", "b", "c", "d", "e"]
EVENTS = [("u", "a"), ("u", "b"), ("u", "a"), ("v", "b"), ("v", "c"), ("w", "d")]
LOG = Interactions.from_frame(pl.DataFrame(EVENTS, schema=["user_id", "item_id"], orient="row"))
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
R = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0]], float)


def test_the_graph_divides_by_both_degrees() -> None:
    by_user, by_item = np.array([2, 2, 1]), np.array([1, 2, 1, 1, 1])
    np.testing.assert_allclose(user_graph(LOG, IDS).toarray(), R / np.sqrt(np.outer(by_user, by_item)), rtol=1e-6)


def test_round_trips_are_lightgcns_layers() -> None:
    """LightGCN on the whole graph, with users that start at 0: odd layers give items nothing, and are left out here."""
    degrees = np.block([[np.zeros((3, 3)), R], [R.T, np.zeros((5, 5))]])
    scale = np.diag(np.maximum(degrees.sum(1), 1) ** -0.5)
    adjacency = scale @ degrees @ scale
    layers = [np.vstack([np.zeros((3, 3)), X])]
    for _ in range(4):
        layers.append(adjacency @ layers[-1])
    assert (layers[1][3:] == 0).all()
    expected = (layers[0] + layers[2] + layers[4])[3:] / 3
    found = smoothed(X, user_graph(LOG, IDS), 2, normalize=False)
    np.testing.assert_allclose(found[:4], expected[:4], rtol=1e-5, atol=1e-6)


def test_items_without_events_keep_their_vectors() -> None:
    for normalize in (True, False):
        np.testing.assert_array_equal(smoothed(X, user_graph(LOG, IDS), 3, normalize)[4], X[4])


def test_users_draw_their_items_together() -> None:
    found = smoothed(X, user_graph(LOG, IDS), 3, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(found[:4], axis=1), 1, rtol=1e-5)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert found[0] @ found[1] > unit[0] @ unit[1]
    np.testing.assert_allclose(found[3], unit[3], rtol=1e-5)  # the only item of its only user


def test_embed_smooths_if_asked() -> None:
    titles = ["red soap", "blue soap", "green brush", "red brush", "old razor"]
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": IDS, "title": titles}))
    config = EmbedConfig("tfidf-svd", dim=3)
    plain = embed(catalog, config).vectors
    asked = EmbedConfig("tfidf-svd", dim=3, graph_trips=2)
    np.testing.assert_array_equal(
        embed(catalog, asked, LOG).vectors, smoothed(plain, user_graph(LOG, IDS), 2, normalize=True)
    )
    assert "graph_trips" not in config.cache_key()
    assert asked.cache_key()["graph_trips"] == 2
    assert (asked.needs_log, config.needs_log) == (True, False)
    with pytest.raises(UserError, match=r"embed.graph_trips is 2, but there is no log"):
        embed(catalog, asked)
