"""The loss among the codes of a level, or among the items, equals that computed from the logits of the vocabulary."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM, PhiConfig, PhiForCausalLM

from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.adapter import add_item_rows, with_adapter
from llmrec.model.config import AdapterConfig
from llmrec.model.tokens import ItemVocabulary
from llmrec.tasks.examples import Sequential
from llmrec.tasks.mixture import Collator, predicting
from llmrec.tasks.render import Example
from llmrec.train.levels import LevelSoftmax
from llmrec.train.objective import Objective


def inputs(batch):
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def expected(model, batch, vocabulary):
    """The same loss from the logits of the whole vocabulary, one target after the other."""
    where = predicting(batch["labels"])
    logits, targets = model(**inputs(batch)).logits[where], batch["labels"].roll(-1, dims=1)[where]
    losses = []
    for row, target in zip(logits, targets, strict=True):
        level = next((torch.from_numpy(ids) for ids in vocabulary.ids if int(target) in ids), torch.arange(len(row)))
        losses.append(cross_entropy(row[level][None], (level == target).nonzero()[0]))
    return torch.stack(losses).mean()


def ours(model, batch, vocabulary):
    objective = Objective(levels=LevelSoftmax(model, vocabulary))
    with objective.reading():
        outputs = model(**inputs(batch), logits_to_keep=predicting(batch["labels"]))
    return objective(outputs, batch["labels"])


def among_items(logits, targets, vocabulary, codes):
    """-log p of each target item, from logits [P, V] at the tokens of items alone: each code against the codes by which
    the items with this prefix go on, found by comparing all prefixes."""
    tokens = vocabulary.token_ids(codes)
    losses = []
    for place in range(0, len(targets), codes.shape[1]):
        item = targets[place : place + codes.shape[1]].tolist()
        loss = torch.zeros(())
        for level in range(len(item)):
            below = (tokens[:, :level] == item[:level]).all(axis=1)
            rivals = sorted(set(tokens[below, level].tolist()))
            row = logits[place + level][torch.tensor(rivals)]
            loss = loss + row.logsumexp(0) - row[rivals.index(item[level])]
        losses.append(loss)
    return torch.stack(losses)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def phi(shop):
    """A model whose head is untied and has a bias."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    size = len(shop.renderer.tokenizer)
    model = PhiForCausalLM(PhiConfig(vocab_size=size, bos_token_id=0, eos_token_id=1, **sizes))
    torch.nn.init.normal_(model.lm_head.bias)
    add_item_rows(model, shop.renderer.vocabulary.all_ids, size, seed=0)
    return model


