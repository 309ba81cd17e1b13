"""What the tests of training share."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch

from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import Collator, Mixture, build_tasks


@pytest.fixture
def power_cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """`with power_cut(stop)`: examples give out at number `stop`."""
    whole = Mixture.__getitem__

    @contextlib.contextmanager
    def cut(stop: int) -> Iterator[None]:
        def get(self, index):
            if index >= stop:
                raise RuntimeError("power cut")
            return whole(self, index)

        with monkeypatch.context() as patched:
            patched.setattr(Mixture, "__getitem__", get)
            yield

    return cut


@pytest.fixture
def batch(shop) -> dict[str, torch.Tensor]:
    """A batch of all tasks: long and short, every item and one answer."""
    config = TasksConfig()
    mixture = Mixture(build_tasks(config, shop.catalog, shop.sequences, shop.renderer), config, 1, 4, seed=0)
    return Collator(shop.renderer, 160)([mixture[i] for i in range(0, len(mixture), 5)])
