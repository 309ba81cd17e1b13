"""One check of every configuration class: a wrong choice, type or number is one line that names field and choices."""

import dataclasses
from typing import Any, Literal

import pytest

from llmrec import BaseConfig, EmbedConfig, ItemTokenizer, TasksConfig, TrainConfig, UserError
from llmrec.checks import check_fields, matches
from llmrec.config import ADDED, Config, with_new_names, with_old_names
from llmrec.decode.config import DecodeConfig
from llmrec.recommender.request import Request


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DecodeConfig(ranking="best"), "decode.ranking best: Expected one of auto, beam, quota, dense"),
        (
            lambda: DecodeConfig(scoring="logprob"),
            "decode.scoring logprob: Expected one of auto, vocab, level, catalogue",
        ),
        (lambda: DecodeConfig(constraint="Trie"), "decode.constraint Trie: did you mean trie? Expected one of trie"),
        (lambda: TrainConfig(method="qlora"), "train.method qlora: did you mean lora? Expected one of full, lora"),
        (lambda: BaseConfig(architecture="gpt2"), "base.architecture gpt2: Expected one of qwen3, llama, t5"),
        (lambda: EmbedConfig(encoder="minilm"), "embed.encoder minilm: did you mean minilm-offline?"),
        (lambda: ItemTokenizer(method="lc-rec"), "tokenize.method lc-rec: Expected one of random, kmeans"),
        (lambda: TasksConfig(mixture={"seqential": 1}), "tasks.mixture: unknown task 'seqential'"),
        (
            lambda: TasksConfig(mixture={"chat:1": None}),
            "unknown task 'chat:1'; write a space after the colon (chat: 1)",
        ),
        (lambda: TrainConfig(epochs="3"), "train.epochs '3': expected a whole number (int)."),
        (lambda: TrainConfig(epochs=True), "train.epochs True: expected a whole number (int)."),
        (lambda: TrainConfig(learning_rate=float("nan")), "train.learning_rate nan: expected more than 0."),
        (lambda: DecodeConfig(specgr_threshold=float("nan")), "decode.specgr_threshold nan: expected a number."),
        (lambda: EmbedConfig(max_tokens=0), "embed.max_tokens 0: expected at least 1."),
        (lambda: Request(prompt="a", k=0), "k 0: expected at least 1."),
        (lambda: Request(prompt="a", max_per_code=0), "max_per_code 0: expected at least 1."),
        (lambda: Request(history="B001"), "history 'B001': found one text, expected a list of item ids."),
        (lambda: Request([], where={"brand": ["Alba"]}), "where brand: found ['Alba'], expected one text."),
        (lambda: Request(), "history and prompt are both missing"),
    ],
)
def test_a_wrong_value_is_one_line(make: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_speaks_of_flags_and_of_parameters() -> None:
    error = UserError("--max-per brand=0 and --decode.beams 0: expected at least 1; see --include-seen.")
    assert error.with_flags == "--max-per brand=0 and --decode.beams 0: expected at least 1; see --include-seen."
    assert str(error) == "max_per_field brand=0 and decode.beams 0: expected at least 1; see include_seen."
    assert error.field == "max_per_field"
    assert UserError("a -- b, x--y and -k stay").field is None
    assert str(UserError("a -- b, x--y and -k stay")) == "a -- b, x--y and -k stay"


def test_every_default_passes() -> None:
    for section in dataclasses.fields(Config):
        section.default_factory()


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, float, True),
        (1.0, int, False),
        (True, int, False),
        (None, int | None, True),
        ("a", Literal["a"] | list[str], True),
        (["b"], Literal["a"] | list[str], True),
        ("b", Literal["a"] | list[str], False),
        ([1, "x"], list[int], False),
        ({"a": 1}, dict[Literal["a"], float], True),
        ({"b": 1}, dict[Literal["a"], float], False),
    ],
)
def test_types(value: Any, hint: Any, fits: bool) -> None:
    assert matches(value, hint) == fits


def test_lists_are_checked_number_by_number() -> None:
    @dataclasses.dataclass
    class Sizes:
        codes: int | list[int] = 4

    check_fields(Sizes([4, 2]), "tokenize", at_least={2: ("codes",)})
    with pytest.raises(UserError, match=r"tokenize\.codes 1: expected at least 2"):
        check_fields(Sizes([4, 1]), "tokenize", at_least={2: ("codes",)})


def test_keys_of_the_released_version_get_their_new_names() -> None:
    old = {"epochs": 3, "lora_rank": 4, "merge": False, "dense_weight": 1}
    assert with_new_names("train", old) == {"epochs": 3, "lora": {"rank": 4, "merge": False}, "dense": {"weight": 1}}
    assert with_new_names("train", {"lora": {"rank": 8}, "dora": True}) == {"lora": {"rank": 8, "dora": True}}
    assert with_new_names("data", {"cold_items": "held-out", "cold_share": 0.1}) == {
        "cold": {"items": "held-out", "share": 0.1}
    }


@pytest.mark.parametrize("section", [field.name for field in dataclasses.fields(Config)])
def test_old_names_lead_back_to_new_ones(section: str) -> None:
    values = dataclasses.asdict(getattr(Config(), section))
    old = with_old_names(section, values)
    assert not {"lora", "dense", "columns", "cold"} & old.keys()
    again = with_new_names(section, old)
    for key, value in ADDED.items():
        of, *groups, name = key.split(".")
        place: Any = again
        for group in groups if of == section else ():
            place = place.setdefault(group, {})
        if of == section:
            assert name not in place
            place[name] = value
    assert again == values
    assert with_old_names("data", {"quoting": "none"}) == {"quoting": "none"}
    assert with_old_names("data", {"cold": {"share": 0.1, "more": 1}}) == {"cold_share": 0.1, "cold": {"more": 1}}
