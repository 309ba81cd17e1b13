"""What a user can get wrong: one line that says where and what, exit code 2, no traceback."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file

from llmrec.cli.main import main
from llmrec.decode.context import ItemHead
from llmrec.decode.search import NotNumbersError
from llmrec.index.trie import ItemTrie
from llmrec.quantize.config import Method

Fails = Callable[..., str]
Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """events.csv and items.csv: 6 users with 4 events each, 6 items."""
    events = ["user_id,item_id,timestamp"]
    events += [f"u{user},i{(user + step) % 6},{step}" for user in range(6) for step in range(4)]
    (tmp_path / "events.csv").write_text("\n".join(events) + "\n")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},title {n}\n" for n in range(6)))
    return tmp_path


def prepare(folder: Path, *words: str) -> list[str]:
    """The command that reads the tables in `folder`; later words override earlier ones."""
    flags = {"format": "table", "path": folder / "events.csv", "items": folder / "items.csv", "user_core": 1}
    words = tuple(f"--data.{name}={value}" for name, value in {**flags, "item_core": 1}.items()) + words
    return ["prepare", "--run", str(folder / "run"), *words]


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")


def test_the_shop_itself_is_fine(llmrec_process: Program, shop: Path) -> None:
    result = llmrec_process(*prepare(shop))
    assert result.returncode == 0, result.stderr


def test_missing_file(fails: Fails, shop: Path) -> None:
    line = fails(*prepare(shop, "--data.path=nowhere.csv"))
    assert "--data.path" in line
    assert "nowhere.csv" in line


def test_missing_column(fails: Fails, shop: Path) -> None:
    line = fails(*prepare(shop, "--data.columns.user=customer"))
    assert "events.csv" in line
    assert "'customer'" in line
    assert "--data.columns.user" in line
    assert "user_id, item_id, timestamp" in line


def test_malformed_json(fails: Fails, shop: Path) -> None:
    rows = [json.dumps({"user_id": "u", "item_id": "i0", "timestamp": step}) for step in range(4)]
    (shop / "events.jsonl").write_text("\n".join([*rows[:2], '{"user_id": "u", ', *rows[2:]]))
    line = fails(*prepare(shop, f"--data.path={shop / 'events.jsonl'}"))
    assert "events.jsonl, line 3: malformed JSON" in line


def test_item_that_the_catalogue_lacks(fails: Fails, llmrec: Program, shop: Path) -> None:
    append(shop / "events.csv", "u0,i99,9")
    line = fails(*prepare(shop, "--data.unknown_items=fail"))
    assert "'i99'" in line
    assert "--data.unknown_items" in line
    assert llmrec(*prepare(shop)).returncode == 0
    steps = json.loads((shop / "run" / "data" / "split.json").read_text())["steps"]
    assert [(step["interactions"], step["dropped"]) for step in steps[:2]] == [(25, 0), (24, 1)]


def test_item_without_text(fails: Fails, llmrec: Program, shop: Path) -> None:
    append(shop / "items.csv", "i6,")
    line = fails(*prepare(shop, "--data.empty_text=fail"))
    assert "'i6'" in line
    assert "--data.empty_text" in line
    assert llmrec(*prepare(shop)).returncode == 0
    assert "i6" not in pl.read_parquet(shop / "run" / "data" / "items.parquet")["item_id"]


def test_duplicate_item_ids(fails: Fails, shop: Path) -> None:
    append(shop / "items.csv", "i3,another title")
    line = fails(*prepare(shop))
    assert "items.csv" in line
    assert "'i3'" in line


def test_empty_log_after_filtering(fails: Fails, shop: Path) -> None:
    line = fails(*prepare(shop, "--data.user_core=50"))
    assert "'50-core of users, 1-core of items' left no interactions" in line
    assert "--data" in line


def test_nan_embeddings(fails: Fails, run_copy: Path, tiny_flags: list[str]) -> None:
    path = run_copy / "embed" / "embeddings.safetensors"
    vectors = load_file(path)["embeddings"]
    vectors[7, 0] = np.nan
    save_file({"embeddings": vectors}, path)
    row = pl.read_parquet(run_copy / "data" / "items.parquet")["item_id"][7]
    line = fails("tokenize", "--run", run_copy, *tiny_flags, "--tokenize.codes", "16")
    assert repr(row) in line
    assert "nan" in line.lower()


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr of a command, run in this process, that must end with 2."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


@pytest.mark.parametrize("method", [*get_args(Method), "rq-kmeans-balanced", "simvq"])
def test_constant_embeddings(
    run_copy: Path, tiny_flags: list[str], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_copy / "embed" / "embeddings.safetensors"
    save_file({"embeddings": np.ones_like(load_file(path)["embeddings"])}, path)
    words = ["compare-tokenizers", "--run", str(run_copy), *tiny_flags, "--methods", method]
    assert "1 distinct" in refused(words, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokenize.codes", "4000"], "--tokenize.codes"),
        (["--embed.dim", "5", "--tokenize.method", "pq", "--tokenize.levels", "7"], "--tokenize.levels"),
        (["--embed.dim", "5", "--tokenize.method", "opq", "--tokenize.levels", "7"], "5 dimensions"),
        (["--tokenize.method", "k-means"], "--tokenize.method"),
        (["--tokenize.method", "tiger"], "--config configs/tokenizers/tiger.yaml"),
        (["--tokenize.levels", "1", "--tokenize.collisions", "nearest-free"], "nearest-free"),
    ],
)
def test_tokenizer_that_does_not_fit(
    run_copy: Path, tiny_flags: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(["tokenize", "--run", str(run_copy), *tiny_flags, *words], capsys)


def test_unknown_config_key(fails: Fails, shop: Path) -> None:
    assert "did you mean 'data.item_core'" in fails(*prepare(shop, "--data.itemcore=2"))


def test_second_process(llmrec_process: Program, shop: Path) -> None:
    from llmrec.rundir import RunDirectory

    first = RunDirectory(shop / "run")
    second = llmrec_process(*prepare(shop))
    assert second.returncode == 2
    [line] = second.stderr.splitlines()
    assert "another llmrec is at work" in line
    del first
    assert llmrec_process(*prepare(shop)).returncode == 0


def test_a_defect_of_ours_ends_with_1(llmrec_process: Program, run_copy: Path, tiny_flags: list[str]) -> None:
    """Damage that no user makes is not dressed up as the user's mistake."""
    path = run_copy / "embed" / "embed.json"
    path.write_text("x" * path.stat().st_size)  # of another size, it would be noticed and made again
    result = llmrec_process("tokenize", "--run", run_copy, *tiny_flags, "--tokenize.codes", "16")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--history", "NOSUCH", "--unknown", "fail"], "--history NOSUCH: no such item"),
        (["--history", "NOSUCH", "--unknown", "maybe"], "--unknown: invalid choice: 'maybe'"),
        (["--prompt", "tea \ud83d cup"], r"--prompt 'tea \ud83d cup': holds \ud83d, half of a surrogate pair"),
        (["--history", "\udcff"], r"holds \udcff, half of a surrogate pair"),
        (["--prompt", "soap", "--where", "brand=\ud83d"], r"--where 'brand=\ud83d': holds \ud83d"),
        (["--prompt", "soap", "--exclude", "NOSUCH"], "--exclude NOSUCH: no such item"),
        (["--prompt", ""], "--prompt '' is empty"),
        (["--prompt", "  \n "], "is empty"),
        (["--prompt", "a soft blanket " * 400], "shorten --prompt"),
        (["--prompt", "soap", "--where", "colour=red"], "--where colour=red: no such field"),
        (["--prompt", "soap", "--where", "red"], "--where red: expected FIELD=VALUE, such as brand=Weleda"),
        (["--prompt", "soap", "--where", "brand=a", "--where", "brand=b"], "--where brand=b: brand has been given"),
        (["--prompt", "soap", "--allow", "NOSUCH"], "--allow NOSUCH: no such item"),
        (["--prompt", "soap", "--max-per", "brand"], "--max-per brand: expected FIELD=VALUE, such as brand=2"),
        (["--prompt", "soap", "--max-per", "brand=few"], "--max-per brand=few: expected FIELD=M"),
        (["--prompt", "soap", "--max-per", "brand=0"], "--max-per brand=0: expected at least 1"),
        (["--prompt", "soap", "--max-per", "colour=1"], "--max-per colour=1: no such field; known are"),
        (["--prompt", "soap", "--max-per-code", "0"], "--max-per-code 0: expected at least 1"),
        (["--prompt", "soap", "--boost", "nowhere.csv"], "--boost: nowhere.csv: expected a file, found nothing there"),
        (
            ["--prompt", "soap", "--cold-bonus", "2"],
            "--cold-bonus 2 is for the ranking fusion, and this model ranks by ",
        ),
        (["--prompt", "soap", "--k", "0"], "--k 0"),
        (["--prompt", "soap", "--k", "many"], "--k"),
        (["--prompt", "soap", "--beams", "0"], "--beams 0"),
        (["--prompt", "soap", "--device", "abacus"], "abacus"),
        ([], "--history and --prompt are both missing"),
        (["--prompt", "soap", "--hitsory", "x"], "--hitsory"),
    ],
)
def test_recommend(tiny_run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--model", str(tiny_run / "model"), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "boost.csv: no line of column names as the file is empty"),
        ("item,offset\nx,1\n", "boost.csv: no column 'item_id' (--boost); found: item, offset"),
        ("item_id,offset\n{0},1\n{1},1,5\n", "boost.csv, line 3: 3 fields with ',' between them, expected 2"),
        ("item_id;offset\n{0};1,5\n", "boost.csv, line 2: offset '1,5', expected a number such as 1.5"),
        ("item_id,offset\n,1\n", "boost.csv, line 2: no item_id; expected one in every row"),
        ("item_id,offset\n{0},1\n{1},much\n", "boost.csv, line 3: offset 'much', expected a number"),
        ("item_id,offset\n{0},1\n{1}\n", "boost.csv, line 3: offset None, expected a number"),
        ("item_id,offset\n{0},1\n{0},2\n", "boost.csv, line 3: item {0} stands there twice"),
        ("item_id,offset\n{0},inf\n", "--boost {0}: offset inf, expected a finite number"),
        ("item_id,offset\nNOSUCH,1\n", "--boost NOSUCH: no such item"),
    ],
)
def test_boost(tiny_run: Path, content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = pl.read_parquet(tiny_run / "data" / "items.parquet")["item_id"]
    file = tmp_path / "boost.csv"
    file.write_text(content.format(*ids[:2]))
    assert main(["recommend", "--model", str(tiny_run / "model"), "--prompt", "soap", "--boost", str(file)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said.format(*ids[:2]) in line


def test_weights_that_are_not_numbers(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A diverged training or a damaged file: refused when it is loaded, with the tensor named."""
    path = run_copy / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8 : 8 + length])["model.layers.1.mlp.down_proj.weight"]["data_offsets"]
    numbers = np.full((end - begin) // 4, np.nan, np.float32)
    content[8 + length + begin : 8 + length + end] = numbers.tobytes()  # in place, so that the size stays
    path.write_bytes(content)
    assert main(["recommend", "--model", str(run_copy / "model"), "--prompt", "soap"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "tensor model.layers.1.mlp.down_proj.weight holds NaN or infinity" in line
    assert "model.layers.1.mlp.down_proj.weight" in line


def test_sound_weights_with_scores_that_are_not_numbers_are_a_defect(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not dressed up as the user's mistake: the traceback goes through, and the program ends with 1."""
    monkeypatch.setattr(ItemHead, "level", lambda self, hidden, level: torch.full((len(hidden), 32), torch.nan))
    with pytest.raises(NotNumbersError, match="level 1 of 4"):
        main(["recommend", "--model", str(tiny_run / "model"), "--prompt", "soap", "--ranking", "beam"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--decode.constraint", "none", "--decode.scoring", "catalogue"], "--decode.scoring catalogue"),
        (["--decode.constraint", "none", "--decode.scoring", "level"], "--decode.constraint none needs"),
        (["--decode.constraint", "some"], "--decode.constraint: expected one of"),
        (["--decode.beams", "0"], "--decode.beams 0"),
    ],
)
def test_evaluate(fails: Fails, run_copy: Path, tiny_flags: list[str], words: list[str], said: str) -> None:
    assert said in fails("evaluate", "--run", run_copy, *tiny_flags, *words)


def test_recommend_in_a_process_of_its_own(llmrec_process: Program, tiny_run: Path) -> None:
    result = llmrec_process(
        "recommend", "--model", tiny_run / "model", "--history", "NOSUCH", "--unknown", "fail", "--json"
    )
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert "NOSUCH" in line


def damage(folder: Path, how: str) -> None:
    header = folder / "llmrec.json"
    if how == "no header":
        header.unlink()
    elif how == "not JSON":
        header.write_text(header.read_text()[:40])
    elif how == "a list":
        header.write_text("[]")
    elif how == "another schema":
        header.write_text(json.dumps({**json.loads(header.read_text()), "schema": 99}))
    elif how == "a field lacks":
        content = json.loads(header.read_text())
        del content["levels"]
        header.write_text(json.dumps(content))
    elif how == "another scoring":
        header.write_text(json.dumps({**json.loads(header.read_text()), "scoring": "best"}))
    elif how == "another tokenizer's codes":
        quantizer = folder / "quantizer" / "quantizer.json"
        content = json.loads(quantizer.read_text())
        content["level_sizes"][-1] += 1
        quantizer.write_text(json.dumps(content))
    elif how == "another catalogue":
        index = pl.read_parquet(folder / "item_index.parquet")
        index[1:].write_parquet(folder / "item_index.parquet")
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "cut weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "no quantizer":
        (folder / "quantizer" / "quantizer.json").unlink()
    elif how == "no prompts":
        (folder / "prompts" / "search.yaml").unlink()
    elif how == "cut index":
        path = folder / "item_index.parquet"
        path.write_bytes(path.read_bytes()[:100])
    elif how == "cut trie":
        path = folder / "trie.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    elif how == "not a trie":
        shutil.copy(folder / "model.safetensors", folder / "trie.safetensors")
    elif how == "another trie":
        trie = ItemTrie.load(folder / "trie.safetensors")
        trie.without_items(np.array([0])).save(folder / "trie.safetensors")


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("no header", "llmrec.json"),
        ("not JSON", "llmrec.json"),
        ("a list", "llmrec.json"),
        ("another schema", "schema 99"),
        ("a field lacks", "levels"),
        ("another scoring", "scoring 'best'"),
        ("another tokenizer's codes", "they belong to different tokenizers"),
        ("another catalogue", "item_index.parquet"),
        ("no weights", "model.safetensors"),
        ("cut weights", "header"),
        ("no tokenizer", "tokenizer"),
        ("no quantizer", "quantizer"),
        ("no prompts", "search"),
        ("cut index", "item_index.parquet"),
        ("cut trie", "trie.safetensors"),
        ("not a trie", "trie.safetensors"),
        ("another trie", "trie.safetensors"),
    ],
)
def test_damaged_bundle(run_copy: Path, how: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_copy / "model"
    header = json.loads((folder / "llmrec.json").read_text())
    (folder / "llmrec.json").write_text(json.dumps(header | {"files": {}}))  # else sizes would tell of all damage
    damage(folder, how)
    assert main(["recommend", "--model", str(folder), "--prompt", "soap"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.parametrize("command", [["recommend", "--prompt", "soap"], ["inspect"]])
@pytest.mark.parametrize("name", ["nowhere", "no/such/place", "/no/such/place", "org/name"])
def test_model_that_is_nowhere(
    command: list[str], name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main([*command, "--model", name]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"--model {name}: no such folder" in line


@pytest.mark.parametrize("words", [["--run", "nowhere"], ["--run", "{empty}"], []])
def test_inspect(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *(word.format(empty=tmp_path) for word in words)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--run" in line
