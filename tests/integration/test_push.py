"""Publishing and loading over HTTP, against a stand-in of the Hub that speaks what huggingface_hub asks of it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llmrec import Catalog, EmbedConfig, ItemTokenizer, Recommender
from llmrec.model.config import BaseConfig
from llmrec.recommender import bundle, hub

Program = Callable[..., subprocess.CompletedProcess[str]]
WRITER, READER = "hf_writer", "hf_reader"


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory: (name, branch) -> commits, each a dictionary of path -> bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.branches: dict[tuple[str, str], list[dict[str, bytes]]] = {}
        self.private: set[str] = set()

    def commit(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Name and files of the last commit of a branch, or of the commit of that name."""
        for (name, branch), commits in self.branches.items():
            for number, files in reversed(list(enumerate(commits))):
                oid = hashlib.sha1(f"{name} {branch} {number}".encode()).hexdigest()
                if name == repo and revision in (branch, oid):
                    return oid, files
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to the terminal."""

    def answer(self, status: int, body: object, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def do_POST(self) -> None:
        hub_, path = self.server, urlsplit(self.path).path
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b"".join(self.chunks())
        if self.token != WRITER:
            self.answer(403, {"error": "Forbidden"}, X_Error_Message="this token may only read")
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            wish = json.loads(content)
            repo = f"{wish['organization']}/{wish['name']}"
            new = (repo, "main") not in hub_.branches
            hub_.branches.setdefault((repo, "main"), [{".gitattributes": b""}])
            if wish.get("visibility") == "private":
                hub_.private.add(repo)
            self.answer(200 if new else 409, {"url": f"{hub_.url}/{repo}"})
        else:
            self.change(
                *re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/(branch|preupload|commit)/(\w+)", path).groups(), content
            )

    def change(self, repo: str, what: str, branch: str, content: bytes) -> None:
        branches = self.server.branches
        if what == "branch":
            new = (repo, branch) not in branches
            branches.setdefault((repo, branch), [branches[repo, "main"][-1]])
            self.answer(200 if new else 409, {})
        elif what == "preupload":
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            self.answer(200, {"files": modes})
        else:
            files = dict(branches[repo, branch][-1])
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            branches[repo, branch].append(files)
            oid, _ = self.server.commit(repo, branch)
            self.answer(200, {"commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        about = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/(revision|tree)/(\w+))?", path)
        file = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/(\w+)/(.+)", path)
        repo, revision = (about[1], about[3] or "main") if about else (file[1], file[2])
        found = self.server.commit(repo, revision)
        if (repo, "main") not in self.server.branches or (repo in self.server.private and not self.token):
            self.answer(401, {}, X_Error_Code="RepoNotFound")
        elif found is None:
            self.answer(404, {}, X_Error_Code="RevisionNotFound")
        elif file:
            data = found[1][file[3]]
            self.answer(200, data, X_Repo_Commit=found[0], ETag=f'"{hashlib.sha1(data).hexdigest()}"')
        elif about[2] == "tree":
            oids = {name: hashlib.sha1(data).hexdigest() for name, data in found[1].items()}
            sizes = {name: len(data) for name, data in found[1].items()}
            self.answer(200, [{"type": "file", "path": n, "size": sizes[n], "oid": oids[n]} for n in oids])
        else:
            self.answer(200, {"id": repo, "sha": found[0], "siblings": [{"rfilename": n} for n in found[1]]})

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def online(environment: dict[str, str], fake_hub: FakeHub, tmp_path: Path) -> Callable[..., Program]:
    """`online(token)` gives the program with the stand-in as its Hub and an empty cache."""

    def with_token(token: str | None = WRITER, url: str = fake_hub.url) -> Program:
        variables = {name: value for name, value in environment.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        variables |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
        variables |= {"HF_TOKEN": token} if token else {}

        def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "llmrec", *map(str, words)]
            return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=tmp_path)

        return run

    return with_token


@pytest.fixture(scope="module")
def recommender(tiny_catalog: Catalog) -> Recommender:
    """20 items, unfitted: its answers are arbitrary, and the same after a journey."""
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    return Recommender.from_base(None, tokenizer, config=config)


@pytest.fixture
def folder(recommender: Recommender, tmp_path: Path) -> Path:
    """A bundle with what must stay at home beside it."""
    folder = tmp_path / "model"
    recommender.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A card\n")
    (folder / "manifest.json").write_text("{}")
    (folder / ".lock").touch()
    (folder / "optimizer.pt").write_bytes(b"0")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(b"0")
    return folder


def answers(result: subprocess.CompletedProcess[str]) -> list[dict]:
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout)["items"])


def test_there_and_back(online: Callable[..., Program], fake_hub: FakeHub, folder: Path) -> None:
    result = online()("push", "--model", folder, "--repo-id", "org/shop", "--private")
    assert result.returncode == 0, result.stderr
    oid, files = fake_hub.commit("org/shop", "main")
    assert result.stdout == f"{fake_hub.url}/org/shop/commit/{oid}\n"
    assert "commit a data file" not in result.stderr
    assert set(files) == {".gitattributes", *hub.published_files(folder)}
    assert files["quantizer/quantizer.json"] == (folder / "quantizer" / "quantizer.json").read_bytes()
    assert "org/shop" in fake_hub.private
    request = ["--history", "i1", "i7", "--prompt", "hand balm", "--k", "20", "--json"]
    there = answers(online(READER)("recommend", "--model", "org/shop", *request))
    assert len(there) == 18
    assert there == answers(online()("recommend", "--model", folder, *request))
    said = online(None)("inspect", "--model", "org/shop@main")
    assert said.returncode == 0, said.stderr  # from the cache


def test_a_branch_of_its_own(online: Callable[..., Program], fake_hub: FakeHub, folder: Path) -> None:
    words = ("push", "--model", folder, "--repo-id", "org/branches", "--revision", "v2", "--message", "second")
    for _ in range(2):
        assert online()(*words).returncode == 0
    assert list(fake_hub.commit("org/branches", "main")[1]) == [".gitattributes"]
    inspected = online()("inspect", "--model", "org/branches@v2", "--json")
    assert json.loads(inspected.stdout)["items"] == 20
    absent = online()("inspect", "--model", "org/branches@v3")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    assert "--model org/branches@v3: no such folder, and the Hub gave" in absent.stderr


def test_a_later_push_leaves_no_part_of_an_earlier_bundle(
    online: Callable[..., Program], fake_hub: FakeHub, folder: Path
) -> None:
    assert online()("push", "--model", folder, "--repo-id", "org/twice").returncode == 0
    fake_hub.branches["org/twice", "main"][-1]["pictures/shop.json"] = b"{}"
    (folder / bundle.TRIE).unlink()
    (folder / "README.md").unlink()
    assert online()("push", "--model", folder, "--repo-id", "org/twice").returncode == 0
    _, files = fake_hub.commit("org/twice", "main")
    kept = {".gitattributes", "README.md", "pictures/shop.json"}
    assert set(files) == kept | set(hub.published_files(folder))


@pytest.mark.parametrize(
    ("token", "said"), [(None, "token"), (READER, "this token may only read"), (WRITER, "Connection refused")]
)
def test_what_stands_in_the_way_is_one_line(
    token: str | None, said: str, online: Callable[..., Program], folder: Path
) -> None:
    url = {"url": "http://127.0.0.1:9"} if token == WRITER else {}
    result = online(token, **url)("push", "--model", folder, "--repo-id", "org/refused")
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert said in line
    assert line.startswith("llmrec: --repo-id")


def test_from_python(
    online: Callable[..., Program], fake_hub: FakeHub, folder: Path, recommender: Recommender, tmp_path: Path
) -> None:
    """`push_to_hub` in a process of its own, since the Hub's client reads its address when it is imported."""
    script = "import sys, llmrec; print(llmrec.Recommender.from_pretrained(sys.argv[1]).push_to_hub('org/python'))"
    (tmp_path / "push.py").write_text(script)
    shutil.copytree(folder, tmp_path / "copy")
    environment = {"HF_ENDPOINT": fake_hub.url, "HF_TOKEN": WRITER, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "push.py"), str(tmp_path / "copy")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    oid, files = fake_hub.commit("org/python", "main")
    assert result.stdout.endswith(f"/org/python/commit/{oid}\n")
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
