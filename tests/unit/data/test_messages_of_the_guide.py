"""Each message that docs/your_data.md shows is what the mistake beside it gives, to the letter."""

import re
from pathlib import Path

import pytest

from llmrec.data import DataConfig, prepare
from llmrec.data.filters import require_text
from llmrec.errors import UserError

GUIDE = Path(__file__).parents[3] / "docs" / "your_data.md"
SAID = re.findall(r"^llmrec: (.*)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
MESSAGES = [message for message in SAID if "--base.model" not in message]
"""Without those on bundles, which tests/unit/test_continued.py compares."""
EVENTS = "user_id,item_id,timestamp\nu1,B1,1\nu1,B2,2\nu1,B1,3\n"
ITEMS = 'item_id,title\nB1,"Pen, red"\nB2,Ink\n'
MISTAKES: list[tuple[str, str | bytes]] = [
    ("u1,B001,2024-03-01,5.0\nu1,B002,2024-03-02,4.0\n", ITEMS),
    (EVENTS.replace("B2,2", "B2,noon"), ITEMS),
    (EVENTS, ITEMS.replace('"', "")),
    (EVENTS, 'item_id,title\n1,"Oak, red"\n2,"5" nail"\n'),
    (EVENTS, "item_id,title\nB1,Größe\nB2,".encode() + b"\xe9\n"),
    (EVENTS, ITEMS.replace("B2", "B1")),
    (EVENTS, ITEMS.replace("Ink", "")),
]


@pytest.mark.parametrize("at", range(len(MISTAKES)))
def test_message(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(MESSAGES) == len(MISTAKES)
    monkeypatch.chdir(tmp_path)
    for name, content in zip(("events.csv", "items.csv"), MISTAKES[at], strict=True):
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    config = DataConfig("table", "events.csv", "items.csv", user_core=1, item_core=1, empty_text="keep")
    with pytest.raises(UserError) as error:
        require_text(prepare(config).catalog, "")
    assert error.value.with_flags == MESSAGES[at]


@pytest.mark.parametrize("events", [
    ["u1,B1,1709640000", "u1,B2,2024-03-01"],
    [f"u{user},{item}{number},{number}" for user in range(80) for item in "Bb" for number in (1, 2, 3)],
])  # fmt: skip
def test_message_in_the_text(events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These are wrapped in the guide."""
    monkeypatch.chdir(tmp_path)
    Path("events.csv").write_text("\n".join(["user_id,item_id,timestamp", *events, ""]))
    Path("items.csv").write_text("item_id,title\nB1,Pen\nB2,Ink\nB3,Cap\n")
    with pytest.raises(UserError) as error:
        prepare(DataConfig("table", "events.csv", "items.csv", user_core=1, item_core=1))
    assert error.value.with_flags in " ".join(GUIDE.read_text(encoding="utf-8").split())
