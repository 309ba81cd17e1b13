"""Item discovery: semantic IDs that no item has and that the model would recommend, described in words.

A tuple of codes is free if no item of the catalogue has it. A free tuple that is likely after a user's history stands
for an item that the catalogue lacks. Up to three things describe that item: the items whose reconstructions are nearest
to the reconstruction of the tuple, the answer of the model to the tuple's item tokens, and the words of the tokenizer's
own text decoder, if it has one. The idea is from section 6.2 of the survey of vector quantization for recommenders
(arXiv 2405.03110).
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
from llmrec.model.architecture import cache_name, decoder_of, encoder_of
from llmrec.model.forward import answer_states
from llmrec.quantize.base import LikelyWord, Quantizer
from llmrec.quantize.report.figures import Reconstruction, blocks, unit
from llmrec.quantize.report.report import WORDS, telling_words
from llmrec.recommender.explain import say
from llmrec.recommender.recommender import Recommender


@dataclass(frozen=True)
class Neighbour:
    """An item near a free tuple of codes.

    Attributes:
        item_id: ID of the item in the catalogue.
        title: its title.
        similarity: cosine between the reconstruction of the item's codes and that of the tuple; 1 if they are equal.
    """

    item_id: str
    title: str
    similarity: float


@dataclass(frozen=True)
class Discovery:
    """A tuple of codes that no item has.

    Attributes:
        rank: from 1.
        semantic_id: the item tokens of the tuple.
        codes: the codes of the quantizer's levels, without the dedup level.
        score: log-probability of the codes among all tuples, free or not; the mean over the histories.
        neighbours: the nearest items, nearest first.
        words: the words that best distinguish the neighbours' titles from all titles, best first.
        says: the model's answer to the prompt `codes-to-item` for these tokens; None if the bundle lacks that prompt.
        text: the words that best distinguish the text of such an item from all texts, best first, by the tokenizer's
            text decoder (`ItemTokenizer.words_of`); None if it has none.
    """

    rank: int
    semantic_id: str
    codes: list[int]
    score: float
    neighbours: list[Neighbour]
    words: list[str]
    says: str | None
    text: list[LikelyWord] | None


def discover(
    recommender: Recommender,
    histories: Sequence[Sequence[str]] = (),
    prompt: str | None = None,
    k: int = 10,
    neighbours: int = 5,
) -> list[Discovery]:
    """The free tuples of codes with the highest log-probability for a user, a group of users, or a request in words.

    A beam search over all tuples of codes finds them, with max(k, `recommender.decode_config.beams`) beams. It drops a
    prefix if items have all tuples below it. For several histories, the score of a prefix is the mean of its
    log-probabilities over the histories.

    Args:
        recommender: the recommender whose model gives the log-probabilities.
        histories: one list of item ids per user, oldest first.
        prompt: the request in words; it is added to the prompt of each history.
        k: largest number of tuples.
        neighbours: number of items that describe a tuple: the nearest by cosine of the reconstructions that the
            quantizer makes from codes. A bundle holds no other vectors of its items.

    Returns:
        The tuples, best first; fewer than k only if the beams reach no more.

    Raises:
        UserError: there is neither a history nor a prompt, an item is unknown, k or neighbours is below 1, or no tuple
            of codes is free.
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
    """The token ids of one prompt per history, or of one prompt without a history if there are no histories."""
    rows: list[np.ndarray | None] = [
        recommender.store.lookup.rows(history, "--history" if len(histories) == 1 else f"--histories, line {line}")
        for line, history in enumerate(histories, start=1)
    ]
    return [recommender.ranker.prompt_ids(history, prompt) for history in rows or [None]]


