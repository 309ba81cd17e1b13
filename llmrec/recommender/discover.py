"""Item discovery: semantic IDs that no item has and that the model would recommend, described in words.

A tuple of codes that is free in the catalogue and likely after somebody's history names an item that is missing. What
it would be like is told by the items whose reconstructions are nearest to the tuple's, and by the model itself. The
idea is that of section 6.2 of the survey of vector quantization for recommenders (arXiv 2405.03110).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from llmrec.console import track
from llmrec.decode.config import Scoring
from llmrec.decode.context import ItemHead
from llmrec.decode.search import BeamSearch, require_numbers
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.quantize.base import Quantizer
from llmrec.quantize.report.figures import Reconstruction, blocks, unit
from llmrec.quantize.report.report import telling_words
from llmrec.recommender.explain import say
from llmrec.recommender.recommender import Recommender


@dataclass(frozen=True)
class Neighbour:
    """An item near a free tuple of codes.

    Attributes:
        item_id: of the catalogue.
        title: its title.
        similarity: cosine of the two reconstructions; 1 for an item that the quantizer can't tell from the tuple.
    """

    item_id: str
    title: str
    similarity: float


@dataclass(frozen=True)
class Discovery:
    """A tuple of codes that no item has.

    Attributes:
        rank: from 1.
        semantic_id: the item tokens that an item there would have.
        codes: of the levels of content, without the level that tells colliding items apart.
        score: log-probability of the codes among all tuples, free or not; its mean over the histories.
        neighbours: the nearest items, nearest first.
        words: those that most tell the neighbours' titles from the others', best first.
        says: what the model makes of the tokens; None if it was not taught to put them into words.
    """

    rank: int
    semantic_id: str
    codes: list[int]
    score: float
    neighbours: list[Neighbour]
    words: list[str]
    says: str | None


def discover(
    recommender: Recommender,
    histories: Sequence[Sequence[str]] = (),
    prompt: str | None = None,
    k: int = 10,
    neighbours: int = 5,
) -> list[Discovery]:
    """The free tuples of codes that the model likes best for somebody, for a segment, or for a request in words.

    A beam search over all tuples, with the beams of `recommender.decode_config` at least k; a prefix below which all
    tuples are taken is left. With several histories the mean of their log-probabilities steers the search too.

    Args:
        recommender: whose model is asked.
        histories: item ids, oldest first; one list for each person of a segment.
        prompt: what is asked for, in words; with histories, after each of them.
        k: tuples at most.
        neighbours: items to describe each by, nearest by cosine of the reconstructions that the quantizer makes of
            codes: a bundle holds no other vectors of its items.

    Returns:
        Best first; fewer than k only if the beams reach no more.

    Raises:
        UserError: nothing to go by, an unknown item, k or neighbours below 1, or no tuple of codes is free.
    """
    for flag, number in (("--k", k), ("--neighbours", neighbours)):
        if number < 1:
            raise UserError(f"{flag} {number}: expected at least 1.")
    search, quantizer = recommender.ranker.search, recommender.item_tokenizer.quantizer
    requests = _requests(recommender, histories, prompt)
    content = recommender.item_tokenizer.codes[:, : quantizer.levels]
    used, tuple_of_item = np.unique(content, axis=0, return_inverse=True)
    if len(used) == math.prod(quantizer.level_sizes):
        raise UserError(
            f"All {len(used)} tuples of codes belong to items, so none is left to discover; a tokenizer with more "
            "codes or levels (--tokenize.codes, --tokenize.levels) leaves some."
        )
    codes, scores = free_tuples(search, requests, used, quantizer.level_sizes, max(k, search.config.beams))
    codes, scores = codes[:k], scores[:k]
    near, similar = nearest_items(quantizer, codes, used, tuple_of_item.reshape(-1), neighbours)
    return _described(recommender, codes, scores, near, similar)


def _requests(recommender: Recommender, histories: Sequence[Sequence[str]], prompt: str | None) -> list[list[int]]:
    """The token ids of one request per history, or of the words alone."""
    rows = [
        recommender.store.lookup.rows(history, "--history" if len(histories) == 1 else f"--histories, line {line}")
        for line, history in enumerate(histories, start=1)
    ]
    return [recommender.ranker.prompt_ids(history, prompt) for history in rows or [np.empty(0, np.int64)]]


@torch.inference_mode()
def free_tuples(
    search: BeamSearch, requests: Sequence[Sequence[int]], used: np.ndarray, level_sizes: Sequence[int], beams: int
) -> tuple[np.ndarray, np.ndarray]:
    """The free tuples that a beam search finds, by the mean over the requests of their log-probabilities.

    Args:
        search: of the model; only its model is used, which has item tokens for these levels at least.
        requests: token ids of the prompts.
        used: the distinct tuples of the items, int [M, L].
        level_sizes: C_l of the L levels.
        beams: K; exact if there are no more prefixes than that.

    Returns:
        Codes int64 [n, L] and scores float32 [n], n <= K, best first.

    Raises:
        NotNumbersError: the model's scores are not numbers.
    """
    # A softmax over the level's codes, unless the bundle's own scores are among the whole vocabulary.
    scoring: Scoring = "vocab" if search.config.scoring == "vocab" else "level"
    head = ItemHead(search.model, search.vocabulary, scoring, search.dtype)
    trie = ItemTrie.build(used, level_sizes).to(search.device)
    codes = torch.zeros((1, 0), dtype=torch.int64, device=search.device)
    nodes = torch.zeros(1, dtype=torch.int64, device=search.device)
    totals = torch.zeros(1, device=search.device)
    for level, size in enumerate(level_sizes):
        means = torch.zeros((len(codes), size), device=search.device)
        for prompt in track(requests, f"level {level + 1} of {len(level_sizes)}", total=len(requests)):
            means += _next_codes(search, head, prompt, codes) / len(requests)
        require_numbers(means, level, len(level_sizes))
        totals = totals[:, None] + means
        rows, children = trie.children(level, nodes)
        room = min(math.prod(level_sizes[level + 1 :]), len(used) + 1)  # more may be beyond 64 bits
        full = trie.counts(level, children) == room
        totals[rows[full], trie.codes(level, children[full])] = -torch.inf
        totals, best = totals.view(-1).topk(min(beams, totals.numel()))
        totals, best = totals[~totals.isneginf()], best[~totals.isneginf()]
        parent, code = best // size, best % size
        nodes = trie.step(level, nodes[parent], code)
        codes = torch.cat([codes[parent], code[:, None]], dim=1)
    return codes.cpu().numpy(), totals.cpu().numpy()


def _next_codes(search: BeamSearch, head: ItemHead, prompt: Sequence[int], codes: torch.Tensor) -> torch.Tensor:
    """Log-probabilities float32 [K, C] of the codes that may follow the prefixes `codes` int64 [K, l] of a prompt.

    The prompt runs once, its key/value cache serves all prefixes.
    """
    body, level = search.model.base_model, codes.shape[1]
    cache = DynamicCache(config=search.model.config)
    with torch.autocast(search.device.type, search.dtype, enabled=search.dtype != torch.float32):
        ids = torch.tensor([list(prompt)], device=search.device)
        hidden = body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        if level:
            ran = []
            tokens = torch.stack([head.tokens[at][codes[:, at]] for at in range(level)], dim=1)
            for some in tokens.split(search.config.batch_size):
                own = copy.deepcopy(cache)
                own.batch_repeat_interleave(len(some))
                ran.append(body(input_ids=some, past_key_values=own, use_cache=True).last_hidden_state[:, -1])
            hidden = torch.cat(ran)
    return head.level(hidden, level)


def nearest_items(
    quantizer: Quantizer, codes: np.ndarray, used: np.ndarray, tuple_of_item: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The items nearest to each of `codes` [n, L] by cosine of the reconstructions, nearest first.

    Args:
        quantizer: makes the reconstructions.
        codes: tuples of codes.
        used: the distinct tuples of the items, int [M, L].
        tuple_of_item: int64 [N], the row of `used` that each item has.
        k: items per tuple; all N if there are fewer.

    Returns:
        Items int64 [n, k] and cosines float32 [n, k]; items that share their codes are in catalogue order.
    """
    asked = unit(quantizer.decode(codes))
    parts = [asked @ unit(block).T for _, block in blocks(Reconstruction(quantizer, used))]
    cosines = np.concatenate(parts, axis=1)
    near = np.stack([np.argsort(-own[tuple_of_item], kind="stable")[:k] for own in cosines])
    return near, np.take_along_axis(cosines, tuple_of_item[near], axis=1)


