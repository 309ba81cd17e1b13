"""What the tests of training share."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from llmrec.tasks.mixture import Mixture


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
