"""Where cold targets get lost: each figure against brute force, and a model that was told what to fail at."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tolerances import SCORES

from llmrec.data.sequences import EvalExamples
from llmrec.decode.config import DecodeConfig
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.ranker import ItemRanker
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.evaluation import diagnosis as module
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.diagnosis import AT, diagnose, forced_codes, forced_recall, seen_prefixes, table, write_diagnosis

HISTORIES = [[3, 1, 7], [12], [0, 19, 4, 5, 6], [8, 2], [11]]
TARGETS = [5, 17, 0, 9, 14]


def cases() -> EvalExamples:
    histories = [np.array(history, np.int32) for history in HISTORIES]
    return EvalExamples(np.arange(5, dtype=np.int32), histories, np.array(TARGETS, np.int32))


@dataclass
class Holder:
    """What `diagnose` needs of a recommender."""

    ranker: ItemRanker
    catalog: object = field(default=None)


@pytest.fixture(params=[TreeSearch, GenerateSearch])
def ranker(loud, request):
    config = DecodeConfig(beams=20, batch_size=2, dtype="float32")
    search = request.param(loud.model, loud.vocabulary, loud.trie, config, loud.tokenizer.pad_token_id or 0)
    return ItemRanker(loud.renderer, search, context=160)


@torch.inference_mode()
def log_softmax(loud, history, codes) -> np.ndarray:
    """Log-probabilities [V] of the token after a history and some true codes."""
    ids = loud.renderer.encode_prompts([loud.renderer.prompt("sequential", 0, history=loud.renderer.history(history))])
    ids = [*ids[0], *(int(loud.vocabulary.ids[level][code]) for level, code in enumerate(codes))]
    return loud.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).numpy()


def test_codes_are_forced_as_the_plain_model_has_them(loud, ranker):
    own, place = forced_codes(ranker, cases())
    for row, (history, target) in enumerate(zip(HISTORIES, TARGETS, strict=True)):
        codes = loud.codes[target]
        for level, code in enumerate(codes):
            scores = log_softmax(loud, history, codes[:level])[loud.vocabulary.ids[level]]
            assert own[row, level] == pytest.approx(scores[code], abs=SCORES)
            assert place[row, level] == 1 + (scores > scores[code]).sum()


def test_codes_that_tie_count_against_the_target(loud, ranker, monkeypatch):
    monkeypatch.setattr(module.ItemHead, "level", lambda self, hidden, level: torch.zeros((len(hidden), [4, 5][level])))
    assert forced_codes(ranker, cases())[1].tolist() == [[4, 5]] * 5


@pytest.mark.parametrize("filter_seen", [True, False])
def test_recall_is_that_of_the_items_below_the_true_prefix(loud, ranker, filter_seen, monkeypatch):
    """As many beams as items: against the exhaustive ranking, within 2 so that there is something to miss."""
    monkeypatch.setattr(module, "AT", 2)
    found, chance = forced_recall(ranker, cases(), filter_seen)
    ranking = ranker.rank([ranker.prompt_ids(history) for history in HISTORIES], 20)
    for row, (history, target) in enumerate(zip(HISTORIES, TARGETS, strict=True)):
        for level in range(2):
            below = [
                item
                for item in ranking.items[row]
                if (loud.codes[item, :level] == loud.codes[target, :level]).all()
                and (item == target or item not in history or not filter_seen)
            ]
            assert found[row, level] == (below.index(target) < 2)
            assert chance[row, level] == pytest.approx(min(1, 2 / len(below)))
    assert found.any()
    assert not found.all()


def test_recall_given_codes_prunes_as_the_beams_do(loud, monkeypatch):
    """Two beams: the first level is what the evaluation would measure."""
    monkeypatch.setattr(module, "AT", 2)
    search = TreeSearch(loud.model, loud.vocabulary, loud.trie, DecodeConfig(beams=2, dtype="float32"))
    ranker = ItemRanker(loud.renderer, search, context=160)
    found, _ = forced_recall(ranker, cases(), filter_seen=False)
    plain = ranker.rank([ranker.prompt_ids(history) for history in HISTORIES], 2).items
    np.testing.assert_array_equal(found[:, 0], (plain == np.array(TARGETS)[:, None]).any(axis=1))


def test_items_that_share_a_code_are_told_apart_by_none(loud):
    """Twelve items on one semantic ID tie, so none of them is among the first ten."""
    codes = loud.codes.copy()
    codes[:12] = [0, 0]
    renderer = type(loud.renderer)(loud.tokenizer, loud.vocabulary, codes, loud.renderer.templates, 4)
    trie = type(loud.trie).build(codes, [4, 5])
    search = TreeSearch(loud.model, loud.vocabulary, trie, DecodeConfig(beams=20, dtype="float32"))
    found, chance = forced_recall(ItemRanker(renderer, search, 160), cases(), filter_seen=False)
    shared = np.array(TARGETS) < 12
    assert not found[shared, 1].any()
    np.testing.assert_allclose(chance[shared, 1], AT / 12)


def test_seen_prefixes(ranker):
    """Codes 0 .. 3 of the first level have five items each; only 5 and 17 are warm among all."""
    counts = np.zeros(20, np.int64)
    counts[[5, 17]] = 3
    seen = seen_prefixes(ranker, np.array([5, 6, 17, 0]), counts)
    assert seen.tolist() == [[True, True], [True, False], [True, True], [False, False]]


def test_a_diagnosis_is_the_means_of_its_groups(ranker):
    counts = np.ones(20, np.int64)
    counts[[17, 9]] = 0
    given = diagnose(Holder(ranker), cases(), counts, EvaluateConfig(diagnose=10, seed=0))
    own, place = forced_codes(ranker, cases())
    found, chance = forced_recall(ranker, cases(), filter_seen=True)
    for kind, rows in {"warm": [0, 2, 4], "cold": [1, 3]}.items():
        group = given["targets"][kind]
        assert group["users"] == len(rows)
        np.testing.assert_allclose(group["log_probability"], own[rows].mean(axis=0), atol=SCORES)
        np.testing.assert_allclose(group["code_rank"], np.median(place[rows], axis=0))
        np.testing.assert_allclose(group["recall@10"], found[rows].mean(axis=0))
        np.testing.assert_allclose(group["chance"], chance[rows].mean(axis=0))
        for name in ("log_probability", "prefix_seen", "recall@10"):
            for mean, (low, high) in zip(group[name], group[f"{name}_ci"], strict=True):
                assert low - 1e-6 <= mean <= high + 1e-6
    assert given["targets"]["warm"]["prefix_seen"] == [1, 1]
    assert given["targets"]["cold"]["prefix_seen"] == [1, 0], "first codes of other items, tuples of none"
    assert given["protocol"]["cold_items"] == 2
    assert given["protocol"]["items"] == 20


def test_intervals_resample_users_not_their_targets(ranker):
    whole = cases()
    one = EvalExamples(np.zeros_like(whole.users), whole.histories, whole.targets)
    group = diagnose(Holder(ranker), one, np.ones(20, np.int64), EvaluateConfig(diagnose=10))["targets"]["warm"]
    assert (group["users"], group["targets"]) == (1, len(whole))
    means = np.repeat(np.array(group["log_probability"])[:, None], 2, axis=1)
    np.testing.assert_allclose(group["log_probability_ci"], means, rtol=1e-6)
    assert len(set(forced_codes(ranker, whole)[0][:, 0].tolist())) > 1, "targets alone would differ"


def test_groups_are_samples_drawn_by_the_seed(ranker):
    counts = np.ones(20, np.int64)
    drawn = [diagnose(Holder(ranker), cases(), counts, EvaluateConfig(diagnose=2, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert list(drawn[0]["targets"]) == ["warm"]
    assert drawn[0]["targets"]["warm"]["users"] == 2


def test_the_files_and_the_table_say_the_same(ranker, tmp_path):
    counts = np.ones(20, np.int64)
    counts[[17, 9]] = 0
    given = diagnose(Holder(ranker), cases(), counts, EvaluateConfig(diagnose=10, seed=0))
    write_diagnosis(given, tmp_path)
    assert json.loads((tmp_path / "diagnosis.json").read_text()) == given
    assert (tmp_path / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    lines = table(given).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["warm", "1"], ["warm", "2"], ["cold", "1"], ["cold", "2"]]
    group = given["targets"]["cold"]
    assert f"{group['log_probability'][1]:.2f} [" in lines[4]
    assert f"{group['code_rank'][1]:g} of 5" in lines[4]
    assert f"{group['recall@10'][1]:.4f} [" in lines[4]
    markdown = (tmp_path / "diagnosis.md").read_text()
    assert "recall@10: of the beam search restricted to" in markdown
    assert f"| cold | 2 | {group['log_probability'][1]:.2f} [" in markdown


def test_what_can_not_be_diagnosed_is_refused(loud):
    search = TreeSearch(loud.model, loud.vocabulary, loud.trie, DecodeConfig(constraint="level", dtype="float32"))
    with pytest.raises(UserError, match=r"decode\.constraint level: a diagnosis forces codes of real items"):
        diagnose(
            Holder(ItemRanker(loud.renderer, search, 160)), cases(), np.ones(20, np.int64), EvaluateConfig(diagnose=5)
        )
