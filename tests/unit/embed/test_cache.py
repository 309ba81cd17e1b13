import tracemalloc

import numpy as np
import pytest

from llmrec.embed.encoder import VectorCache
from llmrec.errors import UserError


def test_kept_across_instances_and_apart_by_identity(tmp_path):
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    VectorCache(str(tmp_path), "one").add(["a", "b", "ü\n"], vectors)
    again = VectorCache(str(tmp_path), "one")
    assert again.missing(["b", "c", "a", "c", "d"]) == ["c", "d"]
    np.testing.assert_array_equal(again.get(["ü\n", "a", "ü\n"]), vectors[[2, 0, 2]])
    assert VectorCache(str(tmp_path), "other").missing(["a"]) == ["a"]


def test_shards_add_up(tmp_path):
    cache = VectorCache(str(tmp_path), "one")
    for number, text in enumerate("abc"):
        cache.add([text], np.full((1, 2), number, np.float32))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert VectorCache(str(tmp_path), "one").get(list("cab"))[:, 0].tolist() == [2, 0, 1]


def test_only_the_shards_that_are_asked_for_are_read(tmp_path):
    shards = 16
    for number in range(shards):
        texts = [f"{number} {row}" for row in range(200)]
        VectorCache(str(tmp_path), "one").add(texts, np.full((200, 256), number, np.float32))
    tracemalloc.start()
    try:
        cache = VectorCache(str(tmp_path), "one")
        found = cache.get(["7 3"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, np.full((1, 256), 7))
    assert peak < shards * 200 * 256 * 4 / 2


def test_a_half_written_shard_is_not_read(tmp_path):
    VectorCache(str(tmp_path), "one").add(["a"], np.ones((1, 2), np.float32))
    (tmp_path / "one" / "0123.99.partial").write_bytes(b"half")
    assert VectorCache(str(tmp_path), "one").missing(["a", "b"]) == ["b"]


def test_a_broken_shard_is_named(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors: not a readable cache file .* delete it"):
        VectorCache(str(tmp_path), "one")


def test_the_environment_names_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path))
    assert VectorCache(None, "one").folder == tmp_path / "one"
