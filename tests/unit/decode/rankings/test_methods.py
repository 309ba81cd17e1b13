"""Which method a name, a bundle and a configuration lead to, and what is refused before anything runs."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from second_stream import second_renderer, stream_of

from llmrec.collaborative.config import ExpertsConfig
from llmrec.collaborative.fusion import Best
from llmrec.config import Config
from llmrec.decode.behaviour import BehaviourStream
from llmrec.decode.config import TWO_STREAMS, WITHOUT_HEAD, DecodeConfig, RankingName
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.ranker import METHODS, make_ranking
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig
from llmrec.model.config import DenseConfig
from llmrec.quantize.config import TokenizeConfig
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig

HEADED = [name for name in METHODS if name not in WITHOUT_HEAD]


@pytest.fixture
def search(deep) -> TreeSearch:
    return TreeSearch(deep.model, deep.vocabulary, deep.trie, DecodeConfig(dtype="float32"))


def refused(match, make):
    with pytest.raises(UserError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_every_name_has_its_method():
    assert set(METHODS) == set(get_args(RankingName))
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}


def test_auto_is_the_fusion_where_it_is_calibrated(search, facts):
    chosen = {
        "all": facts,
        "no weights": replace(facts, fusion_weights=None),
        "no head": replace(facts, dense=None),
        "neither": replace(facts, dense=None, fusion_weights=None),
    }
    names = {what: make_ranking(search, known, search.config).name for what, known in chosen.items()}
    assert names == {"all": "fusion", "no weights": "beam", "no head": "beam", "neither": "beam"}


@pytest.fixture
def stream(deep, search) -> BehaviourStream:
    return stream_of(search, second_renderer(deep, np.array([3])))


@pytest.mark.parametrize("best", get_args(Best))
def test_auto_is_what_validation_found_best(search, facts, experts, stream, best):
    known = replace(facts, experts=experts, fusion_weights=replace(facts.fusion_weights, best=best))
    two = replace(known, behaviour=stream)
    assert make_ranking(search, two, search.config).name == best
    assert make_ranking(search, replace(known, dense=None), search.config).name == "beam"
    assert make_ranking(search, replace(two, dense=None), search.config).name == "streams"


def test_auto_without_the_trie_is_the_beams(search, facts, stream):
    for known in (facts, replace(facts, behaviour=stream, fusion_weights=None)):
        assert make_ranking(search, known, DecodeConfig(constraint="level")).name == "beam"


@pytest.mark.parametrize("name", METHODS)
def test_the_configuration_names_one_and_an_argument_another(search, facts, experts, stream, name):
    facts = replace(facts, experts=experts, behaviour=stream)
    assert make_ranking(search, facts, DecodeConfig(ranking=name)).name == name
    assert make_ranking(search, facts, DecodeConfig(ranking="beam"), name).name == name


@pytest.mark.parametrize("name", HEADED)
def test_a_model_without_dense_head_is_refused_at_once(search, facts, name):
    bare = replace(facts, dense=None)
    refused(
        rf"decode\.ranking {name}: this model has no dense head; train it with train\.dense\.weight 1, or choose",
        lambda: make_ranking(search, bare, DecodeConfig(ranking=name)),
    )


def test_experts_that_are_not_there_are_refused_at_once(search, facts):
    refused(
        r"decode\.ranking experts: this bundle has no experts; name them in experts\.models",
        lambda: make_ranking(search, facts, DecodeConfig(ranking="experts")),
    )
    refused(
        r"decode\.ranking experts: there are none; name them in experts\.models",
        lambda: Config(decode=DecodeConfig(ranking="experts")),
    )
    models = ExpertsConfig(models=["popularity"])
    Config(decode=DecodeConfig(ranking="experts"), experts=models)
    refused(
        r"evaluate\.rankings experts: they are measured wherever there are any",
        lambda: Config(evaluate=EvaluateConfig(rankings=["experts"]), experts=models),
    )


@pytest.mark.parametrize("name", TWO_STREAMS)
def test_a_stream_that_is_not_there_is_refused_at_once(search, facts, name):
    refused(
        rf"decode\.ranking {name}: this bundle has no codes of behaviour; train it with tokenize\.behaviour 64",
        lambda: make_ranking(search, facts, DecodeConfig(ranking=name)),
    )
    for config in ({"decode": DecodeConfig(ranking=name)}, {"evaluate": EvaluateConfig(rankings=[name])}):
        refused(rf"{name} needs codes of behaviour; set tokenize\.behaviour 64", lambda config=config: Config(**config))
        Config(**config, tokenize=TokenizeConfig(behaviour=64))
    refused(
        r"tokenize\.behaviour 64: the task sequential teaches the codes of behaviour; give it a rate",
        lambda: Config(tokenize=TokenizeConfig(behaviour=64), tasks=TasksConfig({"search": 1})),
    )


@pytest.mark.parametrize("name", ["cascade", "specgr", "fusion"])
def test_a_model_without_tree_masks_is_refused(deep, facts, prompts, name):
    search = GenerateSearch(deep.model, deep.vocabulary, deep.trie, DecodeConfig(dtype="float32"))
    method = make_ranking(search, facts, search.config, name)
    refused(rf"decode\.ranking {name} needs a model that takes tree attention masks", lambda: method.rank(prompts, 3))


@pytest.mark.parametrize("name", HEADED)
def test_a_configuration_that_trains_no_head_may_not_rank_by_it(name):
    trained = TrainConfig(dense=DenseConfig(weight=1.0))
    refused(
        rf"decode\.ranking {name} needs a dense head: set train\.dense\.weight 1, or choose beam or quota",
        lambda: Config(decode=DecodeConfig(ranking=name)),
    )
    refused(
        rf"evaluate\.rankings {name} needs a dense head: set train\.dense\.weight 1, or leave it out",
        lambda: Config(evaluate=EvaluateConfig(rankings=["beam", name])),
    )
    Config(train=trained, decode=DecodeConfig(ranking=name), evaluate=EvaluateConfig(rankings=["beam", name]))


def test_a_configuration_that_trains_no_head_has_no_frontier():
    refused(
        r"evaluate\.frontier true needs a dense head: set train\.dense\.weight 1, or set it to false",
        lambda: Config(evaluate=EvaluateConfig(frontier=True)),
    )
    Config(train=TrainConfig(dense=DenseConfig(weight=1.0)), evaluate=EvaluateConfig(frontier=True))


@pytest.mark.parametrize("what", [{"diagnose": 5}, {"rankings": ["beam"]}])
def test_what_goes_by_items_needs_the_trie(what):
    level = DecodeConfig(constraint="level")
    refused(
        rf"evaluate\.{next(iter(what))} goes by items, which decode\.constraint level does not know; set it to",
        lambda: Config(decode=level, evaluate=EvaluateConfig(**what)),
    )
    Config(decode=level)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ranking": "quota", "constraint": "level"}, r"decode\.ranking quota ranks items, and decode\.constraint"),
        ({"quota": 1.5}, r"decode\.quota 1\.5: expected a share from 0 to 1"),
        ({"quota_prefix": -1}, r"decode\.quota_prefix -1: expected at least 0"),
        ({"warm_floor": -0.1}, r"decode\.warm_floor -0\.1: expected"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    refused(said, lambda: DecodeConfig(**settings))