def _described(
    recommender: Recommender, codes: np.ndarray, scores: np.ndarray, near: np.ndarray, similar: np.ndarray
) -> list[Discovery]:
    """What is to be told of the tuples `codes` [n, L], whose nearest items are `near` [n, k]."""
    ids, titles = recommender.catalog.ids, recommender.catalog.frame["title"].to_list()
    # The neighbours' titles once more, as groups of their own: an item may be a neighbour of several tuples.
    group = np.repeat(np.arange(len(codes) + 1), [len(titles), *[near.shape[1]] * len(codes)])
    words = telling_words([*titles, *(titles[item] for item in near.ravel())], group, len(codes) + 1)[1:]
    vocabulary = recommender.renderer.vocabulary
    told = "codes-to-item" in recommender.templates
    discoveries = []
    for row, tuple_ in enumerate(track(codes, "describing", total=len(codes))):
        # The first item with these codes gets rank 0 on the level that tells colliding items apart.
        whole = np.append(tuple_, [0] * (len(vocabulary.level_sizes) - len(tuple_)))
        semantic_id = vocabulary.text(whole.astype(np.int64))
        discoveries.append(
            Discovery(
                row + 1,
                semantic_id,
                tuple_.tolist(),
                float(scores[row]),
                [
                    Neighbour(ids[item], titles[item], float(cosine))
                    for item, cosine in zip(near[row], similar[row], strict=True)
                ],
                words[row],
                say(recommender, "codes-to-item", item=semantic_id) if told else None,
            )
        )
    return discoveries
