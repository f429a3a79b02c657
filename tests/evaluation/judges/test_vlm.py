"""A judge that replies in words, against a real local server with replies of the test's choice."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from cluster.commands.bench import judges_with_server
from evaluation.benchmark import benchmark_class
from evaluation.config import merged
from evaluation.judges.base import UNUSABLE, ask_prompt
from evaluation.judges.vlm import READERS, VlmReplies
from policy.errors import UserError
from policy.imports import load_named
from rewards.config import ExpertConfig
from rewards.experts.chat import ChatError

MODEL = "tiny-judge"
IMAGE = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
ASK = {
    "system": "Be strict.",
    "text": "Is it right?",
    "read": "wise",
    "parameters": {
        "temperature": 0.0,
        "max_tokens": 500,
        "chat_template_kwargs": {"enable_thinking": False},
    },
}


class Server:
    """Says `says` in turn, the last one again and again: (status, words), or words. It keeps what it
    was asked, the trial first."""

    def __init__(self):
        self.says: list = ["Score: 1"]
        self.models: list[str] = [MODEL]
        self.asked: list[dict] = []
        self.pause_s = 0.0
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, content = server.answer(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, body: dict) -> tuple[int, bytes]:
        with self._lock:
            self.asked.append(body)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            trial = len(self.asked) == 1
            reply = "yes" if trial else self.says.pop(0) if len(self.says) > 1 else self.says[0]
            model = self.models.pop(0) if len(self.models) > 1 and not trial else self.models[0]
        time.sleep(self.pause_s)
        with self._lock:
            self._now -= 1
        if callable(reply):
            reply = reply(body)
        status, words = reply if isinstance(reply, tuple) else (200, reply)
        if status != 200:
            return status, json.dumps({"error": words}).encode()
        choice = {"index": 0, "message": {"role": "assistant", "content": words}}
        return 200, json.dumps({"model": model, "choices": [choice]}).encode()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


def judge(server, **options) -> VlmReplies:
    return VlmReplies(server.url, MODEL, **{"retries": 1, **options})


def pixels(part: dict) -> tuple[str, np.ndarray]:
    kind, _, encoded = part["image_url"]["url"].partition(",")
    return kind, np.array(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_a_reply_holds_what_was_read_the_words_and_which_model_wrote_them(server):
    server.says = ["Because.\nScore: 1"]
    (reply,) = judge(server).replies([IMAGE], [ASK])
    by = {"model": MODEL, "url": "127.0.0.1"}
    assert reply == {"score": 1.0, "text": "Because.\nScore: 1", "by": by}
    body = server.asked[-1]
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be strict."}
    assert [part["type"] for part in user["content"]] == ["text", "image_url"]
    kind, sent = pixels(user["content"][1])
    assert kind == "data:image/png;base64" and (sent == IMAGE).all()
    assert body["temperature"] == 0.0 and body["max_tokens"] == 500
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_the_image_may_come_first_and_as_a_jpeg(server):
    judge(server).replies([IMAGE], [{**ASK, "system": None, "image_first": True, "image": "jpeg"}])
    (user,) = server.asked[-1]["messages"]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    kind, sent = pixels(user["content"][0])
    again = io.BytesIO()
    Image.fromarray(IMAGE).save(again, format="JPEG", quality=95)
    assert kind == "data:image/jpeg;base64"
    assert (sent == np.array(Image.open(again))).all()


def test_nonsense_is_asked_about_again(server):
    server.says = ["It is fine.", None, "Score: 0"]
    (reply,) = judge(server).replies([IMAGE], [ASK])
    assert reply["score"] == 0.0 and len(server.asked) == 4


def test_nonsense_without_end_is_no_reply(server):
    server.says = ["Hm.", "It is fine."]
    first, second = judge(server, concurrent=1).replies([IMAGE] * 2, [ASK, {**ASK, "tries": 2}])
    assert first == {
        UNUSABLE: "3 replies, none of which can be read",
        "text": "It is fine.",
        "by": {"model": MODEL, "url": "127.0.0.1"},
    }
    assert second[UNUSABLE].startswith("2 replies") and len(server.asked) == 1 + 3 + 2


def test_a_server_that_fails_is_asked_again_and_then_fails_the_request(server):
    server.says = [(500, "oops"), (503, "busy"), "Score: 1"]
    assert judge(server, retries=2).replies([IMAGE], [ASK])[0]["score"] == 1.0
    asked = judge(server, retries=1)
    server.says = [(500, "oops")]
    with pytest.raises(ChatError, match=r"500: .*oops.* \(2 tries\)"):
        asked.replies([IMAGE] * 3, [ASK] * 3)


def test_a_picture_that_a_server_refuses_spoils_no_other(server):
    server.says, server.models = [(400, "not allowed"), "Score: 1"], ["tiny-judge-2026-01"]
    refused, other = judge(server, concurrent=1).replies([IMAGE] * 2, [ASK] * 2)
    assert "refuses the request" in refused[UNUSABLE] and "not allowed" in refused[UNUSABLE]
    assert other["score"] == 1.0
    assert refused["by"] == other["by"] == {"model": "tiny-judge-2026-01", "url": "127.0.0.1"}


def test_a_server_that_is_slow_fails_the_request(server):
    asked = judge(server, timeout_s=0.2, retries=0)
    server.pause_s = 0.6
    with pytest.raises(ChatError, match="ReadTimeout"):
        asked.replies([IMAGE], [ASK])


def test_another_model_in_the_middle_shows(server):
    server.models = [MODEL, "another"]
    replies = judge(server, concurrent=1).replies([IMAGE] * 3, [ASK] * 3)
    assert [reply["by"]["model"] for reply in replies] == [MODEL, "another", "another"]


def test_several_are_under_way_and_come_back_in_order(server):
    def says(body):
        return f"Score: {int(body['messages'][0]['content'][0]['text'])}"

    server.says, server.pause_s = [says], 0.05
    asks = [{"text": str(n % 2), "read": "wise"} for n in range(9)]
    replies = judge(server, concurrent=3).replies([IMAGE] * 9, asks)
    assert [reply["score"] for reply in replies] == [0, 1] * 4 + [0]
    assert 1 < server.most_at_once <= 3


def test_every_reader_is_used_as_an_expert_is(server):
    replies = {
        "wise": "Score: 1",
        "wise_legacy": "Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "unigenbench": "<analysis>['so']</analysis><score>[True]</score>",
        "tiif": "yes, it is",
        "dpg": "1. yes",
    }
    assert set(replies) == set(READERS)
    expert = judge(server)
    for name, words in replies.items():
        server.says = [words]
        scores = expert.score([IMAGE], [ask_prompt("0", {"text": "?", "read": name, "points": 1})])
        reply = json.loads(scores.explanation[0])
        assert reply["text"] == words and UNUSABLE not in reply
        assert reply["by"] == expert.identity()


def test_parameters_of_ones_own_take_the_place_of_an_asks_and_show(server):
    asked = judge(server, parameters={"chat_template_kwargs": None, "temperature": 1.0})
    (reply,) = asked.replies([IMAGE], [ASK])
    assert "chat_template_kwargs" not in server.asked[-1] and server.asked[-1]["temperature"] == 1.0
    assert "'temperature': 1.0" in reply["by"]["parameters"]


@pytest.mark.parametrize(
    "name", ["wise", "wise_legacy", "dpg", "unigenbench_en", "unigenbench_zh_long", "tiif_mini"]
)
def test_a_benchmarks_judge_takes_its_server_from_the_command_line(name, server):
    benchmark = benchmark_class(name)
    assert judges_with_server(name) == list(benchmark.judges)
    for defaults in benchmark.judges.values():
        entry = ExpertConfig(**merged(defaults, {"options": {"url": server.url, "model": MODEL}}))
        expert = load_named(entry.use, "judge")(**entry.options)
        assert isinstance(expert, VlmReplies)


def test_what_cannot_work_is_found_when_it_is_built(server):
    with pytest.raises(UserError, match="--judge-url"):
        VlmReplies()
    with pytest.raises(UserError, match="no reader of replies; there are wise"):
        judge(server).replies([IMAGE], [{"text": "?", "read": "tea leaves"}])
    server.stop()
    with pytest.raises(UserError, match=r"the judge does not answer: .*ConnectError"):
        VlmReplies(server.url, MODEL, retries=0)
