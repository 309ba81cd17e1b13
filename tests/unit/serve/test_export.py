"""An export is read with nothing of llmrec, searched in plain Python, and ranks as our exact search does."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import torch
from loading import script
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from tokenizers.processors import TemplateProcessing

from llmrec.data import Catalog
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.adapter import with_adapter
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.model.tokens import ItemVocabulary
from llmrec.recommender.recommender import Recommender
from llmrec.serve.export import Target, export, next_tokens

HISTORY, QUERY = ["i3", "i7", "i12"], "A  gentle Soap"
Tree = dict[tuple[int, ...], list[int]]
"""Tokens of a prefix -> the tokens that may follow."""


@pytest.fixture
def opinionated(recommender: Recommender, tmp_path: Path) -> Recommender:
    """The tiny recommender from a bundle, with large random weights and two items that were added to it."""
    recommender.save_pretrained(tmp_path / "bundle")
    own = Recommender.from_pretrained(tmp_path / "bundle")
    own.decode_config = replace(own.decode_config, dtype="float32")
    torch.manual_seed(0)
    for parameter in own.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    added = pl.DataFrame({"item_id": ["new0", "new1"], "title": ["A soap for travels", "Lip balm with honey"]})
    return own.add_items(Catalog.from_frame(added.with_columns(brand=pl.lit(""), description=pl.lit("A gentle soap"))))


def scored(recommender: Recommender, scoring: Any) -> Recommender:
    recommender.decode_config = replace(recommender.decode_config, scoring=scoring)
    return recommender


def exact(recommender: Recommender, history: list[str] | None, query: str | None) -> dict[str, float]:
    """All items, best first, with their scores."""
    found = recommender.recommend(history, query, k=22, exact=True, include_seen=True)
    assert len(found) == 22
    return {item.item_id: item.score for item in found}


def require_same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-4)


# The reader: json, safetensors and transformers.


def items_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def prompt_of(folder: Path, history: list[str] | None, query: str | None) -> list[int]:
    from transformers import AutoTokenizer

    header = json.loads((folder / "export.json").read_text())
    text = {item["item_id"]: item["text"] for item in items_of(folder)}
    shown = "".join(text[item] for item in (history or [])[-header["max_history"] :])
    task = "sequential" if query is None else "search" if history is None else "personal-search"
    prompt = json.loads((folder / "prompts.json").read_text())[task]
    prompt = prompt.replace("{history}", shown).replace("{query}", " ".join((query or "").lower().split()))
    return list(AutoTokenizer.from_pretrained(folder)(prompt, add_special_tokens=False)["input_ids"])


def tree_of_table(folder: Path) -> Tree:
    table = load_file(folder / "trie.safetensors")
    tree: Tree = {}
    places: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for node, prefix in places:
        edges = range(*table["starts"][node : node + 2].tolist())
        places += [(edge + 1, (*prefix, int(table["tokens"][edge]))) for edge in edges]
        if edges:
            tree[prefix] = [int(table["tokens"][edge]) for edge in edges]
    return tree


def tree_of_sids(folder: Path) -> Tree:
    """From sid.json, with the token ids that FlashRec computes: the first, the sizes of the levels before, the code."""
    header = json.loads((folder / "export.json").read_text())
    words = dict(zip(header["command"], header["command"][1:], strict=False))
    first = int(words["--sid-token-range"].split(":")[0])
    sizes = [int(size) for size in words["--sid-codebook-sizes"].split(",")]
    offsets = np.cumsum([0, *sizes[:-1]]) + first
    tree: dict[tuple[int, ...], set[int]] = {}
    for key in json.loads((folder / "sid.json").read_text()):
        path = tuple((np.array(key.split(","), int) + offsets).tolist())
        for level, token in enumerate(path):
            tree.setdefault(path[:level], set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in tree.items()}


@torch.inference_mode()
def walked(
    folder: Path, tree: Tree, prompt: list[int], beams: int, softmax: Callable[[torch.Tensor, int], torch.Tensor]
) -> dict[str, float]:
    """Beam search over the checkpoint; `softmax` gives the log-probabilities [V] from the logits [V] and the level."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    living: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    while living[0][1] in tree:
        longer = []
        for score, tokens in living:
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
            values = softmax(logits, len(tokens))
            longer += [(score + float(values[token]), (*tokens, token)) for token in tree[tokens]]
        living = sorted(longer, reverse=True)[:beams]
    items = {tuple(item["token_ids"]): item["item_id"] for item in items_of(folder)}
    return {items[tokens]: score for score, tokens in living}


