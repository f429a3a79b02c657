"""What the page's server lets out, to whom, and what it keeps."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from policy.errors import UserError
from policy.lock import run_lock
from rewards.middleware import token_digest
from studio.cli import app as command
from studio.pairs import biggest_first
from studio.playground import Playground
from studio.run_folders import RunFolders, last_step, state
from studio.runs import MetricsReader, list_runs
from studio.serve_page import PageConfig
from studio.votes import Vote, Votes
from studio.web_app import build_page
from tests.studio.conftest import GrowingRun, scored

TOKEN = "a token of many letters"
HERE = "http://127.0.0.1"


@contextmanager
def client(runs, digest=None, base_url=HERE, models=()):
    app = build_page(RunFolders(runs), Playground(models), digest)
    with TestClient(app, base_url=base_url, follow_redirects=False) as http:
        yield http


@pytest.fixture
def run(runs) -> GrowingRun:
    run = GrowingRun(runs / "mine", steps=2)
    run.step(1)
    run.evaluate(1, scored("a circle", 0.25, circles=0.25), scored("a square", 1.0))
    return run


# --- files ----------------------------------------------------------------------------------------


def test_pictures_inside_runs_are_given_and_nothing_else(runs, run, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (tmp_path / "secret.txt").write_text("secret")
    samples = run.folder / "samples"
    (samples / "out.png").symlink_to(tmp_path / "outside.png")
    (samples / "disguised.png").symlink_to(tmp_path / "secret.txt")
    (samples / "in.png").symlink_to(samples / "eval_000001" / "0000.png")
    (samples / "circle.png").symlink_to(samples / "circle.png")
    (samples / "folder.png").mkdir()
    os.mkfifo(samples / "pipe.png")
    (runs / "other").symlink_to(tmp_path)
    with client(runs) as http:
        for path in ("mine/samples/eval_000001/0000.png", "mine/samples/in.png"):
            reply = http.get(f"/api/picture/{path}")
            assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
            assert reply.headers["x-content-type-options"] == "nosniff"
        for path in (
            "mine/samples/out.png", "mine/samples/disguised.png", "mine/samples/circle.png",
            "mine/samples/folder.png", "mine/samples/pipe.png", "other/outside.png", "mine/config.yaml",
            "mine/samples/eval_000001/evaluation.json", "%2e%2e/outside.png",
            "mine/..%2f..%2foutside.png",
            f"{tmp_path}/outside.png", f"/{tmp_path}/outside.png", "mine/%00.png", "mine/none.png",
        ):  # fmt: skip
            assert http.get(f"/api/picture/{path}").status_code == 404, path


@pytest.mark.parametrize("name", ["..", ".", "%2e%2e", "none", "mine%00", "mine%2fsamples", "linked"])
def test_a_run_is_a_folder_right_below(runs, run, name, tmp_path):
    away = GrowingRun(tmp_path / "away")
    away.step(1)
    (runs / "linked").symlink_to(away.folder)
    with client(runs) as http:
        for what in ("about", "curves", "config", "names", "samples/eval_000001", "curve?name=x"):
            assert http.get(f"/api/runs/{name}/{what}").status_code == 404
        assert [one["name"] for one in http.get("/api/runs").json()["runs"]] == ["mine"]


def test_a_run_may_itself_be_what_is_looked_at(run):
    with client(run.folder) as http:
        (only,) = http.get("/api/runs").json()["runs"]
        assert only["name"] == "mine"
        found = http.get("/api/runs/mine/samples/eval_000001").json()
        picture = f"/api/picture/{found['folder']}/{found['rows'][0]['image']}"
        assert http.get(picture).status_code == 200


def test_nothing_but_votes_is_written(runs, run):
    def everything():
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in runs.rglob("*") if p.is_file()}

    before = everything()
    folder = "mine/samples/eval_000001"
    with client(runs) as http:
        for path in (
            "/", "/api/runs", "/api/runs/mine/about", "/api/runs/mine/curves", "/api/comparable",
            f"/api/compare?a={folder}&b={folder}", f"/api/votes?a={folder}&b={folder}",
        ):  # fmt: skip
            assert http.get(path).status_code == 200, path
        assert everything() == before
        body = {"a": folder, "b": folder, "key": "x", "vote": "tie"}
        assert http.post("/api/votes", json=body).status_code == 200
        assert everything().keys() - before.keys() == {runs / "votes.jsonl"}


def test_files_that_cannot_be_read_are_named_or_shown_as_empty(runs, run):
    path = run.folder / "samples" / "eval_000001" / "evaluation.json"
    with client(runs) as http:
        for text in ('{"scored": 3}', "[]", '{"scored": [', "\udcff"):
            path.write_text(text, errors="surrogateescape")
            reply = http.get("/api/runs/mine/samples/eval_000001")
            assert reply.status_code == 400 and "evaluation.json" in reply.json()["detail"]
        rows = [1, {}, {"image": "../../x.png", "reward": 1, "prompt": {"prompt": 3}, "boxes": [1]}]
        path.write_text(json.dumps({"scored": rows}))
        (row,) = http.get("/api/runs/mine/samples/eval_000001").json()["rows"]
        assert (row["image"], row["prompt"], row["boxes"], row["scores"]) == ("x.png", "3", {}, {})
        (run.folder / "config.yaml").write_text("a: [")
        assert http.get("/api/runs/mine/config").json() == []


# --- what is new ----------------------------------------------------------------------------------


def test_curves_are_sent_again_only_if_there_is_more(runs, run):
    with client(runs) as http:
        first = http.get("/api/runs/mine/curves").json()
        known = {"known": first["version"]}
        assert http.get("/api/runs/mine/curves", params=known).status_code == 204
        run.step(2, reward_mean=0.75)
        (reward,) = http.get("/api/runs/mine/curves", params=known).json()["charts"]
    assert reward["lines"] == [{"name": "reward/mean", "steps": [1, 2], "values": [0.01, 0.75]}]


def test_a_long_run_is_shown_at_once_and_exactly_when_it_is_read(runs):
    run = GrowingRun(runs / "long")
    filler = "".join(f', "x/{n}": {n}' for n in range(200))
    with (run.folder / "metrics.jsonl").open("w") as file:
        for step in range(3_000):
            file.write(f'{{"step": {step}, "time": 1, "reward/mean": {step}{filler}}}\n')
    with client(runs) as http:
        first = http.get("/api/runs/long/curves").json()
        assert first["behind"] and first["now"]["reward/mean"] == 2_999
        for _ in range(200):
            found = http.get("/api/runs/long/curves").json()
            if not found["behind"]:
                break
        assert not found["behind"]
    (reward,) = found["charts"][0]["lines"]
    # 300 points of 10 steps each, of which every one is the mean.
    assert reward["steps"] == [10 * n + 5 for n in range(300)]
    assert reward["values"] == [10 * n + 4.5 for n in range(300)]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 20))
def test_a_thinned_curve_has_the_mean_of_the_whole(tmp_path_factory, values, most):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    rows = [{"step": step, "time": 0, "loss": value} for step, value in enumerate(values)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = MetricsReader(path)
    assert not reader.read_on()
    steps, means = reader.thinned("loss", most)
    stride = -(-len(values) // most)
    sizes = [min(stride, len(values) - begin) for begin in range(0, len(values), stride)]
    assert len(steps) <= most and steps == sorted(set(steps))
    total = sum(mean * size for mean, size in zip(means, sizes, strict=True))
    assert total == pytest.approx(sum(values), abs=1e-3)


def test_the_state_is_that_of_the_lock_and_the_last_line(runs, run):
    def now() -> str:
        (summary,) = list_runs(runs)
        return state(summary, last_step(run.folder))

    assert now() == "stopped"
    with run_lock(run.folder):
        assert now() == "running"
    lock = runs / ".mine.lock"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    lock.write_text(f"process {gone.pid} on {socket.gethostname()}")
    assert now() == "stopped"
    lock.write_text("process 1 on another-machine")
    assert now() == "running"
    os.utime(run.folder / "metrics.jsonl", (1, 1))
    assert now() == "stopped"
    run.step(2)
    lock.unlink()
    assert now() == "finished"


# --- who may come in ------------------------------------------------------------------------------


@pytest.fixture
def digest(monkeypatch):
    monkeypatch.setenv("STUDIO_TEST_TOKEN", TOKEN)
    return token_digest(PageConfig(host="0.0.0.0", token_env="STUDIO_TEST_TOKEN"))


def test_without_a_token_only_this_machines_own_names_are_answered(runs, run):
    for url, status in ((HERE, 200), ("http://localhost:8090", 200), ("http://[::1]:1", 200)):
        with client(runs, base_url=url) as http:
            assert http.get("/api/runs").status_code == status
    for url in ("http://studio.example", "http://127.0.0.1.example", "http://192.168.0.1:80"):
        with client(runs, base_url=url) as http:
            assert http.get("/api/runs").status_code == 403


def test_a_token_is_asked_for_once_and_a_cookie_stands_for_it(runs, run, digest):
    with client(runs, digest, "http://studio.example") as http:
        assert http.get("/api/runs").status_code == 401
        page = http.get("/")
        assert page.status_code == 401 and 'type="password"' in page.text
        assert http.get("/static/app.js").status_code == 401
        assert http.get("/?token=wrong").status_code == 401
        assert http.post("/login", data={"token": "wrong"}).status_code == 401
        assert http.get("/api/runs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        http.cookies.set("bicot_studio", "guess")
        assert http.get("/api/runs").status_code == 401
        http.cookies.clear()

        link = http.get(f"/?token={TOKEN}&x=1")
        assert (link.status_code, link.headers["location"]) == (303, "/?x=1")
        cookie = link.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and TOKEN not in cookie
        assert http.get("/api/runs").status_code == 200
        http.cookies.clear()
        form = http.post("/login", data={"token": TOKEN})
        assert (form.status_code, form.headers["location"]) == (303, "/")
        assert http.get("/").status_code == 200
        away = http.get(f"http://studio.example//evil.example?token={TOKEN}")
        assert away.headers["location"] == "/evil.example"


def test_a_page_of_another_site_may_neither_vote_nor_frame(runs, run):
    body = {"a": "mine", "b": "mine", "key": "x", "vote": "a"}
    with client(runs) as http:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:81"):
            reply = http.post("/api/votes", json=body, headers={"Origin": origin})
            assert reply.status_code == 403
        assert http.post("/api/votes", json=body, headers={"Origin": HERE}).status_code == 200
        policy = http.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self';") and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--host", "0.0.0.0"], "token_env"),
        (["--port", "70000"], "port"),
        (["--model", "ftp://x"], "--model ftp://x: give a URL"),
        (["--model-token-env", "STUDIO_NO_SUCH"], "STUDIO_NO_SUCH is not set"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(runs, run, arguments, why):
    done = CliRunner().invoke(command, ["studio", str(runs), *arguments])
    assert isinstance(done.exception, UserError)
    assert why in str(done.exception) and "\n" not in str(done.exception)


def test_a_folder_and_an_address_that_are_not_to_be_had_are_named(runs, run):
    done = CliRunner().invoke(command, ["studio", str(runs / "none")])
    assert "no such folder of runs" in str(done.exception)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(command, ["studio", str(runs), "--port", port])
    assert "is taken: choose another --port" in str(done.exception)


# --- comparisons and votes ------------------------------------------------------------------------


def test_images_without_a_counterpart_are_noted(runs, run):
    run.evaluate(2, scored("a circle", 1.0), scored("another", 1.0))
    a, b = "mine/samples/eval_000001", "mine/samples/eval_000002"
    with client(runs) as http:
        found = http.get("/api/compare", params={"a": a, "b": b}).json()
        (pair,) = found["pairs"]
        assert (pair["prompt"], pair["difference"]) == ("a circle", 0.75)
        assert found["notes"] == ["2 images have no counterpart and are left out"]
        for wrong in ("../..", "none", "mine/samples/eval_000001/0000.png"):
            assert http.get("/api/compare", params={"a": a, "b": wrong}).status_code == 404
        assert http.get("/api/compare", params={"a": a, "b": "mine"}).status_code == 400


@given(st.lists(st.tuples(*[st.none() | st.floats(0, 1)] * 2), max_size=12))
def test_the_biggest_difference_comes_first(scores):
    pairs = biggest_first([{"a": {"score": a}, "b": {"score": b}} for a, b in scores])
    known = [abs(pair["difference"]) for pair in pairs if pair["difference"] is not None]
    assert known == sorted(known, reverse=True)
    assert [pair["difference"] is None for pair in pairs] == [False] * len(known) + [True] * (
        len(pairs) - len(known)
    )


def test_the_last_vote_counts_and_a_torn_line_harms_none(tmp_path):
    votes = Votes(tmp_path)
    votes.add(Vote(a="x", b="y", key="p/0", vote="a"))
    votes.add(Vote(a="x", b="y", key="p/0", vote="b"))
    with votes.path.open("a") as file:
        file.write('{"a": "x", "b')
    votes.add(Vote(a="y", b="x", key="\u202e<p>/1", vote="a"))
    assert votes.of("x", "y") == {"p/0": "b", "\u202e<p>/1": "b"}
    assert votes.of("y", "x") == {"p/0": "a", "\u202e<p>/1": "a"}
    assert votes.of("x", "z") == {}


def test_votes_do_not_follow_a_link(tmp_path):
    (tmp_path / "votes.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be written"):
        Votes(tmp_path).add(Vote(a="x", b="y", key="p", vote="a"))
    assert not (tmp_path / "elsewhere").exists()