@torch.inference_mode()
def free_tuples(
    search: BeamSearch, requests: Sequence[Sequence[int]], used: np.ndarray, level_sizes: Sequence[int], beams: int
) -> tuple[np.ndarray, np.ndarray]:
    """The free tuples that a beam search finds; the score of a tuple is its mean log-probability over the requests.

    Args:
        search: gives the model, its item tokens for at least these L levels, and the decode settings.
        requests: token ids of the prompts.
        used: the distinct tuples of the items, int [M, L].
        level_sizes: C_l of the L levels.
        beams: K. The search is exact if no level has more than K prefixes.

    Returns:
        Codes int64 [n, L] and scores float32 [n], n <= K, best first.

    Raises:
        NotNumbersError: the model's scores are not numbers.
    """
    # The softmax goes over the codes of the level, or over the whole vocabulary if the bundle is scored so.
    scoring: Scoring = "vocab" if search.config.scoring == "vocab" else "level"
    head = ItemHead(search.model, search.vocabulary, scoring, search.dtype)
    trie = ItemTrie.build(used, level_sizes).to(search.device)
    codes = torch.zeros((1, 0), dtype=torch.int64, device=search.device)
    nodes = torch.zeros(1, dtype=torch.int64, device=search.device)
    totals = torch.zeros(1, device=search.device)
    for level, size in enumerate(level_sizes):
        means = torch.zeros((len(codes), size), device=search.device)
        for prompt in track(requests, f"level {level + 1} of {len(level_sizes)}", unit="prompts"):
            means += _next_codes(search, head, prompt, codes) / len(requests)
        require_numbers(means, level, len(level_sizes))
        totals = totals[:, None] + means
        rows, children = trie.children(level, nodes)
        room = min(math.prod(level_sizes[level + 1 :]), len(used) + 1)  # the minimum, as the product can exceed 64 bits
        full = trie.counts(level, children) == room
        totals[rows[full], trie.codes(level, children[full])] = -torch.inf
        totals, best = totals.view(-1).topk(min(beams, totals.numel()))
        totals, best = totals[~totals.isneginf()], best[~totals.isneginf()]
        parent, code = best // size, best % size
        nodes = trie.step(level, nodes[parent], code)
        codes = torch.cat([codes[parent], code[:, None]], dim=1)
    return codes.cpu().numpy(), totals.cpu().numpy()


def _next_codes(search: BeamSearch, head: ItemHead, prompt: Sequence[int], codes: torch.Tensor) -> torch.Tensor:
    """Log-probabilities float32 [K, C] of the next code after each of the prefixes `codes` int64 [K, l], for a prompt.

    A decoder-only model runs once on the prompt; all prefixes use its key/value cache.
    """
    body, cached, level = decoder_of(search.model), cache_name(search.model), codes.shape[1]
    cache = DynamicCache(config=search.model.config)
    tokens = torch.empty_like(codes)
    for at in range(level):
        tokens[:, at] = head.tokens[at][codes[:, at]]
    with torch.autocast(search.device.type, search.dtype, enabled=search.dtype != torch.float32):
        if encoder_of(search.model) is not None:
            pieces = tokens.split(search.config.batch_size)
            ran = [
                answer_states(search.model, [prompt] * len(some), some, search.pad_token_id)[:, -1] for some in pieces
            ]
            return head.level(torch.cat(ran), level)
        ids = torch.tensor([list(prompt)], device=search.device)
        hidden = body(input_ids=ids, use_cache=True, **{cached: cache}).last_hidden_state[:, -1]
        if level:
            ran = []
            for some in tokens.split(search.config.batch_size):
                own = copy.deepcopy(cache)
                own.reorder_cache(torch.zeros(len(some), dtype=torch.int64, device=search.device))  # repeats its row
                for token in some.T:  # one at a time: recurrent layers read several only at the start
                    hidden = body(input_ids=token[:, None], use_cache=True, **{cached: own}).last_hidden_state[:, -1]
                ran.append(hidden)
            hidden = torch.cat(ran)
    return head.level(hidden, level)


def nearest_items(
    quantizer: Quantizer, codes: np.ndarray, used: np.ndarray, tuple_of_item: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The items nearest to each tuple of `codes` [n, L] by cosine of the reconstructions, nearest first.

    Args:
        quantizer: makes the reconstructions.
        codes: tuples of codes.
        used: the distinct tuples of the items, int [M, L].
        tuple_of_item: int64 [N], for each item the row of `used` that holds its codes.
        k: number of items per tuple; all N items if N < k.

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
    """The discoveries for the tuples `codes` [n, L] with the scores [n], nearest items `near` and cosines [n, k]."""
    ids, titles = recommender.catalog.ids, recommender.catalog.frame["title"].to_list()
    # The neighbours' titles are added again, one group per tuple: an item may be a neighbour of several tuples.
    group = np.repeat(np.arange(len(codes) + 1), [len(titles), *[near.shape[1]] * len(codes)])
    words = telling_words([*titles, *(titles[item] for item in near.ravel())], group, len(codes) + 1)[1:]
    vocabulary = recommender.renderer.vocabulary
    told = "codes-to-item" in recommender.templates
    texts = recommender.item_tokenizer.quantizer.words_of(codes, WORDS)
    discoveries = []
    for row, tuple_ in enumerate(track(codes, "describing", unit="codes")):
        # The dedup level gets code 0, as for the first item with these codes.
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
                None if texts is None else texts[row],
            )
        )
    return discoveries
