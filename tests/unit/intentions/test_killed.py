"""`kill -9` while an endpoint is asked: what was answered is never asked again, and no key is left on the disk."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from llmrec.intentions import Intentions

KEY = "sk-a-secret-of-the-test"
PROGRAM = """
import sys
from llmrec import pipeline
from llmrec.config import Config
from llmrec.console import log_to_stderr
from llmrec.data import DataConfig
from llmrec.intentions import IntentionsConfig
from llmrec.rundir import RunDirectory
log_to_stderr()
data = DataConfig(synthetic_items=50, synthetic_users=30, user_core=1, item_core=1)
asked = IntentionsConfig("llm", url=sys.argv[2], model="m", concurrent=int(sys.argv[3]))
config, run = Config(data=data, intentions=asked), RunDirectory(sys.argv[1])
pipeline.data_stage(config, run)
pipeline.intentions_stage(config, run)
"""


def start(run: Path, url: str, concurrent: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(run), url, str(concurrent)]
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "NO_PROXY": "*"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    return log


def test_killed_half_way(endpoint: Any, tmp_path: Path) -> None:
    reached, release = threading.Event(), threading.Event()

    def hangs_at_the_tenth(prompt: str, before: int) -> str:
        if len(endpoint.prompts) == 10:
            reached.set()
            release.wait(60)
        return f"a wish {hash(prompt)}\nanother wish"

    endpoint.reply = hangs_at_the_tenth
    killed = start(tmp_path / "run", endpoint.url, 1)
    while not reached.wait(0.1):
        assert killed.poll() is None, killed.communicate()
    killed.kill()
    killed.communicate()
    release.set()
    answered, asked = endpoint.prompts[:9], len(endpoint.prompts)
    assert not (tmp_path / "run" / "intentions").exists()

    log = finish(start(tmp_path / "run", endpoint.url, 2))  # another pace: the same answers
    assert set(answered).isdisjoint(endpoint.prompts[asked:])
    assert len(endpoint.prompts) == len(set(endpoint.prompts)) + 1, "only the one that hung was asked twice"
    assert f"intentions: {len(set(endpoint.prompts)) - 9} of {len(set(endpoint.prompts))} prompts to ask of m" in log
    found = Intentions.load(tmp_path / "run" / "intentions")
    assert found.items
    assert found.users
    assert found.held_out
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]

    asked = len(endpoint.prompts)
    assert "intentions: unchanged" in finish(start(tmp_path / "run", "http://127.0.0.1:9/v1", 1))
    assert len(endpoint.prompts) == asked
