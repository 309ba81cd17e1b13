"""A file of users in, a file of recommendations out; a stopped job and an undisturbed one write the same rows."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from llmrec.errors import UserError
from llmrec.recommender.recommender import Recommender
from llmrec.serve import predict as module

HISTORIES = [["i3"], ["i1", "i2"], ["i19", "nope"], [], ["i4"], None, ["i7"], ["i8", "i9", "i8"]]
OPTIONS = {"k": 3, "exclude": ["i5"]}


@pytest.fixture(scope="module")
def bundle(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    recommender.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": [f"u{row}" for row in range(len(HISTORIES))], "history": HISTORIES}).write_parquet(path)
    return path


@pytest.fixture
def predict(recommender: Recommender, bundle: Path, source: Path) -> Callable[..., module.Predicted]:
    def run(output: Path, source: Path = source, **options: object) -> module.Predicted:
        return module.predict(lambda: recommender, bundle, source, output, {}, **{**OPTIONS, **options})

    return run


def expected(recommender: Recommender) -> list[tuple]:
    answers = [recommender.recommend(history or [], **OPTIONS) for history in HISTORIES]
    return [
        (f"u{user}", item.rank, item.item_id, item.title, " ".join(answer.notes) or None)
        for user, answer in enumerate(answers)
        for item in answer
    ]


def read(path: Path) -> list[tuple]:
    match path.suffix:
        case ".parquet":
            frame = pl.read_parquet(path)
        case ".jsonl":
            frame = pl.read_ndjson(path, schema=module.SCHEMA)
        case _:
            frame = pl.read_csv(path, separator="\t" if path.suffix == ".tsv" else ",", schema=module.SCHEMA)
    assert frame.schema == module.SCHEMA
    return frame.drop("score").rows()


@pytest.mark.parametrize("suffix", module.SUFFIXES)
def test_every_user_has_the_answer_of_recommend(
    suffix: str, recommender: Recommender, predict: Callable[..., module.Predicted], tmp_path: Path
) -> None:
    output = tmp_path / "deeper" / f"recs{suffix}"
    found = predict(output)
    assert (found.users, found.resumed) == (8, 0)
    assert read(output) == expected(recommender)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_every_kind_of_input(suffix: str, predict: Callable[..., module.Predicted], tmp_path: Path) -> None:
    """Ids in a text have spaces between them, or the text is a JSON list; JSON lines have lists."""
    source, output = tmp_path / f"users{suffix}", tmp_path / "recs.parquet"
    with source.open("w", newline="") as file:
        if suffix == ".jsonl":
            file.writelines(json.dumps({"user_id": f"u{n}", "history": h}) + "\n" for n, h in enumerate(HISTORIES))
        else:
            writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerow(["history", "user_id", "other"])
            for number, history in enumerate(HISTORIES):
                text = json.dumps(history) if number % 2 and history else " ".join(history or [])
                writer.writerow([text, f"u{number}", "x"])
    predict(output, source)
    predict(tmp_path / "of_parquet.parquet")
    assert read(output) == read(tmp_path / "of_parquet.parquet")


@pytest.mark.parametrize("stopped_at", [0, 1, 2, "join", "end"])
def test_stopped_and_started_again_is_undisturbed(
    stopped_at: int | str,
    recommender: Recommender,
    predict: Callable[..., module.Predicted],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict(tmp_path / "undisturbed.csv")
    output, calls = tmp_path / "recs.csv", []

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    recommend = recommender.recommend

    def counting(**options: object) -> object:
        calls.append(1)
        return stop() if len(calls) - 1 == stopped_at else recommend(**options)

    with monkeypatch.context() as patch:
        patch.setattr(recommender, "recommend", counting)
        if stopped_at == "join":
            patch.setattr(module, "_join", stop)
        elif stopped_at == "end":
            patch.setattr(module.atomic, "remove_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            predict(output)
    assert output.exists() == (stopped_at == "end")
    calls.clear()
    monkeypatch.setattr(recommender, "recommend", counting)
    stopped_at = {"join": -1, "end": -1}.get(stopped_at, stopped_at)
    done = 3 if stopped_at == -1 else stopped_at
    stopped_at = None
    found = predict(output)
    assert len(calls) == 3 - done
    assert found.resumed == [0, 3, 6, 8][done]
    assert output.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"undisturbed.csv", "recs.csv", "users.parquet"}


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_write_what_one_writes(
    processes: int, predict: Callable[..., module.Predicted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are three chunks. The other processes run when the first one lets them."""
    predict(tmp_path / "one.csv")
    output, made = tmp_path / "several.csv", []
    make_part = module.make_part

    @dataclass
    class State:
        process_index: int
        num_processes: int = processes

        @property
        def is_main_process(self) -> bool:
            return self.process_index == 0

        @contextmanager
        def main_process_first(self) -> Iterator[None]:
            yield
            for index in range(1, processes) if self.is_main_process else ():
                run(index)

    def run(index: int) -> module.Predicted | None:
        def making(recommender: Recommender, chunk: module.Chunk, part: Path, **options: object) -> None:
            made.append((index, part.name))
            make_part(recommender, chunk, part, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, "process_state", lambda: State(index))
            patch.setattr(module, "make_part", making)
            return predict(output)

    found = run(0)
    assert found is not None
    assert (found.users, found.resumed) == (8, 0)
    assert sorted(made) == sorted((number % processes, f"{number:06}.parquet") for number in range(3))
    assert output.read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_other_settings_start_again(predict: Callable[..., module.Predicted], tmp_path: Path) -> None:
    output = tmp_path / "recs.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_join", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(output)
    assert predict(output, k=2).resumed == 0
    assert max(rank for _, rank, *_ in read(output)) == 2


