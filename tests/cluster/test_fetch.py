"""`bicot fetch`: from a server of our own, and from files that a person put there."""

import hashlib
import io
import json
import socket
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from cluster.commands import fetch as command
from cluster.commands.fetch import check_fetched, split, system_prompt
from cluster.config import load_config
from cluster.validate import validate_run
from evaluation.data import RELEASES, PublishedFile, Release
from policy.errors import UserError
from policy.prompts import load_templates, read_prompts
from tests.cluster.commands import bicot_here
from tests.conftest import ROOT

ROWS = [
    json.dumps({"prompt": f"{kind} {n}", "task_type": kind})
    for kind, count in (("color", 200), ("shape", 100), ("rare", 2))
    for n in range(count)
]
SOURCE = (
    'print("this is never run")\nask(text, system_prompt="Be\\u2028brief.")\nask(system_prompt="")\n'
)
CONTENT = {
    "data/prompts.json": "\n".join(ROWS).encode(),
    "data/instruction.txt": b'Plan "{}"\nin words: ',
    "src/trainer.py": SOURCE.encode(),
}
QUIET = Console(quiet=True)


def published(path: str, content: bytes) -> PublishedFile:
    return PublishedFile(path, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Elsewhere(Release):
    """A release that lies on a server of the test's own."""

    server: str = ""

    @property
    def url(self) -> str:
        return self.server


def release(url: str) -> Release:
    files = tuple(published(path, content) for path, content in CONTENT.items())
    return Elsewhere("some/where", "0" * 40, "MIT", files, server=url)


def fetch(source: Release, out: Path, console: Console = QUIET) -> None:
    """The command for T2I-R1, with its files on another server."""
    with another_server(source):
        command.fetch("t2i_r1", out, console)


@contextmanager
def another_server(source: Release):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "T2I_R1", source)
        patch.setitem(RELEASES, "geneval", source)
        yield


@pytest.fixture
def server():
    """(Release, what it answers by path, paths it was asked for). None: it breaks off half-way."""
    answers, asked = dict(CONTENT), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(path := self.path.removeprefix("/commit/"))
            if path not in answers:
                self.send_error(404)
                return
            whole = CONTENT[path] if answers[path] is None else answers[path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2] if answers[path] is None else whole)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield release(f"http://127.0.0.1:{http.server_port}/commit"), answers, asked
        http.shutdown()


def test_prompts_and_wording_are_written_and_kept(server, tmp_path):
    source, _, asked = server
    fetch(source, tmp_path)
    train, held_out = (read_prompts(tmp_path / f"{name}.jsonl") for name in ("train", "heldout"))
    assert Counter(p.task_type for p in held_out) == {"color": 6, "shape": 3, "rare": 1}
    assert len(train) == 302 - 10
    assert not {p.text for p in train} & {p.text for p in held_out}

    templates = load_templates(tmp_path / "templates")
    assert templates.cot_conversation("a {cot}") == (
        'Be\u2028brief.\n\nUser: Plan "a {cot}"\nin words:\n\nAssistant:'
    )
    assert "User: a dog..  It\n\nAssistant:" in templates.image_conversation("a dog.", " It ")

    assert asked == list(CONTENT)
    fetch(source, tmp_path)
    assert asked == list(CONTENT)  # nothing is asked for twice


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"other words", "instruction.txt: what came is not the published file, whose hash is"),
        (b"x" * 100_000, "instruction.txt: what came is not the published file, whose hash is"),
        (None, "instruction.txt cannot be downloaded (RemoteProtocolError: peer closed connection"),
    ],
    ids=["wrong", "endless", "half"],
)
def test_what_did_not_arrive_whole_is_refused_and_what_did_is_kept(server, tmp_path, answer, complaint):
    source, answers, asked = server
    answers["data/instruction.txt"] = answer
    with pytest.raises(UserError) as caught:
        fetch(source, tmp_path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["prompts.json"]
    answers.update(CONTENT)
    fetch(source, tmp_path)
    assert asked.count("data/prompts.json") == 1


def test_a_file_that_is_gone_from_the_server_is_named(server, tmp_path):
    source, answers, _ = server
    del answers["src/trainer.py"]
    with pytest.raises(UserError, match=r"/commit/src/trainer\.py cannot be downloaded .*404"):
        fetch(source, tmp_path)


def test_without_a_network_one_line_says_which_files_go_where(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, so that nobody else listens there
        source = release(f"http://127.0.0.1:{free.getsockname()[1]}")
        kept = tmp_path / "published"
        kept.mkdir()
        (kept / "prompts.json").write_bytes(CONTENT["data/prompts.json"])
        with pytest.raises(UserError) as caught:
            fetch(source, tmp_path)
        message = str(caught.value)
        wanted = f" get {source.url}/data/instruction.txt, {source.url}/src/trainer.py some other way"
        assert wanted in message and f"into {kept}/" in message and "\n" not in message

        for path in ("data/instruction.txt", "src/trainer.py"):
            (kept / path.split("/")[-1]).write_bytes(CONTENT[path])
        fetch(source, tmp_path)
    assert (tmp_path / "train.jsonl").is_file()


def test_a_file_put_there_that_is_another_is_named(server, tmp_path):
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "trainer.py").write_bytes(SOURCE.replace("\n", "\r\n").encode())
    with pytest.raises(UserError, match=r"published/trainer\.py: not the published file"):
        fetch(server[0], tmp_path)


def test_a_folder_that_cannot_be_one_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"/file.*: (Not a directory|File exists)"):
        fetch(server[0], tmp_path / "file")


