"""Align a trained recommender with preferences; the room `preference` has the methods."""

import tempfile
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from llmrec.atomic import make_folder
from llmrec.checks import check_argument
from llmrec.collaborative.teacher import Teacher
from llmrec.data import EvalExamples, Interactions
from llmrec.decode.choose import check_decoding
from llmrec.decode.ranker import ItemRanker
from llmrec.errors import UserError
from llmrec.model.adapter import reopened
from llmrec.model.architecture import context_length, encoder_of, unwrapped
from llmrec.preference.align import Validation, align
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.examples import feedback_examples, training_examples
from llmrec.preference.objectives import Material
from llmrec.preference.policy import Policy
from llmrec.preference.rewards import ExpertsReward, Reward
from llmrec.recommender.trained import Trained
from llmrec.train.trainer import spread_over_processes


def prefer(
    recommender: Trained,
    log: Interactions,
    validation: EvalExamples | None = None,
    config: PreferenceConfig | None = None,
    folder: str | Path | None = None,
    reward: Reward | None = None,
    teacher: Teacher | None = None,
) -> None:
    """Align the model in place. What the training trained is trained further: all weights, or the adapter.

    Args:
        recommender: trained.
        log: the events that the model was trained on.
        validation: examples for the guards; None: no guards, and the last model is kept.
        config: method and schedule; default: method s-dpo.
        folder: for checkpoints and the log; the alignment resumes from a checkpoint there. Default: a temporary folder.
        reward: method grpo: a function of (history, items, target), all ids, which returns a number per item; if
            `config.session` is above 1, one number for the list that the items are.
        teacher: of the same log and item tokenizer; needed for `config.reward` experts.

    Raises:
        UserError: the model can't be aligned, there is nothing to learn from, the reward fails, the teacher is missing
            or another log's, or `folder` holds another alignment.
    """
    check_argument("config", config, PreferenceConfig | None)
    config = config or PreferenceConfig("s-dpo")
    if config.method == "none":
        raise UserError("--preference.method none: expected s-dpo or grpo.")
    if reward is not None and config.method != "grpo":
        raise UserError(f"--preference.method {config.method} has no reward; set it to grpo.")
    by_experts = config.by_experts and reward is None
    if by_experts and teacher is None:
        raise UserError("--preference.reward experts needs a teacher; pass teacher=, or set it to ranked-hit.")
    if spread_over_processes():
        raise UserError(
            f"--preference.method {config.method} works where each process holds all weights, not under FSDP or "
            "ZeRO-3; use configs/accelerate/ddp.yaml or zero2.yaml, or set it to none."
        )
    model, store, renderer = recommender.model, recommender.store, recommender.renderer
    if encoder_of(unwrapped(model)) is not None:
        config.check_encoder_decoder("this model")
    decode = replace(recommender.decode_config, device=str(PartialState().device))
    pad = recommender.tokenizer.pad_token_id or 0
    support = check_decoding(model, renderer.vocabulary, store.trie, decode, pad)
    if support.no_tree is not None:
        raise UserError(
            f"--preference.method {config.method}: this model takes no tree attention mask ({support.no_tree}), which "
            "the alignment needs; set it to none."
        )
    # What is trained is float32, and the policy shares it; a merged bundle may hold its weights in two bytes.
    model = reopened(model) if hasattr(model, "peft_config") else model.float().requires_grad_(True)
    policy = Policy(model, renderer.vocabulary, store.trie, decode, pad, store.train_counts == 0)
    ranker = ItemRanker(renderer, policy, context_length(model))
    sequences = log.sequences(recommender.catalog)
    events = sequences.train_sequences()
    if config.feedback is None:
        examples = training_examples(events)
    else:
        examples = feedback_examples(config.feedback, sequences.users, events, recommender.catalog)
    examples, experts = examples.sample(config.examples, config.seed), None
    if by_experts and teacher is not None:
        first_codes = recommender.item_tokenizer.codes[:, 0]
        teacher.check(events, first_codes)
        experts = ExpertsReward(teacher, first_codes)
    material = Material(
        policy,
        {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad},
        {},
        [ranker.prompt_ids(history) for history in examples.histories],
        examples,
        sequences.train_counts(len(recommender.catalog)),
        recommender.catalog,
        config,
        experts,
    )
    guard = None
    validation = None if validation is None else validation.in_catalog(recommender.catalog.frame["item_id"])
    if validation is not None and len(validation):
        cases = validation.sample(config.validation_users, config.seed)
        prompts = [ranker.prompt_ids(history) for history in cases.histories]
        guard = Validation(cases, prompts, sum(len(each) > 0 for each in events), sequences.users)
    with tempfile.TemporaryDirectory() as temporary:
        align(material, guard, make_folder(folder or temporary), reward)
    recommender.model, recommender.preference = model.eval(), config.method
    recommender.fusion_weights = None  # they were learnt for other scores
    recommender.store = store  # the next request builds a new ranker
