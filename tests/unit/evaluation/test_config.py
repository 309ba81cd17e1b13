"""Values that the evaluate section refuses, with the flag named."""

import pytest

from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig, SASRecConfig


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("k", []),
        ("k", [5, 20]),
        ("k", [0, 10]),
        ("k", [10, 10]),
        ("baselines", ["markov", "markov"]),
        ("quotas", []),
        ("quotas", [0.1, 0.1]),
        ("quotas", [0.0]),
        ("quotas", [1.5]),
        ("max_users", -1),
        ("text_queries", -1),
        ("bootstrap", 0),
    ],
)
def test_refused_values_name_their_flag(flag, value):
    with pytest.raises(UserError, match=rf"evaluate\.{flag} \S.*: expected "):
        EvaluateConfig(**{flag: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("layers", 0),
        ("heads", 3),
        ("dropout", 1.0),
        ("max_history", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("epochs", 0),
        ("patience", 0),
    ],
)
def test_refused_values_of_sasrec_name_their_flag(field, value):
    with pytest.raises(UserError, match=rf"evaluate\.sasrec\.{field} {value}: expected "):
        SASRecConfig(**{field: value})


@pytest.mark.parametrize(
    ("baselines", "reads"), [(["sasrec"], False), (["text-knn"], True), (["sasrec-knn"], True), (["rpg"], True)]
)
def test_text_is_read_where_a_baseline_goes_by_it(baselines, reads):
    assert EvaluateConfig(baselines=baselines).reads_text == reads


def test_the_defaults_are_the_published_protocol():
    config = EvaluateConfig()
    assert config.k == [1, 5, 10, 20]
    assert config.filter_seen
    assert config.max_users == 0
    assert config.baselines == ["popularity", "markov", "item-knn"]
