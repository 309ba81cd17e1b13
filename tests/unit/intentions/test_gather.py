"""What holds for every source."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec.data import Catalog, Interactions, Prepared, Summary
from llmrec.errors import UserError
from llmrec.intentions import IntentionsConfig, gather


def test_nothing_told(catalog: Catalog, log: Interactions, tmp_path: Path) -> None:
    silent = Interactions(log.frame.with_columns(review=pl.lit("ok")))
    with pytest.raises(UserError, match=r"intentions\.source reviews tells nothing"):
        gather(IntentionsConfig("reviews"), Prepared(catalog, silent.leave_one_out(), Summary()), tmp_path)


def test_a_killed_copy_of_the_answers_is_made_again(
    endpoint: Any, catalog: Catalog, log: Interactions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them in the new folder would pass for all of them."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    data = Prepared(catalog, log.leave_one_out(), Summary())
    config = IntentionsConfig("llm", url=endpoint.url, model="m")
    found = gather(config, data, folders[0])
    asked = len(endpoint.prompts)

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            gather(config, data, folders[1], earlier=folders[0])
    assert gather(config, data, folders[1], earlier=folders[0]) == found
    assert len(endpoint.prompts) == asked


def test_answers_outlive_another_source(endpoint: Any, catalog: Catalog, log: Interactions, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    data, config = (
        Prepared(catalog, log.leave_one_out(), Summary()),
        IntentionsConfig("llm", url=endpoint.url, model="m"),
    )
    found = gather(config, data, folders[0])
    asked = len(endpoint.prompts)
    gather(IntentionsConfig("extract"), data, folders[1], earlier=folders[0])
    assert gather(config, data, folders[2], earlier=folders[1]) == found
    assert len(endpoint.prompts) == asked
