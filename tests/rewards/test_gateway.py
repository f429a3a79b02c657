"""The gateway over real HTTP, and its limits."""

import asyncio
import json
import socket
import struct
import zlib
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image
from ray import serve

from policy.errors import UserError
from rewards.config import GatewayConfig
from rewards.gateway import build_app, start_gateway
from rewards.serving import deploy_experts, start_serve, usable_port
from tests.rewards.asking_the_gateway import CIRCLE, CONFIG, ROW, as_json, encoded, form, metric
from tests.rewards.drawing import draw

pytestmark = pytest.mark.serve

# --- before anything starts ---


def test_a_busy_port_is_found_before_anything_starts(local_ray):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = CONFIG.model_copy(update={"gateway": GatewayConfig(port=port)})
        with pytest.raises(UserError) as raised:
            deploy_experts(config)
    assert str(raised.value) == f"port {port} on 127.0.0.1 is in use; set rewards.gateway.port"
    assert serve.status().applications == {}


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(UserError, match=r"cannot listen on port 0 on 192\.0\.2\.1"):
        usable_port(GatewayConfig(host="192.0.2.1", port=0, token_env="TOKEN"))


def test_a_gateway_must_be_configured():
    with pytest.raises(UserError, match=r"rewards\.gateway is not set"):
        start_gateway(CONFIG.model_copy(update={"gateway": None}))


# --- scores ---


def scored(reply: httpx.Response) -> list[dict]:
    assert reply.status_code == 200, reply.text
    return reply.json()["images"]


def test_an_image_is_scored_by_all_experts(http):
    (image,) = scored(http.post("/v1/score", **form(encoded(CIRCLE))))
    objects, bright = image["experts"]["objects"], image["experts"]["bright"]
    assert objects["score"] > 0.9
    assert objects["explanation"].startswith("red circle (6,6)")
    nothing = {"score": None, "error": None, "explanation": "", "boxes": []}
    assert bright == nothing | {"score": pytest.approx(CIRCLE.mean() / 255)}
    assert image["experts"]["spatial"] == nothing
    assert "expert broken gave nan" in image["experts"]["broken"]["error"]
    assert image["reward"] == pytest.approx((3 * objects["score"] + bright["score"]) / 4)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("WEBP", {"lossless": True})])
def test_other_formats(http, kind, options):
    (image,) = scored(http.post("/v1/score", **form(encoded(CIRCLE, kind, **options))))
    assert image["experts"]["bright"]["score"] == pytest.approx(CIRCLE.mean() / 255, abs=0.02)


def test_many_images_keep_their_order_and_take_a_plain_sentence(http):
    levels = [0, 255, 51]
    files = [encoded(np.full((4, 6, 3), level, np.uint8)) for level in levels]
    images = scored(http.post("/v1/score", **form(*files, prompt="something bright")))
    # "broken" answers once for three images: an error of its own, and nobody else's.
    assert [i["experts"]["bright"]["score"] for i in images] == pytest.approx([0, 1, 0.2])
    assert [i["reward"] for i in images] == pytest.approx([0, 1, 0.2])
    assert all(i["experts"]["objects"]["score"] is None for i in images)


def test_grey_palette_and_transparent_images_become_rgb(http):
    white = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    files = []
    for mode in ("RGBA", "L", "P", "1"):
        out = BytesIO()
        white.convert(mode).save(out, "PNG")
        files.append(out.getvalue())
    images = scored(http.post("/v1/score", **form(*files)))
    assert [i["experts"]["bright"]["score"] for i in images] == [1, 1, 1, 1]


def test_the_json_form_says_the_same_as_the_multipart_form(http):
    files = [encoded(CIRCLE), encoded(draw(("blue", "circle", 2, 2)), "JPEG")]
    wanted = scored(http.post("/v1/score", **form(*files)))
    assert scored(http.post("/v1/score", **as_json(*files))) == wanted
    assert scored(http.post("/v1/score", **as_json(*files, prompt=json.loads(ROW)))) == wanted