def test_a_user_without_answers_keeps_a_row(predict: Callable[..., module.Predicted], tmp_path: Path) -> None:
    predict(tmp_path / "recs.parquet", allow=["i3"], exclude=[])
    rows = read(tmp_path / "recs.parquet")
    assert rows[0][:4] == ("u0", None, None, None)
    assert "the history leaves 0" in rows[0][4]
    assert [user for user, *_ in rows] == [f"u{row}" for row in range(8)]


def test_no_users(predict: Callable[..., module.Predicted], tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("user_id,history\n")
    assert predict(tmp_path / "recs.csv", tmp_path / "none.csv").users == 0
    assert (tmp_path / "recs.csv").read_text() == ",".join(module.SCHEMA) + "\n"


def test_numbers_are_ids(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [7.0, 8.0], "history": [[1.0, 2.0], [3.0]]}).write_parquet(tmp_path / "users.parquet")
    found = module.users(tmp_path / "users.parquet")
    assert [(user.user_id, user.history) for user in found] == [("7", ["1", "2"]), ("8", ["3"])]


WISHES = ["a gentle soap", None, "", "  ", "hand balm", "cream", None, "shampoo"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_request_in_words_for_each_user(
    suffix: str, recommender: Recommender, predict: Callable[..., module.Predicted], tmp_path: Path
) -> None:
    """A user without one is answered by the history alone."""
    source = tmp_path / f"users{suffix}"
    lists = pl.DataFrame({"user_id": [f"u{row}" for row in range(8)], "history": HISTORIES, "prompt": WISHES})
    texts = lists.with_columns(pl.col("history").list.join(" "))
    {".parquet": lists.write_parquet, ".csv": texts.write_csv, ".jsonl": lists.write_ndjson}[suffix](source)
    predict(tmp_path / "recs.parquet", source)
    answers = [
        recommender.recommend(history or [], wish if wish and wish.strip() else None, **OPTIONS)
        for history, wish in zip(HISTORIES, WISHES, strict=True)
    ]
    wanted = [(f"u{user}", item.item_id) for user, answer in enumerate(answers) for item in answer]
    assert [(user, item) for user, _, item, *_ in read(tmp_path / "recs.parquet")] == wanted
    assert wanted != [(user, item) for user, _, item, *_ in expected(recommender)]


def test_a_request_that_is_too_long_names_the_rows(predict: Callable[..., module.Predicted], tmp_path: Path) -> None:
    source = tmp_path / "users.jsonl"
    rows = [{"user_id": "u", "history": ["i1"], "prompt": "soap " * (500 if row == 4 else 1)} for row in range(6)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"input, rows 4 to 6, column prompt: The request is .* shorten prompt"):
        predict(tmp_path / "recs.csv", source)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("u.csv", "user,history\nu,i1\n", "found the columns 'user', 'history'; expected user_id and history"),
        ("u.csv", "", "no line of column names as the file is empty"),
        ("u.csv", "user_id,history\nu,i1\n,i1\n", "line 3: user_id: found None"),
        ("u.csv", "user_id,history\nu,[1\n", "line 2: history '[1': malformed JSON"),
        ("u.csv", "user_id,history\nu,i1\nv,i1,i2\nw,i2\n", "line 3: 3 fields with ',' between them, expected 2"),
        ("u.csv", "user_id,history,history\nu,i1,i2\n", "line 1: column 'history' stands twice"),
        ("u.jsonl", '{"user_id": "u"}\n{"user_id": "u", "history": 3}\n', "line 2: history 3: expected a list"),
        ("u.jsonl", '{"user_id": "u", "history": [], "prompt": 7}\n', "line 1: prompt 7: expected a text"),
        ("u.jsonl", '{"user_id": "u", "history": ["a", null]}\n', "line 1: history: found None, expected an id"),
        ("u.jsonl", '{"user_id": "\\ud83d", "history": []}\n', "line 1: malformed JSON"),
        ("u.parquet", "x", "not a readable parquet file"),
        ("u.txt", "x", "unknown kind of file"),
    ],
)
def test_wrong_inputs(
    name: str, content: str, said: str, predict: Callable[..., module.Predicted], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        predict(tmp_path / "new" / "recs.csv", tmp_path / name)
    assert said in str(error.value)
    assert not list(tmp_path.glob("new/*")), "not even a hidden folder"


def test_nothing_is_overwritten(predict: Callable[..., module.Predicted], tmp_path: Path) -> None:
    (tmp_path / "recs.csv").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        predict(tmp_path / "recs.csv")
    (tmp_path / ".other.csv.parts").mkdir()
    (tmp_path / ".other.csv.parts" / "mine").touch()
    with pytest.raises(UserError, match="did not make"):
        predict(tmp_path / "other.csv")
    with pytest.raises(UserError, match=r"unknown kind of file; expected \.parquet"):
        predict(tmp_path / "recs.xlsx")


def table(tmp_path: Path, name: str, content: str) -> list[module.User]:
    path = tmp_path / name
    path.write_bytes(content.encode())
    return list(module.users(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("users.CSV", "user_id,history\nu1,B1 B2\n"),
        ("users.csv", "user_id, history\nu1, B1 B2\n"),
        ("users.csv", "user_id;history\nu1;B1 B2\n"),
        ("users.csv", "\ufeffuser_id\thistory\r\nu1\tB1 B2\r\n"),
        ("users.csv", 'sep=;\nuser_id;history\n"u1";"[""B1"", ""B2""]"\n'),
        ("users.Jsonl", '{"user_id": "u1", "history": ["B1", "B2"]}\n'),
    ],
)
def test_tables_as_other_commands_read_them(name: str, content: str, tmp_path: Path) -> None:
    assert table(tmp_path, name, content) == [module.User("u1", ["B1", "B2"], None)]


def test_an_open_quotation_mark_swallows_no_user(tmp_path: Path) -> None:
    """It is an ordinary character then, as for other commands; the note of the answer tells which id nobody knows."""
    found = table(tmp_path, "users.csv", 'user_id,history\nu,"i1 i2\nv,i2\nw,i3\n')
    assert [(user.user_id, user.history) for user in found] == [("u", ['"i1', "i2"]), ("v", ["i2"]), ("w", ["i3"])]


def test_a_column_of_whole_numbers_has_no_zeros_after_the_point(tmp_path: Path) -> None:
    found = table(tmp_path, "users.csv", "user_id,history\nu1,1.0 07 10.00\nu2,\nu3, 2\n")
    assert [user.history for user in found] == [["1", "07", "10"], [], ["2"]]
    found = table(tmp_path, "users.csv", "user_id,history\nu1,1.0\nu2,v1.0 B7\n")
    assert [user.history for user in found] == [["1.0"], ["v1.0", "B7"]], "one is no number, so all are texts"
