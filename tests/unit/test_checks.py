"""One check of every configuration class: a wrong choice, type or number is one line that names field and choices."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest

from llmrec import BaseConfig, EmbedConfig, ItemTokenizer, TasksConfig, TrainConfig, UserError
from llmrec.checks import check_fields, check_names, checked, listed, matches, plain
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


@checked
def call(
    log: TrainConfig, name: str | Path | None = None, most: int = 3, how: Literal["a", "b"] = "a", **more: Any
) -> Any:
    return log, name, most, how, more


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        ((None,), {}, "log: found None, expected TrainConfig; make it with TrainConfig(...)."),
        (("a.csv",), {}, "log: found the text 'a.csv', expected TrainConfig; make it with TrainConfig(...)."),
        ((pl.DataFrame(),), {}, "log: found a polars DataFrame, expected TrainConfig; make it with TrainConfig(...)."),
        ((TrainConfig(), 3), {}, "name 3: expected text or a path or null."),
        ((TrainConfig(), np.ones(9)), {}, "name: found a numpy ndarray, expected text or a path or null."),
        ((TrainConfig(),), {"most": "3"}, "most '3': expected a whole number (int)."),
        ((TrainConfig(),), {"how": "c"}, "how c: Expected one of a, b."),
    ],
)
def test_arguments_are_checked(given: Any, named: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        call(*given, **named)
    assert str(caught.value) == said


def test_checked_arguments_arrive_in_plain_form() -> None:
    config = TrainConfig()
    assert call(config, Path("a"), np.int64(4), "b", other=1) == (config, Path("a"), 4, "b", {"other": 1})
    assert type(call(config, most=np.int64(4))[2]) is int


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (np.int64(3), int, 3),
        (np.float32(0.5), float, 0.5),
        (np.bool_(True), bool, True),
        ((8, 8), int | list[int], [8, 8]),
        (np.array([8, 8]), int | list[int], [8, 8]),
        (Path("a"), str | None, "a"),
        (Path("a"), str | Path, Path("a")),
        (np.float64(1.5), int, np.float64(1.5)),
        ("3", int, "3"),
    ],
)
def test_plain_changes_the_form_alone(value: Any, hint: Any, wanted: Any) -> None:
    assert plain(value, hint) == wanted
    assert type(plain(value, hint)) is type(wanted)


def test_fields_take_what_numpy_and_pathlib_give() -> None:
    assert TrainConfig(epochs=np.int64(2)).epochs == 2
    assert ItemTokenizer(codes=(4, 4, 4)).config.codes == [4, 4, 4]
    assert EmbedConfig(model=Path("folder")).model == "folder"
    assert type(Request([], k=np.int64(3)).k) is int


def test_names_of_arguments_are_checked() -> None:
    check_names("recommend", {"k": 1}, ("history", "k"))
    with pytest.raises(UserError) as caught:
        check_names("recommend", {"histroy": 1}, ("history", "k"))
    said = "recommend has no parameter histroy: did you mean history? Expected one of history, k."
    assert str(caught.value) == said


def test_listed_takes_what_has_elements() -> None:
    for values in (["a", "b"], ("a", "b"), (each for each in "ab"), np.array(["a", "b"]), pl.Series(["a", "b"])):
        assert listed(values, "ids", "a list") == ["a", "b"]
    for wrong in ("ab", b"ab", {"a": 1}, 3, None, np.array(3), pl.DataFrame({"a": [1]})):
        with pytest.raises(UserError, match=r"^ids.*: found .*, expected a list\.$"):
            listed(wrong, "ids", "a list")


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