def test_some_experts_may_be_asked(http):
    (image,) = scored(http.post("/v1/score", **as_json(encoded(CIRCLE), experts=["boxes", "bright"])))
    assert set(image["experts"]) == {"boxes", "bright"}
    assert image["reward"] == pytest.approx(CIRCLE.mean() / 255)
    box = {"label": "left half", "score": 0.5, "xyxy": [0.0, 0.0, 0.5, 1.0]}
    assert image["experts"]["boxes"]["boxes"] == [box]
    sent = form(encoded(CIRCLE))
    sent["data"] |= {"experts": ["objects"]}
    (image,) = scored(http.post("/v1/score", **sent))
    assert set(image["experts"]) == {"objects"}


def test_prompts_that_experts_apply_to(http):
    spatial = {"prompt": "a left of b", "task_type": "spatial"}
    asked = {"prompts": ["something", json.loads(ROW), spatial], "experts": ["objects", "spatial"]}
    reply = http.post("/v1/applies", json=asked)
    assert reply.json() == {
        "experts": {"objects": [False, True, False], "spatial": [False, False, True]}
    }


# --- state ---


def test_experts_are_listed(http):
    listed = http.get("/v1/experts").json()
    assert [(e["name"], e["status"], e["running"]) for e in listed] == [
        (name, "RUNNING", 1) for name in CONFIG.experts
    ]
    assert listed[0]["use"] == "examples.shapes.experts:ObjectsExpert"
    assert listed[0]["weight"] == 3


def test_health_ready_and_description(http):
    assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").json() == {"status": "ready"}
    assert http.get("/docs").status_code == 200
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/score",
        "/v1/applies",
        "/v1/experts",
        "/metrics",
        "/healthz",
        "/readyz",
    }
    assert {"200", "413", "415", "422"} <= set(paths["/v1/score"]["post"]["responses"])


def test_metrics_count_what_every_expert_does(http):
    def counts() -> list[float]:
        names = ("requests_total", "images_total", "failures_total", "latency_seconds_count")
        return [
            metric(http, f"bicot_expert_{name}", expert=expert)
            for expert in ("bright", "objects", "broken")
            for name in names
        ]

    before, replies = counts(), metric(http, "bicot_gateway_replies_total", status="200")
    http.post("/v1/score", **form(encoded(CIRCLE), encoded(CIRCLE), prompt="something"))
    # "objects" does not apply to a sentence, and "broken" fails.
    assert np.subtract(counts(), before).tolist() == [1, 2, 0, 1, 1, 0, 0, 1, 1, 0, 1, 0]
    assert metric(http, "bicot_gateway_replies_total", status="200") > replies
    assert metric(http, "bicot_expert_replicas", expert="bright") == 1


def test_a_running_serve_keeps_its_address(http):
    assert start_serve(GatewayConfig(port=0)) == str(http.base_url).rstrip("/")
    with pytest.raises(UserError, match=r"already runs on this cluster, at 127\.0\.0\.1:\d+: stop it"):
        start_serve(GatewayConfig(port=1))


# --- refusals ---


def test_too_large_a_body(http):
    reply = http.post("/v1/score", **form(bytes(600_000)))
    assert (reply.status_code, reply.json()["detail"]) == (
        413,
        "the request body is larger than 524288 bytes",
    )


def test_too_large_a_body_of_unsaid_length(http):
    request = http.build_request("POST", "/v1/score", **form(bytes(600_000)))
    body, kind = request.read(), request.headers["content-type"]
    chunks = (body[n : n + 50_000] for n in range(0, len(body), 50_000))
    assert http.post("/v1/score", content=chunks, headers={"content-type": kind}).status_code == 413


def test_a_content_length_that_lies():
    """The server in front drops such a request; the limit does not lean on that."""

    async def post() -> httpx.Response:
        app = httpx.ASGITransport(build_app(CONFIG))
        async with httpx.AsyncClient(transport=app, base_url="http://gateway") as client:
            request = client.build_request("POST", "/v1/score", **form(bytes(600_000)))
            request.headers["content-length"] = "10"
            return await client.send(request)

    assert asyncio.run(post()).status_code == 413


def test_too_many_pixels_in_one_image_or_together(http):
    assert http.post("/v1/score", **form(encoded(np.zeros((101, 100, 3), np.uint8)))).status_code == 413
    part = encoded(np.zeros((80, 80, 3), np.uint8))
    assert http.post("/v1/score", **form(part)).status_code == 200
    reply = http.post("/v1/score", **form(part, part))
    assert reply.status_code == 413
    assert reply.json()["detail"] == "the images have more than 10000 pixels together"


