"""The four files of a report and the table for the terminal."""

import json

import numpy as np
import polars as pl
import pytest

from llmrec.evaluation.metrics import summarise
from llmrec.evaluation.report import protocol_line, table, write_report

PER_USER = pl.DataFrame({"user_id": ["ann"], "system": ["llmrec"], "item_id": ["x"], "rank": [None]})


@pytest.fixture
def metrics():
    def entry(ranks):
        return summarise(np.array(ranks, float), [1, 5, 10, 20], bootstrap=50, seed=0) | {"items": len(ranks)}

    return {
        "protocol": {
            "split": "leave-one-out", "part": "test", "ranking": "full", "items": 12101, "users": 4,
            "filter_seen": True, "k": [1, 5, 10, 20], "bootstrap": 50, "seed": 0,
        },
        "systems": {
            "llmrec": {"all": entry([1, 1, 7, np.inf]), "cold": entry([7]), "count 0": entry([7, 99])},
            "popularity": {"all": entry([99, 99, 99, 99]), "cold": entry([99]), "count 0": entry([99, 99])},
        },
        "milliseconds_per_user": {"llmrec": 1234.5678, "popularity": 0.0123},
        "cold_candidates": {
            "protocol": {"ranking": "cold items only", "candidates": 345, "users": 1},
            "systems": {"llmrec": {"all": entry([2])}, "random": {"all": entry([99])}},
        },
        "decode": {
            "beams": 20, "scoring": "catalogue", "constraint": "trie", "invalid_rate": 0.0, "invalid_first_rate": 0.25,
            "users_per_second": 12.5,
        },
    }  # fmt: skip


def test_the_four_files_say_the_same(metrics, tmp_path):
    write_report(metrics, PER_USER, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert pl.read_parquet(tmp_path / "per_user.parquet").equals(PER_USER)
    markdown = (tmp_path / "report.md").read_text()
    assert "full ranking over 12,101 items, 4 users, seen items left out" in markdown
    assert "## Slice: cold" in markdown
    assert "## Slice: cold\n\n1 users, 1 distinct targets." in markdown
    assert "| llmrec | 0.5000 | 0.5000 | 0.7500 [" in markdown
    for line in ("- beams: 20", "- scoring: catalogue", "- constraint: trie", "- invalid_first_rate: 0.25"):
        assert f"{line}\n" in markdown
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "text_queries.json").exists()
    assert "In plain words" not in markdown


def test_finer_slices_share_one_table(metrics, tmp_path):
    write_report(metrics, PER_USER, tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert "## Slice: count 0" not in markdown
    _, section = markdown.split("## Further slices: recall@10\n\n")
    header, _, row, *_ = section.splitlines()
    assert header == "| slice | users | items | llmrec | popularity |"
    assert row == "| count 0 | 2 | 2 | 0.5000 | 0.0000 |"
    for entry in metrics["systems"].values():
        del entry["count 0"]
    write_report(metrics, PER_USER, tmp_path)
    assert "Further slices" not in (tmp_path / "report.md").read_text()


def test_cold_candidates_have_a_section_that_says_what_they_are(metrics, tmp_path):
    write_report(metrics, PER_USER, tmp_path)
    _, section = (tmp_path / "report.md").read_text().split("## Cold candidates only\n\n")
    assert section.startswith("Not the full ranking: for the 1 users with a cold target, only the 345 cold items")
    assert "| random | 0.0000 |" in section
    del metrics["cold_candidates"]
    write_report(metrics, PER_USER, tmp_path)
    assert "Cold candidates" not in (tmp_path / "report.md").read_text()


def test_the_time_per_user_stands_beside_all_users(metrics):
    header, ours, popularity = (line.split() for line in table(metrics).splitlines())
    assert (header[-1], ours[-1], popularity[-1]) == ("ms/user", "1,234.57", "0.01")
    assert "ms/user" not in table(metrics, "cold")
    del metrics["milliseconds_per_user"]
    assert "ms/user" not in table(metrics)


def test_text_queries_get_a_file_and_a_table(metrics, tmp_path):
    text = {"protocol": {"source": "reviews", "queries": 3, "items": 12101, "ranking": "full"}}
    text["systems"] = {"bm25": {"all": summarise(np.array([1.0, 2.0, 50.0]), [1, 5, 10, 20], bootstrap=50, seed=0)}}
    write_report(metrics, PER_USER, tmp_path, text)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert json.loads((tmp_path / "text_queries.json").read_text()) == text
    _, section = (tmp_path / "report.md").read_text().split("## In plain words\n")
    assert "3 held-out intentions (reviews), full ranking over 12,101 items" in section
    assert "| queries |" in section
    assert "| bm25 | 0.3333 | 0.6667 |" in section


def test_a_metric_that_is_not_a_number_is_never_written(metrics, tmp_path):
    metrics["systems"]["llmrec"]["all"]["mrr@5"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(metrics, PER_USER, tmp_path)


def test_the_table_is_aligned(metrics):
    header, *rows = table(metrics).splitlines()
    assert header.split() == [
        "system",
        "recall@1",
        "recall@5",
        "recall@10",
        "recall@20",
        "ndcg@10",
        "mrr@10",
        "users",
        "ms/user",
    ]
    assert len({len(line) for line in (header, *rows)}) == 1
    assert rows[0].split()[:3] == ["llmrec", "0.5000", "0.5000"]
    assert len(table(metrics, "cold").splitlines()) == 3


def test_columns_follow_the_cut_offs(metrics):
    for entry in metrics["systems"].values():
        del entry["all"]["recall@1"]
    assert "recall@1 " not in table(metrics)
    assert "recall@10" in table(metrics)


def test_the_protocol_line_tells_when_seen_items_stay(metrics):
    metrics["protocol"]["filter_seen"] = False
    assert "seen items kept" in protocol_line(metrics)


def test_the_protocol_line_tells_how_many_items_are_cold(metrics):
    metrics["protocol"] |= {"cold_items": 605, "regime": "strict"}
    assert "full ranking over 12,101 items (605 of them cold, strict), 4 users" in protocol_line(metrics)
    metrics["protocol"]["cold_items"] = 0
    assert "full ranking over 12,101 items, 4 users" in protocol_line(metrics)
