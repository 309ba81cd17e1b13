"""The whole of a training run as one fixed list of examples: which task and row, in which order.

The list depends on the configuration and the seed alone, not on the batch size of a process or the number of
processes; so a resumed run, and a run on more processes, see the same examples in the same steps.
"""

from collections.abc import Sequence

import numpy as np

from llmrec.data import Cases
from llmrec.errors import UserError
from llmrec.tasks.config import TaskName, TasksConfig
from llmrec.tasks.render import Example, Renderer
from llmrec.tasks.task import Task

WINDOW = 64  # global batches that are sorted by length together


class Mixture:
    """A map-style dataset over all epochs, in the order it is to be consumed.

    Args:
        tasks: by name.
        config: the rates.
        epochs: how often the mixture is drawn.
        global_batch: examples per optimizer step, over all processes; like lengths share a step.
        seed: of the draw, the order, and each example's own randomness.

    Raises:
        UserError: not one example, as when every user has a single training item and no item has text.
    """

    def __init__(
        self, tasks: dict[TaskName, Task], config: TasksConfig, epochs: int, global_batch: int, seed: int
    ) -> None:
        self.tasks = list(tasks.values())
        self.seed = seed
        self.plan = np.empty((0, 2), np.int64)
        for epoch in range(epochs):
            begun = -len(self.plan) % global_batch
            self.plan = np.concatenate([self.plan, self._epoch(list(tasks), config, epoch, global_batch, begun)])
        # A last step of fewer examples would fall on some processes only; a run smaller than one step keeps it.
        self.plan = self.plan[: len(self.plan) // global_batch * global_batch or None]
        self.counts = {name: int((self.plan[:, 0] == i).sum()) for i, name in enumerate(tasks)}
        if not len(self.plan):
            raise UserError(
                "Nothing to train on: no user has two training items and no item has text for the chosen tasks "
                "(--tasks.mixture); lower --data.user_core, or check the log."
            )

    def _epoch(
        self, names: list[TaskName], config: TasksConfig, epoch: int, global_batch: int, begun: int
    ) -> np.ndarray:
        """int64 [n, 2]: (task, row), shuffled, then grouped by length within windows of whole batches.

        The first `begun` examples fill up the batch that the epoch before left short.
        """
        rng = np.random.default_rng((self.seed, epoch))
        parts = []
        for index, (name, task) in enumerate(zip(names, self.tasks, strict=True)):
            whole, fraction = divmod(config.mixture[name], 1)
            draws = [np.arange(len(task))] * int(whole)
            draws.append(rng.permutation(len(task))[: round(fraction * len(task))])
            rows = np.concatenate(draws)
            parts.append(np.stack([np.full(len(rows), index), rows], axis=1))
        plan = rng.permutation(np.concatenate(parts))
        lengths = np.array([self.tasks[task].length(row) for task, row in plan], dtype=np.int64)
        window = WINDOW * global_batch
        # Only whole batches move, so that the short ones at both ends stay there.
        for start in range(begun, len(plan) - global_batch + 1, window):
            stop = min(start + window, start + (len(plan) - start) // global_batch * global_batch)
            by_length = start + np.argsort(lengths[start:stop], kind="stable")
            batches = rng.permutation(by_length.reshape(-1, global_batch))
            plan[start:stop] = plan[batches.ravel()]
        return plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Example:
        task, row = self.plan[index]
        return self.tasks[task].example(int(row), np.random.default_rng((self.seed, int(index), 1)))


def validation_examples(renderer: Renderer, cases: Cases) -> Sequence[Example]:
    """History -> target of each case in the first phrasing, the one that answers are asked with."""
    return [
        Example(
            renderer.prompt("sequential", 0, history=renderer.history(history)),
            renderer.item_text[target],
            ends=False,
        )
        for history, target in zip(cases.histories, cases.targets, strict=True)
    ]