@pytest.mark.parametrize("among_items", [False, True])
def test_it_follows_the_model_to_another_device(make_shop, among_items):
    """Trainer moves the model to the GPU after the loss is made. The device "meta" stands for a GPU."""
    shop = make_shop()
    vocabulary = shop.renderer.vocabulary
    tries = [ItemTrie.build(shop.codes, vocabulary.level_sizes)] if among_items else []
    softmax = LevelSoftmax(shop.model, vocabulary, tries)
    shop.model.to("meta")
    states = torch.zeros(6, shop.model.config.hidden_size, device="meta")
    at = torch.zeros(2, dtype=torch.int64, device="meta")
    here = [at] * len(vocabulary.ids)
    total, _ = softmax.of_positions(states, torch.zeros(6, dtype=torch.int64, device="meta"), at, here)
    devices = {total.device.type, softmax.ids.device.type, softmax.place.device.type}
    assert devices | {trie.order.device.type for trie in softmax.tries} == {"meta"}


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_it_is_the_loss_within_the_level(shop, batch, lora, untied):
    vocabulary = shop.renderer.vocabulary
    model = phi(shop) if untied else shop.model
    if lora:
        model = with_adapter(model, vocabulary.all_ids, AdapterConfig(rank=2, dropout=0.0))
    model.eval()
    plain = expected(model, batch, vocabulary)
    loss = ours(model, batch, vocabulary)
    torch.testing.assert_close(loss, plain)
    stock, fast = gradients(model, plain), gradients(model, loss)
    assert stock.keys() == fast.keys()
    for name, gradient in stock.items():
        torch.testing.assert_close(fast[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_model_returns_logits_again_afterwards(shop, batch):
    before = shop.model.eval()(**inputs(batch)).logits
    ours(shop.model, batch, shop.renderer.vocabulary)
    assert torch.equal(shop.model(**inputs(batch)).logits, before)


def test_capped_logits_are_refused(shop):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=64, num_key_value_heads=1, head_dim=8, **sizes))
    with pytest.raises(UserError, match=r"train.softmax: Gemma2ForCausalLM caps its logits"):
        LevelSoftmax(model, shop.renderer.vocabulary)


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_words_and_codes_are_learnt_in_mixed_precision(shop, untied, weights):
    """accelerate gives back float32 states whatever the frozen weights are; the batch has words and item tokens."""
    vocabulary = shop.renderer.vocabulary
    examples = [Example("", "soap balm", ends=True), Example("soap", "<a_1><b_2>", ends=False)]
    batch = Collator(shop.renderer, 160)(examples)
    model = phi(shop) if untied else shop.model
    model = with_adapter(model.to(weights), vocabulary.all_ids, AdapterConfig(rank=2, dropout=0.0)).eval()
    plain = expected(model.float(), batch, vocabulary)
    model.get_base_model().to(weights)
    level = LevelSoftmax(model, vocabulary)
    where = predicting(batch["labels"])
    with level.hidden_states(), torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.bfloat16):
        states = model(**inputs(batch), logits_to_keep=where).logits.float()
    loss, scores = level(states, batch["labels"].roll(-1, dims=1)[where])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(loss / int(where.sum()), plain, rtol=2e-2 if weights == torch.bfloat16 else 1e-5, atol=0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def items_alone(shop):
    """A batch of histories whose every item but the first is a target, and no words."""
    task = Sequential(shop.renderer, shop.sequences, every_item=True)
    rng = np.random.default_rng(0)
    return Collator(shop.renderer, 160, packed=True)([task.example(row, rng) for row in range(0, len(task), 3)])


@pytest.mark.parametrize("lora", [False, True])
def test_among_items_it_is_minus_log_p_of_the_item(shop, lora):
    """With a trie, the losses of an item's codes sum to what the exact ranking of all items would give it."""
    vocabulary, codes = shop.renderer.vocabulary, shop.renderer.codes
    model = with_adapter(shop.model, vocabulary.all_ids, AdapterConfig(rank=2, dropout=0.0)) if lora else shop.model
    model.eval()
    batch = items_alone(shop)
    where = predicting(batch["labels"])
    logits, targets = model(**inputs(batch)).logits[where], batch["labels"].roll(-1, dims=1)[where]
    plain = among_items(logits, targets, vocabulary, codes).sum() / len(targets)
    level = LevelSoftmax(model, vocabulary, [ItemTrie.build(codes, vocabulary.level_sizes)])
    objective = Objective(levels=level)
    with objective.reading():
        outputs = model(**inputs(batch), logits_to_keep=where)
    loss = objective(outputs, batch["labels"])
    torch.testing.assert_close(loss, plain)
    stock, fast = gradients(model, plain), gradients(model, loss)
    for name, gradient in stock.items():
        torch.testing.assert_close(fast[name], gradient, rtol=1e-4, atol=1e-6)


def test_words_beside_items_keep_the_vocabulary(shop, batch):
    """In a trie of all possible codes each code has all rivals: the loss is that of the level. Words are as before."""
    vocabulary = shop.renderer.vocabulary
    all_codes = np.stack(np.meshgrid(*map(np.arange, vocabulary.level_sizes), indexing="ij"), axis=-1)
    trie = ItemTrie.build(all_codes.reshape(-1, len(vocabulary.level_sizes)), vocabulary.level_sizes)
    level = LevelSoftmax(shop.model.eval(), vocabulary, [trie])
    where = predicting(batch["labels"])
    with level.hidden_states():
        states = shop.model(**inputs(batch), logits_to_keep=where).logits
    loss, _ = level(states, batch["labels"].roll(-1, dims=1)[where])
    torch.testing.assert_close(loss / int(where.sum()), expected(shop.model, batch, vocabulary))


def test_each_of_two_streams_has_its_own_trie(shop):
    """Items of both streams stand in one batch; each is normalised among the items of its own stream."""
    names, ids = [["a", "b"], ["c", "d"], ["e", "f", "g"]], [np.array([2, 3]), np.array([4, 5]), np.array([6, 7, 8])]
    one, two = np.array([[0, 0], [0, 1], [1, 1]]), np.array([[0], [2]])
    tries = [ItemTrie.build(one, [2, 2]), ItemTrie.build(two, [3])]
    level = LevelSoftmax(shop.model.eval(), ItemVocabulary(names, ids), tries)
    torch.manual_seed(0)
    states = torch.randn(6, shop.model.config.hidden_size)
    targets = torch.tensor([8, 2, 5, 1, 3, 5])  # item 1 of the second stream, item 1 of the first, a word, item 2
    loss, _ = level(states, targets)
    logits = shop.model.get_output_embeddings()(states)

    def nll(row, target, *rivals):
        return logits[row][list(rivals)].logsumexp(0) - logits[row][target]

    word = logits[3].logsumexp(0) - logits[3][1]
    plain = nll(0, 8, 6, 8) + nll(1, 2, 2, 3) + nll(2, 5, 4, 5) + word + nll(4, 3, 2, 3)  # after 1 there is only 1
    torch.testing.assert_close(loss, plain)