def fetch_benchmark(source: Release, out: Path, console: Console = QUIET) -> None:
    with another_server(source):
        command.fetch("geneval", out, console)


def test_a_benchmarks_files_are_written_as_they_are(server, tmp_path):
    source, _, asked = server
    output = io.StringIO()
    fetch_benchmark(source, tmp_path, Console(file=output))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        path.rsplit("/", 1)[-1]: content for path, content in CONTENT.items()
    }
    assert f"{tmp_path}: 3 files of github.com/some/where at 0000000; licence: MIT" in output.getvalue()
    fetch_benchmark(source, tmp_path)
    assert asked == list(CONTENT)  # nothing is asked for twice


def test_a_benchmarks_file_that_was_changed_is_refused(server, tmp_path):
    source, answers, _ = server
    answers["src/trainer.py"] = b"other words"
    with pytest.raises(UserError, match=r"trainer\.py: what came is not the published file"):
        fetch_benchmark(source, tmp_path)
    assert not (tmp_path / "trainer.py").exists()
    (tmp_path / "prompts.json").write_text("other words")
    with pytest.raises(UserError, match=r"prompts\.json: not the published file, .*: replace it"):
        fetch_benchmark(source, tmp_path)


def test_without_a_network_a_benchmarks_files_may_be_put_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, so that nobody else listens there
        source = release(f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(UserError) as caught:
            fetch_benchmark(source, tmp_path)
        message = str(caught.value)
        assert all(f"{source.url}/{path}" in message for path in CONTENT)
        assert f"into {tmp_path}/" in message and "\n" not in message
        for path, content in CONTENT.items():
            (tmp_path / path.rsplit("/", 1)[-1]).write_bytes(content)
        fetch_benchmark(source, tmp_path)


def test_a_name_that_is_not_known_lists_what_there_is(tmp_path):
    with pytest.raises(UserError, match=r"^geneva: .*there are t2i_r1, geneval, t2i_compbench, wise"):
        command.fetch("geneva", tmp_path, QUIET)


def test_a_benchmark_goes_into_a_folder_of_its_name(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with another_server(server[0]):
        command.fetch("geneval", None, QUIET)
    assert (tmp_path / "data" / "geneval" / "prompts.json").is_file()


@pytest.mark.parametrize("name", RELEASES)
def test_every_release_is_named_in_full(name):
    release = RELEASES[name]
    assert release.url.startswith("https://raw.githubusercontent.com/") and len(release.commit) == 40
    assert release.licence
    names = [file.name for file in release.files]
    assert len(set(names)) == len(names) > 0  # they lie in one folder
    for file in release.files:
        assert not file.is_whole(b"") and file.nbytes > 0


def test_the_split_depends_on_texts_alone():
    assert set(split(ROWS)[1]) == set(split(ROWS[::-1])[1])


def test_a_source_is_read_and_never_run():
    assert system_prompt(SOURCE) == "Be\u2028brief."


@pytest.mark.parametrize("recipe", ["train", "train_1b"])
def test_a_recipe_says_what_to_fetch(recipe, tmp_path, monkeypatch):
    config = load_config(ROOT / f"examples/janus_pro/{recipe}.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^data/t2i_r1/templates: .*`bicot fetch t2i_r1` gets"):
        validate_run(config)
    with pytest.raises(UserError, match=r"`bicot fetch t2i_r1 --out /runs/data/t2i_r1` gets"):
        check_fetched(None, "/runs/data/t2i_r1/train.jsonl")
    check_fetched(None, "data/t2i_r1/mine.jsonl", "data/other/train.jsonl")


def test_a_dry_run_says_what_to_fetch():
    missing = "train.prompts=nowhere/t2i_r1/train.jsonl"
    status, output = bicot_here("train", "examples/shapes/train.yaml", "--dry-run", missing)
    assert status == 2
    assert "`bicot fetch t2i_r1 --out nowhere/t2i_r1`" in output
