"""Values that the evaluate section refuses, with the flag named."""

import pytest

from llmrec.errors import UserError
from llmrec.evaluate.config import EvaluateConfig


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("k", []),
        ("k", [5, 20]),
        ("k", [0, 10]),
        ("k", [10, 10]),
        ("baselines", ["markov", "markov"]),
        ("max_users", -1),
        ("text_queries", -1),
        ("bootstrap", 0),
    ],
)
def test_refused_values_name_their_flag(flag, value):
    with pytest.raises(UserError, match=rf"--evaluate\.{flag}: got "):
        EvaluateConfig(**{flag: value})


def test_the_defaults_are_the_published_protocol():
    config = EvaluateConfig()
    assert config.k == [1, 5, 10, 20]
    assert config.filter_seen
    assert config.max_users == 0