def over_vocabulary(logits: torch.Tensor, level: int) -> torch.Tensor:
    return logits.log_softmax(0)


# The tests.


@pytest.mark.parametrize(("history", "query"), [(HISTORY, None), (None, QUERY), (HISTORY, QUERY)])
def test_a_search_in_plain_python_ranks_as_ours(
    opinionated: Recommender, tmp_path: Path, history: list[str] | None, query: str | None
) -> None:
    expected = exact(scored(opinionated, "vocab"), history, query)
    header = export(opinionated, "vllm", tmp_path / "out")
    assert (header["items"], header["target"], header["dtype"]) == (22, "vllm", "float32")
    assert {"new0", "new1"} <= {item["item_id"] for item in items_of(tmp_path / "out")}
    tree, prompt = tree_of_table(tmp_path / "out"), prompt_of(tmp_path / "out", history, query)
    require_same(walked(tmp_path / "out", tree, prompt, 22, over_vocabulary), expected)


def test_greedy_search_finds_the_best_item_below_the_best_codes(opinionated: Recommender, tmp_path: Path) -> None:
    scored(opinionated, "vocab").decode_config.beams = 1
    best = opinionated.recommend(HISTORY, k=1, include_seen=True)[0]
    export(opinionated, "sglang", tmp_path / "out")
    tree, prompt = tree_of_table(tmp_path / "out"), prompt_of(tmp_path / "out", HISTORY, None)
    require_same(walked(tmp_path / "out", tree, prompt, 1, over_vocabulary), {best.item_id: best.score})


def test_flashrec_ranks_as_our_scoring_level(opinionated: Recommender, tmp_path: Path) -> None:
    """FlashRec's softmax is over the codes of the level (its `enable_per_codebook_lm_head`)."""
    expected = exact(scored(opinionated, "level"), HISTORY, QUERY)
    header = export(opinionated, "flashrec", tmp_path / "out")
    ends = np.cumsum(header["level_sizes"])

    def over_level(logits: torch.Tensor, level: int) -> torch.Tensor:
        first, size = header["first_token_ids"][level], header["level_sizes"][level]
        assert first + size == header["first_token_ids"][0] + ends[level]
        values = torch.full_like(logits, -torch.inf)
        values[first : first + size] = logits[first : first + size].log_softmax(0)
        return values

    tree, prompt = tree_of_sids(tmp_path / "out"), prompt_of(tmp_path / "out", HISTORY, QUERY)
    require_same(walked(tmp_path / "out", tree, prompt, 22, over_level), expected)


def test_an_adapter_is_merged(opinionated: Recommender, tmp_path: Path) -> None:
    adapted = with_adapter(opinionated.model, opinionated.renderer.vocabulary.all_ids, AdapterConfig(rank=2))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    opinionated.model = adapted
    expected = exact(scored(opinionated, "vocab"), HISTORY, None)
    export(opinionated, "vllm", tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))
    tree, prompt = tree_of_table(tmp_path / "out"), prompt_of(tmp_path / "out", HISTORY, None)
    require_same(walked(tmp_path / "out", tree, prompt, 22, over_vocabulary), expected)


