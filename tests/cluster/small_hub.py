"""A stand-in for the Hugging Face hub: as much of its HTTP API as an upload without Xet asks for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"


class SmallHub(ThreadingHTTPServer):
    """`made`: what was asked to be created. `files`: path -> bytes of what was committed. `refuse`: a
    part of a path -> status and words for who asks there."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.made: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.asked: list[str] = []
        self.refuse: dict[str, tuple[int, str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                self.files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                content = self.large[value["oid"]]
                assert len(content) == value["size"]
                self.files[value["path"]] = content


class _Handler(BaseHTTPRequestHandler):
    server: SmallHub

    def log_message(self, *args) -> None:
        pass

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers.get("content-length") or 0))
        hub.asked.append(f"{self.command} {self.path}")
        for part, (status, words) in hub.refuse.items():
            if part in self.path:
                return self._reply({"error": words}, status)
        if self.path.startswith("/storage/"):  # signed for, so without the token
            oid = self.path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            hub.large[oid] = body
            return self._reply({})
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._reply({"error": "Invalid credentials in Authorization header"}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            hub.made.append(asked)
            return self._reply({"url": f"{hub.url}/{asked['organization']}/{asked['name']}"})
        if self.path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return self._reply({"warnings": []})
        if "/preupload/" in self.path:
            return self._reply({"files": [_mode(file) for file in json.loads(body)["files"]]})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self._reply({"objects": [self._place(o) for o in json.loads(body)["objects"]]})
        if "/commit/" in self.path:
            hub.commit([json.loads(line) for line in body.splitlines()])
            repo, oid = self.path.split("/commit/")[0].removeprefix("/api/models/"), "1" * 40
            return self._reply({"commitUrl": f"{hub.url}/{repo}/commit/{oid}", "commitOid": oid})
        return self._reply({"error": f"nobody knows {self.path}"}, 404)

    def _place(self, wanted: dict) -> dict:
        href = f"{self.server.url}/storage/{wanted['oid']}"
        return {**wanted, "actions": {"upload": {"href": href}}}

    def _reply(self, row: dict, status: int = 200) -> None:
        content = json.dumps(row).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if "error" in row:
            self.send_header("x-error-message", row["error"])
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _mode(file: dict) -> dict:
    large = file["path"].endswith((".safetensors", ".png"))
    return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    hub = SmallHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(10)
