"""The fixed plan of a training run."""

from collections import Counter

import numpy as np
import pytest

from llmrec.errors import UserError
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import Mixture, validation_examples
from llmrec.tasks.render import Example


class Rows:
    """A task of `n` rows of random lengths; its examples say which row they are and what was drawn."""

    def __init__(self, n: int, seed: int = 0) -> None:
        self.lengths = np.random.default_rng(seed).integers(1, 1000, n)

    def __len__(self) -> int:
        return len(self.lengths)

    def length(self, row: int) -> int:
        return int(self.lengths[row])

    def example(self, row: int, rng: np.random.Generator) -> Example:
        return Example(f"{row}", f"{rng.integers(2**40)}", ends=False)


TASKS = {"sequential": Rows(101), "search": Rows(40, 1)}
RATES = TasksConfig(mixture={"sequential": 1.5, "search": 2.0})


def mixture(epochs=3, global_batch=8, seed=0):
    return Mixture(TASKS, RATES, epochs, global_batch, seed)


def test_rates_are_passes_over_the_rows():
    plan = mixture(epochs=1, global_batch=7).plan  # 231 = 33 x 7: no short last step
    drawn = [Counter(plan[plan[:, 0] == task, 1].tolist()) for task in (0, 1)]
    assert drawn[1] == {row: 2 for row in range(40)}
    assert set(drawn[0]) == set(range(101))
    assert Counter(drawn[0].values()) == {1: 101 - 50, 2: 50}
    three = mixture(epochs=3, global_batch=7)
    assert three.counts == {"sequential": 3 * 151, "search": 3 * 80}
    assert len(three) == 3 * 231


def test_the_last_step_is_whole_or_the_only_one():
    assert len(mixture(epochs=1, global_batch=8)) == 224
    assert len(mixture(epochs=1, global_batch=300)) == 231


def test_epochs_differ_in_order():
    plan = mixture(epochs=2, global_batch=7).plan
    assert not np.array_equal(plan[:231], plan[231:])
    assert sorted(map(tuple, plan[plan[:, 0] == 1])) == sorted(2 * [(1, r) for r in range(40) for _ in range(2)])


def test_examples_depend_on_the_seed_and_the_place_alone():
    one, same, other = mixture(), mixture(), mixture(seed=1)
    backwards = [same[i] for i in reversed(range(len(same)))][::-1]
    assert [one[i] for i in range(len(one))] == backwards
    assert [other[i] for i in range(len(other))] != backwards
    assert len({example.answer for example in backwards}) == len(backwards), "each place draws for itself"


def test_two_processes_see_the_steps_of_one():
    """As accelerate deals batches out: two processes with half the batch take the same examples per step."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    plan = mixture(global_batch=8)
    halves = BatchSampler(SequentialSampler(plan), batch_size=4, drop_last=False)
    first, second = (list(BatchSamplerShard(halves, 2, process)) for process in (0, 1))
    whole = BatchSampler(SequentialSampler(plan), batch_size=8, drop_last=False)
    steps = [one + other for one, other in zip(first, second, strict=True)]
    assert [set(step) for step in steps][:-1] == [set(step) for step in whole][:-1]


def test_more_epochs_do_not_change_the_first():
    np.testing.assert_array_equal(mixture(epochs=3).plan[:224], mixture(epochs=1).plan)


@pytest.mark.parametrize("global_batch", [1, 7, 8, 231])
def test_batches_of_every_epoch_hold_like_lengths(global_batch):
    """Within an epoch shorter than one window, whole batches are slices of the examples sorted by length."""
    plan = mixture(epochs=3, global_batch=global_batch).plan
    lengths = np.array([list(TASKS.values())[task].length(row) for task, row in plan])
    for epoch in range(3):
        first = -(-epoch * 231 // global_batch) * global_batch
        last = (epoch + 1) * 231 // global_batch * global_batch
        batches = np.sort(lengths[first:last].reshape(-1, global_batch), axis=1)
        by_length = batches[np.lexsort((batches[:, -1], batches[:, 0]))].ravel()
        np.testing.assert_array_equal(by_length, np.sort(lengths[first:last]))


def test_batches_are_shuffled():
    firsts = mixture(epochs=1).plan[::8]
    lengths = [list(TASKS.values())[task].length(row) for task, row in firsts]
    assert lengths != sorted(lengths)


def test_nothing_to_train_on_is_said():
    with pytest.raises(UserError, match=r"Nothing to train on.*tasks\.mixture"):
        Mixture({"sequential": Rows(0)}, TasksConfig(), epochs=2, global_batch=8, seed=0)


def test_validation_asks_as_the_ranker_does(shop):
    from llmrec.data import EvalExamples

    cases = EvalExamples(np.array([0]), [np.array([1, 2])], np.array([9]))
    assert validation_examples(shop.renderer, cases) == [
        Example("The user bought, oldest first: <a_0><b_1><a_0><b_2>", "<a_1><b_4>", ends=False, items=(9,))
    ]