def test_weights_in_bfloat16(opinionated: Recommender, tmp_path: Path) -> None:
    assert export(opinionated, "sglang", tmp_path / "out", "bfloat16")["dtype"] == "bfloat16"
    tensors = load_tensors(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("target", get_args(Target))
def test_prompts_in_a_chat_format(opinionated: Recommender, tmp_path: Path, target: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = opinionated.tokenizer
    tokenizer.chat_template = "{% for message in messages %}<|end|>{{ message['content'] }}<|end|>{% endfor %}"
    expected = [list(opinionated.ranker.phrased([3, 7, 12], query)[0]) for query in (None, QUERY)]
    export(opinionated, target, tmp_path / "out")
    assert [prompt_of(tmp_path / "out", HISTORY, query) for query in (None, QUERY)] == expected
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    said = again.apply_chat_template([{"role": "user", "content": "Answer: "}], tokenize=False)
    assert said == ("Answer: " if target == "flashrec" else "<|end|>Answer: <|end|>")


def test_prompts_begin_with_the_token_that_the_tokenizer_puts_there(opinionated: Recommender, tmp_path: Path) -> None:
    tokenizer = opinionated.tokenizer
    tokenizer.bos_token = tokenizer.eos_token
    front = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    tokenizer.backend_tokenizer.post_processor = front
    expected = list(opinionated.ranker.phrased([3, 7, 12])[0])
    assert expected[0] == tokenizer.bos_token_id
    export(opinionated, "vllm", tmp_path / "out")
    assert prompt_of(tmp_path / "out", HISTORY, None) == expected


def test_configurations_speak_to_transformers_4_as_well(opinionated: Recommender, tmp_path: Path) -> None:
    opinionated.tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    opinionated.model.config.rope_parameters["rope_theta"] = 12345.0
    export(opinionated, "flashrec", tmp_path / "out")
    config, tokenizer = (
        json.loads((tmp_path / "out" / name).read_text()) for name in ("config.json", "tokenizer_config.json")
    )
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 12345.0
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["additional_special_tokens"] == ["<|user|>"]
    assert "extra_special_tokens" not in tokenizer


def test_the_table_of_next_tokens() -> None:
    """0: the root; 1, 2: its children, by the tokens 10 and 12; 3, 4: those of 1; 5: that of 2."""
    trie = ItemTrie.build(np.array([[0, 1], [2, 0], [0, 3], [0, 1]]), [3, 4])
    vocabulary = ItemVocabulary([], [np.arange(10, 13), np.arange(20, 24)])
    table = next_tokens(trie, vocabulary)
    assert table["starts"].tolist() == [0, 2, 4, 5, 5, 5, 5]
    assert table["tokens"].tolist() == [10, 12, 21, 23, 20]
    assert {array.dtype for array in table.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("target", get_args(Target))
def test_encoder_decoders_are_refused(recommender: Recommender, tmp_path: Path, target: Any) -> None:
    config = BaseConfig(architecture="t5", hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    own = Recommender.from_base(None, recommender.item_tokenizer, config=config)
    with pytest.raises(UserError, match=rf"target {target}: the model is an encoder-decoder \(t5\)"):
        export(own, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "of the type llama"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"scales .* \(yarn\)"),
    ],
)
def test_what_flashrec_does_not_run_is_refused(
    opinionated: Recommender, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    class Config:
        is_encoder_decoder, model_type, rope_parameters = False, "qwen3", {"rope_type": "default"}

    for name, value in change.items():
        setattr(Config, name, value)
    opinionated.model.config = Config()
    with pytest.raises(UserError, match=said):
        export(opinionated, "flashrec", tmp_path / "out")


def test_a_folder_with_files_is_left_alone(opinionated: Recommender, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out .*exists already"):
        export(opinionated, "vllm", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


# The client, against a stand-in for vLLM that computes what the fields of a completion request ask for.


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of the stand-in."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing to the terminal."""

        @torch.inference_mode()
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (self.path, body["max_tokens"], body["temperature"]) == ("/v1/completions", 1, 1.0)
            assert body["return_tokens_as_token_ids"] is True
            allowed = torch.tensor(body["allowed_token_ids"])
            values = model(torch.tensor([body["prompt"]])).logits[0, -1, allowed].float().log_softmax(0)
            best = values.topk(body["logprobs"])
            tops = {f"token_id:{allowed[at]}": float(values[at]) for at in best.indices.tolist()}
            content = json.dumps({"choices": [{"logprobs": {"top_logprobs": [tops]}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_client_ranks_as_our_scoring_catalogue(opinionated: Recommender, tmp_path: Path) -> None:
    opinionated.store = replace(opinionated.store, train_counts=np.ones(22, np.int64))  # all are warm
    expected = exact(scored(opinionated, "catalogue"), HISTORY, QUERY)
    export(opinionated, "vllm", tmp_path / "out")
    client = script("vllm_client")
    out = client.Export(tmp_path / "out")
    with serving(tmp_path / "out") as url:
        found = client.recommend(out, url, out.prompt(HISTORY, QUERY), k=22, beams=22)
    require_same(dict(found), expected)
