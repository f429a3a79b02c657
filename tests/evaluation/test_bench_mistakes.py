"""`bicot bench` on folders and records that others have had in hand: one line each, nothing lost."""

import json
import os
import subprocess

import numpy as np
import pytest
from PIL import Image

from cluster.cli import app
from evaluation.config import BenchConfig, judges_of
from evaluation.generators import Drawn
from evaluation.run_folder import RunFolder, identity
from policy.errors import UserError
from policy.lock import run_lock
from tests.evaluation.small_wise import IDS, SmallWise, write_data
from tests.evaluation.toy import gray

pytestmark = pytest.mark.usefixtures("no_ray")

SERVER = {"url": "http://127.0.0.1:9/v1", "model": "m"}  # nobody listens on that port
HOSTILE = '</figcaption><script>alert(1)</script>\x1b]0;me\x07\x1b[2J\u202e {{7 * 7}} & "q"'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def bench(*arguments: object) -> None:
    app(["bench", *map(str, arguments)], standalone_mode=False)


def begun(path, data, cot: str = "plan", judge: str = "m") -> RunFolder:
    benchmark = SmallWise(data)
    options = {"judges": {"vlm": {"options": SERVER | {"model": judge}}}}
    config = BenchConfig(benchmark=SmallWise.name, images=str(path), **options)
    entries = judges_of(benchmark, config).model_dump(mode="json")["experts"]
    folder = RunFolder(path, benchmark)
    what = identity(benchmark, {"kind": "policy", "path": "x", "cot": True}, 0, entries, None)
    folder.open(what, {"tasks": [], "limit": None})
    for n, item in enumerate(benchmark.items):
        folder.write(item, [Drawn(gray(20 * n + 10, 16), cot)])
    return folder


def judged(path, data, **options) -> RunFolder:
    folder = begun(path, data, **options)
    for item in folder.benchmark.items:
        reply = {"score": 1.0, "text": "Score: 1", "by": {"model": "m", "url": "127.0.0.1"}}
        folder.add_reply(item, 0, "vlm", reply)
    return folder


@pytest.fixture
def run(tmp_path, data):
    return judged(tmp_path / "run", data).folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for key in IDS:
        Image.fromarray(gray(key % 256)).save(folder / f"{key}.png")
    return folder


# --- judges on a server ---


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "the judge vlm is a vision-language model on a server: name both, as --judge-url"),
        (("--judge-url", SERVER["url"]), "name both, as --judge-url"),
        (
            ("--judge-url", SERVER["url"], "--judge-model", "m"),
            r"the judge vlm: no server answers at http://127\.0\.0\.1:9/v1: ConnectError",
        ),
        (
            ("--judge-url", SERVER["url"], "--judge-model", "m", "--judge-key-env", "NO_SUCH_KEY"),
            "the environment variable NO_SUCH_KEY, for the API key, is not set",
        ),
        (
            ("--judge-url", SERVER["url"], "judges.vlm.options.urll=1"),
            r"judges\.vlm: options: got an unexpected keyword argument 'urll'",
        ),
        (("--no-judge",), "no judge was asked yet: leave out --no-judge"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_anything_starts(
    images, data, tmp_path, options, complaint
):
    common = ("--benchmark", SmallWise.name, "--data", data, "--out", tmp_path / "out")
    with pytest.raises(UserError, match=complaint) as error:
        bench("score", images, *common, *options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_any_image_says_what_is_expected(tmp_path, data):
    (tmp_path / "readme.txt").write_text("mine")
    with pytest.raises(UserError, match=r"none of the images is there; the first would be 1\.png"):
        bench("score", tmp_path, "--benchmark", SmallWise.name, "--data", data)
    assert os.listdir(tmp_path) == ["readme.txt"]


def test_a_run_that_is_judged_is_scored_with_no_server_named(run, data):
    bench("score", run, "--data", data)
    (run / "images/1.png").unlink()
    bench("score", run, "--data", data)  # of an image that is not there nobody is asked
    assert json.loads((run / "result.json").read_text())["gaps"]["missing"] == 1


def test_images_that_were_drawn_first_may_be_judged_by_any_judge(tmp_path, data):
    benchmark = SmallWise(data)
    folder = begun(tmp_path, data, judge="one")
    what = folder.what
    other = {"use": what["judges"]["vlm"]["use"], "options": {"model": "m"}}
    folder.open({**what, "judges": {}}, {"tasks": [], "limit": None})
    assert folder.what["judges"] == what["judges"]  # asked for none: those that were named stay
    folder.open({**what, "judges": {"vlm": other}}, {"tasks": [], "limit": None})
    reply = {"score": 1.0, "text": "", "by": {"model": "m"}}
    folder.add_reply(benchmark.items[0], 0, "vlm", reply)
    with pytest.raises(UserError, match=r'judges\.vlm\.options\.model: "m" there, "one" asked for'):
        folder.open(what, {"tasks": [], "limit": None})


# --- images ---


def test_images_that_are_not_as_published_are_named(run, data, capsys):
    images = run / "images"
    os.rename(images / "1.png", images / "1.PNG")
    Image.open(images / "2.png").save(images / "2.jpg")
    (images / "2.png").unlink()
    (images / "3.png").unlink()
    os.mkfifo(images / "3.png")  # read, it would be waited for
    Image.fromarray(gray(77)).save(images / "401.png")
    Image.fromarray(np.zeros((10, 20000, 3), np.uint8)).save(images / "521.png")
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(images / "641.png")
    (images / "761.png").unlink()
    (images / "761.png").symlink_to("/etc/passwd")
    (images / "a\x1b[2J\nb.png").write_bytes(b"")
    bench("score", run, "--no-judge", "--data", data)
    result = json.loads((run / "result.json").read_text())
    assert result["tasks"] == dict.fromkeys(result["tasks"]) | {"CHEMISTRY": 1.0}
    notes = "\n".join(result["notes"])
    for text in (
        "2 images are missing: 1/0 (1.png), 2/0 (2.png)",
        "4 images cannot be read: 3/0 (not a file), 521/0 (20000 x 10 pixels",
        "641/0 (has mode I;16; use 8 bits a channel)",
        "761/0 (is no PNG, JPEG or WebP image)",
        "401/0 by vlm (another image was judged, or asked about otherwise)",
        r"3 files belong to no prompt and were passed over: 1.PNG, 2.jpg, 'a\x1b[2J\nb.png'",
    ):
        assert text in notes
    assert "\x1b[2J" not in capsys.readouterr().out


# --- records ---


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("replies.jsonl", b"{}\n", r"replies\.jsonl:9: item: Field required"),
        ("replies.jsonl", b'{"item": [1]}\n', r"replies\.jsonl:9: item: "),
        ("replies.jsonl", b"hello\n", r"replies\.jsonl:9: not valid JSON"),
        ("images.jsonl", b'{"item": "1", "index": 0}\n', r"images\.jsonl:9: .*either a sha256"),
        ("images.jsonl", b"\xff\n", r"images\.jsonl:9: not UTF-8"),
        ("bench.json", b"{}", r"bench\.json: benchmark: Field required"),
        ("bench.json", b"", r"bench\.json: not valid JSON"),
    ],
)
def test_a_record_that_was_spoiled_is_named_with_its_line(run, data, name, content, complaint):
    path = run / name
    path.write_bytes(content if name == "bench.json" else path.read_bytes() + content)
    before = path.read_bytes()
    with pytest.raises(UserError, match=complaint) as error:
        bench("score", run, "--no-judge", "--data", data)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before and not (run / "result.json").exists()