@pytest.mark.parametrize(
    ("count", "status", "reason"),
    [(257, 413, "there are more than 256 images"), (1001, 400, "Too many files")],
)
def test_too_many_images_are_refused(http, count, status, reason):
    reply = http.post("/v1/score", **form(*[encoded(np.zeros((1, 1, 3), np.uint8))] * count))
    assert reply.status_code == status
    assert reply.json()["detail"].startswith(reason)


def test_the_head_of_a_request_is_bounded(http):
    with socket.create_connection((http.base_url.host, http.base_url.port)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 70_000)
        assert connection.recv(64).startswith(b"HTTP/1.1 431 ")


def test_a_decompression_bomb_is_not_decoded(http):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk
    bomb += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)
    assert http.post("/v1/score", **form(bomb)).status_code == 413


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not an image", "image 2 is no PNG, JPEG or WebP image"),
        (b"", "image 2 is no PNG, JPEG or WebP image"),
        (encoded(CIRCLE, "GIF"), "image 2 is no PNG, JPEG or WebP image"),
        (encoded(CIRCLE)[:-60], "image 2 cannot be decoded: "),
        (encoded(np.zeros((4, 4), np.uint16)), "image 2 has mode I;16; use 8 bits a channel"),
    ],
    ids=["text", "empty", "gif", "cut off", "16 bits"],
)
def test_what_is_no_image_is_refused_with_a_reason(http, data, reason):
    reply = http.post("/v1/score", **form(encoded(CIRCLE), data))
    assert reply.status_code == 415
    assert reply.json()["detail"].startswith(reason)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (None, ["body", "prompt"]),
        ("   ", ["body", "prompt"]),
        ('{"prompt": ', ["body", "prompt"]),
        ("[1, 2]", ["body", "prompt"]),
        ("[" * 50_000, ["body", "prompt"]),
        ('{"prompt": "x"}', ["body", "prompt", "task_type"]),
        ('{"prompt": "x", "task_type": "color", "nuons": []}', ["body", "prompt", "nuons"]),
        ('{"prompt": 3, "task_type": "color"}', ["body", "prompt", "prompt"]),
        ('{"prompt": "\\ud800", "task_type": "color"}', ["body", "prompt"]),
    ],
)
def test_a_wrong_prompt_is_refused_by_field(http, prompt, field):
    reply = http.post("/v1/score", **form(encoded(CIRCLE), prompt=prompt))
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == field


def test_no_image_is_refused(http):
    reply = http.post("/v1/score", data={"prompt": "x"})
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "image"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "x", "images": ["not base64!"]}, ["body", "images", 0]),
        ({"prompt": "x", "images": [3]}, ["body", "images", 0]),
        ({"prompt": "x", "images": []}, ["body", "images"]),
        ({"prompt": "x"}, ["body", "images"]),
        ({"prompt": "", "images": ["AAAA"]}, ["body", "prompt"]),
        ({"prompt": {"prompt": "x"}, "images": ["AAAA"]}, ["body", "prompt", "task_type"]),
        ({"prompt": "x", "images": ["AAAA"], "expert": "all"}, ["body", "expert"]),
        ({"prompt": "x", "images": ["AAAA"], "experts": ["nobody"]}, ["body", "experts"]),
        ([], ["body"]),
    ],
)
def test_a_wrong_json_body_is_refused_by_field(http, body, field):
    reply = http.post("/v1/score", json=body)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == field


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b"not a form", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n", "multipart/form-data", 400),
        (b"\x80\x04K\x01.", "application/x-pickle", 415),
        (b"hello", "", 415),
    ],
)
def test_a_body_that_is_none_is_refused(http, content, kind, status):
    reply = http.post("/v1/score", content=content, headers={"content-type": kind} if kind else {})
    assert reply.status_code == status
    assert reply.json()["detail"]


# --- last, for it takes an expert away ---


def test_an_expert_that_is_gone_is_missed(http):
    serve.delete("expert_spatial")
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"detail": "not running: spatial"})
    states = {e["name"]: e["status"] for e in http.get("/v1/experts").json()}
    assert states["spatial"] == "NOT_STARTED"
    (image,) = scored(http.post("/v1/score", **form(encoded(CIRCLE))))
    assert image["experts"]["spatial"]["error"].startswith("expert spatial failed 1 times")
    assert image["experts"]["objects"]["score"] > 0.9
    assert image["reward"] is None
