"""RPG: its scores by hand and by loops, that it learns, and what it says of cold items."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from llmrec.collaborative.config import ExpertsConfig, RPGConfig, RPGExpertConfig
from llmrec.collaborative.experts import Experts
from llmrec.collaborative.folds import Folds
from llmrec.collaborative.fused import FusedExperts
from llmrec.collaborative.rpg import RPG, CodeNetwork, TextCodes
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.systems import fit_baselines
from llmrec.quantize import TokenizeConfig
from llmrec.quantize.classical.product import OptimizedProductQuantizer, fit_opq

WARM, ITEMS = 20, 24
SMALL = RPGConfig(
    hidden_size=16,
    layers=1,
    heads=2,
    dropout=0.1,
    max_history=6,
    batch_size=16,
    learning_rate=0.01,
    epochs=40,
    components=8,
    levels=3,  # blocks of 3, 3 and 2 components
    codes=6,
    temperature=0.1,
)
VECTORS = np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32)
VECTORS[WARM:] = VECTORS[:4]  # cold items with the texts of warm ones


def walk(start: int, length: int) -> np.ndarray:
    return ((start + np.arange(length)) % WARM).astype(np.int32)


CASES = EvalExamples(np.arange(WARM), [walk(start, 3) for start in range(WARM)], (np.arange(WARM) + 3) % WARM)
TRAIN = [walk(start, 4 + start % 3) for start in range(WARM)] * 3


def fitted(vectors: np.ndarray = VECTORS, config: RPGConfig = SMALL) -> RPG:
    return RPG(config, CASES, 3, vectors, fit_opq).fit(TRAIN, len(vectors))


@pytest.fixture(scope="module")
def system() -> RPG:
    (made,) = fit_baselines(EvaluateConfig(baselines=["rpg"], rpg=SMALL, seed=3), TRAIN, ITEMS, CASES, VECTORS)
    assert isinstance(made, RPG)
    return made


def tiny() -> CodeNetwork:
    """Two levels of two codes, three items, width 2."""
    codes = TextCodes(np.eye(2), np.zeros(2), np.array([[0.0, 0.0], [1.0, 1.0]]), 2)
    config = RPGConfig(hidden_size=2, heads=1, layers=1, levels=2, codes=2, components=2, temperature=0.5)
    made = CodeNetwork(codes, torch.tensor([[0, 0], [0, 1], [1, 1]], dtype=torch.uint8), config)
    with torch.no_grad():
        made.codewords.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0], [-4.0, 0.0]]))
        made.heads[1, 0, 1] = 1.0  # the second value of head 1 gets SiLU(first value) more
    return made.eval()


def test_the_score_of_an_item_by_hand() -> None:
    """h = (3, 4). Head 0 leaves it: cosines .6 and .8 with its codes. Head 1 makes (3, 4 + SiLU(3)) of it."""
    found = tiny().scores(tiny().log_shares(torch.tensor([[3.0, 4.0]])))[0]
    second = 4 + 3 / (1 + np.exp(-3))
    length = np.hypot(3, second)
    cosines = np.array([[0.6, 0.8], [second / length, -3 / length]])
    logs = cosines / 0.5 - np.log(np.exp(cosines / 0.5).sum(axis=1, keepdims=True))
    expected = [(logs[0, 0] + logs[1, 0]) / 2, (logs[0, 0] + logs[1, 1]) / 2, (logs[0, 1] + logs[1, 1]) / 2]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5)


def test_an_item_is_the_sum_of_its_codes() -> None:
    """Without layers and positions, the state of a history is its last item."""
    made = tiny()
    made.layers = torch.nn.Module()
    made.layers.forward = lambda states, mask, is_causal: states
    with torch.no_grad():
        made.positions.zero_()
    assert made([np.array([2, 0]), np.array([1])]).tolist() == [[-4.0, 3.0], [2.0, 1.0], [-2.0, 0.0]]


def test_nothing_sees_the_future(system: RPG) -> None:
    network = system.network.eval()
    long, short = (network([np.array(rows)]) for rows in ([3, 1, 4, 1, 5], [3, 1, 4]))
    torch.testing.assert_close(long[:3], short)


def test_the_ranking_by_loops(system: RPG) -> None:
    histories, system = [walk(5, 3), np.array([21, 2])], copy.copy(system)
    system.dtype = torch.float32
    scores, network = system.scores(histories), system.network.eval()
    for row, history in enumerate(histories):
        with torch.no_grad():
            shares = network.log_shares(network([history])[-1:]).exp()
        for item in range(ITEMS):
            product = np.prod(
                [shares[level, 0, code].item() for level, code in enumerate(network.item_codes[item].tolist())]
            )
            assert np.exp(scores[row, item] * SMALL.levels) == pytest.approx(product, rel=1e-3)
    np.testing.assert_allclose(np.exp(shares.log().numpy()).sum(axis=2), 1, rtol=1e-5)


def test_it_learns_a_cycle(system: RPG) -> None:
    assert np.mean(system.ranks(CASES, filter_seen=True, among=np.arange(WARM)) == 1) > 0.8


def test_a_cold_target_is_found_by_its_text(system: RPG) -> None:
    """The warm item of the same text ties with it, and ties never help."""
    first = CASES.where(CASES.targets < ITEMS - WARM)
    moved = EvalExamples(first.users, first.histories, first.targets + WARM)
    twins = np.concatenate([np.arange(4, WARM), moved.targets])
    assert system.ranks(moved, filter_seen=True, among=twins).tolist() == [1] * 4


def test_a_cold_item_has_the_score_of_a_warm_item_with_the_same_text(system: RPG) -> None:
    scores = system.scores(CASES.histories)
    np.testing.assert_array_equal(scores[:, WARM:], scores[:, : ITEMS - WARM])
    assert (np.ptp(scores[:, WARM:], axis=1) > 0.1).all()
    twin = system.scores([np.array([7, 20, 21])])
    np.testing.assert_array_equal(twin, system.scores([np.array([7, 0, 1])]))


def test_cold_items_change_nothing_of_what_is_learnt(system: RPG) -> None:
    other = VECTORS.copy()
    other[WARM:] = 100
    arrays, expected = fitted(other).arrays(), system.arrays()
    assert arrays.keys() == expected.keys()
    np.testing.assert_array_equal(arrays["item_codes"][:WARM], expected.pop("item_codes")[:WARM])
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_it_comes_back_from_arrays(system: RPG) -> None:
    again = RPG(SMALL, CASES)
    again.restore(system.arrays(), np.array([1] * WARM + [0] * (ITEMS - WARM)), None)
    np.testing.assert_array_equal(again.scores(CASES.histories), system.scores(CASES.histories))


@pytest.mark.parametrize("damage", ["value", "kind", "items", "codebooks", "projection", "vectors"])
def test_damaged_arrays_are_refused(system: RPG, damage: str) -> None:
    arrays = system.arrays()
    if damage == "value":
        arrays["item_codes"] = arrays["item_codes"] + np.uint8(SMALL.codes)
    elif damage == "kind":
        arrays["item_codes"] = arrays["item_codes"].astype(np.float32)
    elif damage == "items":
        arrays["item_codes"] = arrays["item_codes"][:-1]
    elif damage != "vectors":
        arrays[f"text_codes.{damage}"] = arrays[f"text_codes.{damage}"][:, :-1]
    unit = VECTORS[:, :5] if damage == "vectors" else VECTORS
    with pytest.raises(ValueError, match="codes"):
        RPG(SMALL, CASES).restore(arrays, np.array([1] * WARM + [0] * (ITEMS - WARM)), unit)


def test_the_codes_are_those_of_opq_on_whitened_components() -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(300, 10)) @ rng.normal(size=(10, 10))).astype(np.float32)
    codes = RPG(replace(SMALL, components=7, codes=16), CASES, 0, x, fit_opq)._fit_codes(x)
    white = PCA(7, whiten=True).fit_transform(x)
    opq = OptimizedProductQuantizer(TokenizeConfig("opq", levels=3, codes=16)).fit(white)
    found = codes.of(x)
    assert (found.numpy() == opq.encode(white)).mean() > 0.995
    assert torch.equal(torch.cat([codes.of(row[None]) for row in x]), found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": 9}, r"evaluate\.rpg\.levels 9: expected at most 8, the components"),
        ({"codes": 1}, r"evaluate\.rpg\.codes 1: expected at least 2"),
        ({"temperature": 0.0}, r"evaluate\.rpg\.temperature 0\.0: expected"),
        ({"heads": 3}, r"evaluate\.rpg\.heads 3: expected a divisor of hidden_size 16"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        replace(SMALL, **changes)


def test_texts_that_are_too_few_or_too_much_alike_are_one_line() -> None:
    with pytest.raises(UserError, match=r"evaluate\.rpg\.codes 21: .* have 20 different texts"):
        fitted(config=replace(SMALL, codes=21))
    flat = VECTORS.copy()
    flat[:, 2:] = 0
    with pytest.raises(UserError, match=r"evaluate\.rpg\.levels 3: .* vary in 2 directions"):
        fitted(flat)
    with pytest.raises(UserError, match=r"evaluate\.baselines rpg: needs the vectors"):
        RPG(SMALL, CASES, 3, None, fit_opq).fit(TRAIN, ITEMS)


def test_as_a_teacher_it_never_saw_the_user(tmp_path: Path) -> None:
    """Each user's values are those of a fit on the other half of the users, with the codes of the whole log."""
    section = RPGExpertConfig(**{**SMALL.__dict__, "epochs": 2})
    config = ExpertsConfig(models=["rpg"], rpg=section)
    made = FusedExperts(config, Experts(config, VECTORS, CASES, fit_opq))
    made.experts.fit(TRAIN, ITEMS)
    users, histories = np.array([0, 3]), [TRAIN[user][:2] for user in (0, 3)]
    found = Folds.fit("rpg", made, TRAIN, CASES, 2, tmp_path)
    again = Folds.fit("rpg", made, TRAIN, CASES, 2, tmp_path)
    np.testing.assert_array_equal(again.values(users, histories), found.values(users, histories))
    whole = made.experts.systems["rpg"]
    for fold, model in enumerate(found.models):
        assert torch.equal(model.network.item_codes, whole.network.item_codes)
        changed = [row[::-1] if user % 2 == fold else row for user, row in enumerate(TRAIN)]
        (folder := tmp_path / str(fold)).mkdir()
        unmoved = Folds.fit("rpg", made, changed, CASES, 2, folder)
        np.testing.assert_array_equal(unmoved.models[fold].scores(histories), model.scores(histories))
        assert (
            np.abs(unmoved.models[1 - fold].scores(histories) - found.models[1 - fold].scores(histories)).max() > 1e-3
        )