@pytest.mark.parametrize("key", ["benchmark", "title", "overall", "tasks", "notes", "asked", "seed"])
def test_a_result_that_was_spoiled_is_named(run, data, tmp_path, key):
    bench("score", run, "--no-judge", "--data", data)
    path = run / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: ["x", 1]}))
    with pytest.raises(UserError, match=rf"result\.json: not the result of a benchmark: {key}"):
        bench("compare", run, "--data", data, "--out", tmp_path / "side")
    assert not (tmp_path / "side").exists()


def test_a_run_at_work_is_compared_without_a_touch(run, data, tmp_path):
    bench("score", run, "--no-judge", "--data", data)
    with (run / "replies.jsonl").open("ab") as file:
        file.write(b'{"item": "half a li')  # its writer is at it
    before = {path.name: path.read_bytes() for path in run.glob("*.json*")}
    with run_lock(run):
        bench("compare", run, run, "--data", data, "--out", tmp_path / "side")
        with pytest.raises(UserError, match=r"run: process \d+ on .* is at work there"):
            bench("score", run, "--no-judge", "--data", data)
    assert {path.name: path.read_bytes() for path in run.glob("*.json*")} == before


def test_other_people_s_words_are_only_words(tmp_path, data, capsys):
    run = judged(tmp_path / "run", data, cot=HOSTILE).folder
    bench("score", run, "--no-judge", "--data", data)
    bench("compare", run, "--data", data, "--out", tmp_path / "side")
    page = (tmp_path / "side" / "compare.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "{{7 * 7}}" in page
    assert "\x1b" not in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs of 64 kB cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_one_line_and_what_was_kept_is_whole(small_disk, data, tmp_path):
    source = judged(tmp_path / "source", data)
    folder = RunFolder(small_disk / "run", source.benchmark)
    folder.open(source.what, {"tasks": [], "limit": None})
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)

    def draw():
        for item in folder.benchmark.items:
            folder.write(item, [Drawn(noise, "plan")])

    def judge():
        for _ in range(1000):
            reply = {"score": 1.0, "text": "x" * 300, "by": {"model": "m", "url": "127.0.0.1"}}
            folder.add_reply(folder.benchmark.items[0], 0, "vlm", reply)

    with pytest.raises(UserError, match=r"\.png: cannot be written: No space left on device"):
        draw()
    assert not list(folder.folder.rglob("*.part"))
    with pytest.raises(UserError, match=r"replies\.jsonl: cannot be written"):
        judge()
    for name in ("replies.jsonl", "images.jsonl"):
        assert (folder.folder / name).read_bytes().endswith(b"}\n")
    with pytest.raises(UserError, match=r"bench\.json: cannot be written"):
        bench("score", folder.folder, "--no-judge", "--data", data)
    (folder.folder / "images/2.png").unlink()  # room again
    bench("score", folder.folder, "--no-judge", "--data", data)
