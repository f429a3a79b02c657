"""The images API, request by request, before a real model in this process."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from policy.model import load_janus
from policy.prompts import plain_prompt
from policy.records import SampleRequest
from studio.images_api import exposition
from tests.studio.conftest import ACTORS, POLICY

URL = "/v1/images/generations"
TWO = "two red circles and a blue square"


def pixels(b64_json: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    assert image.format == "PNG"
    return np.asarray(image)


def good(reply) -> dict:
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(reply) -> list[dict]:
    """The events of a stream, whose name and type are one."""
    found = []
    for part in reply.text.strip().split("\n\n"):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1].get('type', 'error')}"
    return found


# --- what is drawn ---


def test_a_reply_is_openais_with_the_cot_beside_each_image(ask):
    (reply,) = ask({"prompt": TWO, "n": 2, "seed": 7, "model": "shapes", "size": "24x24"})
    content = good(reply)
    assert {"created", "size", "background", "output_format"} <= content.keys()
    assert (content["size"], content["seed"]) == ("24x24", 7)
    first, second = content["data"]
    assert pixels(first["b64_json"]).shape == (24, 24, 3)
    assert first["b64_json"] != second["b64_json"]
    assert first["revised_prompt"].strip() and first["revised_prompt"] != second["revised_prompt"]
    usage = content["usage"]
    assert usage["output_tokens_details"]["image_tokens"] == 2 * 36
    assert usage["output_tokens"] == 72 + usage["output_tokens_details"]["text_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@pytest.mark.parametrize("think", [True, False])
def test_a_seed_draws_what_bicot_generate_draws_with_it(ask, think):
    (reply,) = ask({"prompt": TWO, "n": 3, "seed": 7, "cot": think})
    sampler = TorchSampler(load_janus(POLICY), ACTORS.sampling, run_seed=7)
    prompt = plain_prompt(TWO)
    samples = sampler.generate([SampleRequest(prompt, n) for n in range(3)], think=think)
    for data, sample in zip(good(reply)["data"], samples, strict=True):
        alone = sampler.janus.decode_images(torch.tensor(sample.image_ids)[None])[0]
        assert (pixels(data["b64_json"]) == alone).all()
        assert data["revised_prompt"] == (sample.cot_text if think else None)


MIXED = [
    {"prompt": TWO, "seed": 1, "n": 3},
    {"prompt": "a red circle", "seed": 2, "cot": False},
    {"prompt": "a red circle", "seed": 2, "cot": "red circle top left"},
    {"prompt": "a green triangle left of a blue square", "seed": 1, "guidance": 3},
    {"prompt": "a green triangle left of a blue square", "seed": 1, "guidance": 1, "n": 9},
    {"prompt": TWO, "seed": 1, "temperature": 0.5},
    {"prompt": TWO, "seed": 3, "n": 2, "stream": True, "partial_images": 1},
]


def test_no_image_depends_on_what_is_drawn_beside_it(http, ask):
    """To the last bit of its file."""

    async def at_once():
        async with http() as client:
            return await asyncio.gather(*(client.post(URL, json=body) for body in MIXED))

    def drawn(reply) -> list[str]:
        if "data:" not in reply.text:
            return [data["b64_json"] for data in good(reply)["data"]]
        done = [e for e in events(reply) if e["type"] == "image_generation.completed"]
        return [e["b64_json"] for e in sorted(done, key=lambda e: e["index"])]

    together = [drawn(reply) for reply in asyncio.run(at_once())]
    assert together == [drawn(reply) for reply in ask(*MIXED)]
    assert [len(images) for images in together] == [body.get("n", 1) for body in MIXED]


def test_without_a_seed_images_are_new_and_can_be_had_again(ask):
    one, other = (good(reply) for reply in ask({"prompt": TWO}, {"prompt": TWO, "seed": None}))
    assert one["seed"] != other["seed"]
    (again,) = ask({"prompt": TWO, "seed": one["seed"]})
    assert good(again)["data"] == one["data"]


def test_a_cot_of_ones_own_is_drawn_as_if_the_model_had_written_it(ask):
    (reply,) = ask({"prompt": TWO, "seed": 5})
    (data,) = good(reply)["data"]
    plan = data["revised_prompt"]
    (reply,) = ask({"prompt": TWO, "seed": 5, "cot": plan})
    assert good(reply)["data"] == [data]
    assert good(reply)["usage"]["output_tokens_details"]["text_tokens"] == 0


def test_openais_other_fields_change_nothing(ask):
    more = {"user": "somebody", "quality": "high", "style": "vivid", "moderation": "low", "n": None}
    more |= {"response_format": "b64_json", "output_format": "png", "background": "auto"}
    plain, dressed = ask({"prompt": TWO, "seed": 1}, {"prompt": TWO, "seed": 1, **more})
    assert good(plain)["data"] == good(dressed)["data"]


# --- streams ---


def test_a_stream_tells_the_cot_as_it_is_written_then_the_image_as_it_grows(ask):
    body = {"prompt": TWO, "n": 2, "seed": 7}
    plain, stream = ask(body, body | {"stream": True, "partial_images": 3})
    assert stream.headers["content-type"].startswith("text/event-stream")
    for index, data in enumerate(good(plain)["data"]):
        sent = [event for event in events(stream) if event["index"] == index]
        kinds = [event["type"].removeprefix("image_generation.") for event in sent]
        deltas = kinds.count("cot.delta")
        assert deltas > 3
        assert kinds == ["cot.delta"] * deltas + ["cot.done"] + ["partial_image"] * 3 + ["completed"]
        assert "".join(e["delta"] for e in sent[:deltas]).strip() == sent[deltas]["text"]
        assert sent[deltas]["text"] == sent[-1]["revised_prompt"] == data["revised_prompt"]
        assert [e["partial_image_index"] for e in sent[-4:-1]] == [0, 1, 2]
        assert sent[-1]["b64_json"] == data["b64_json"]
        assert sent[-1]["seed"] == 7
        assert sent[-1]["usage"]["output_tokens_details"]["image_tokens"] == 36


def test_an_image_so_far_is_gray_where_nothing_is_drawn(ask):
    """6 x 6 tokens of 4 x 4 pixels, in rows: after 9 of 36, one row and a half."""
    body = {"prompt": TWO, "seed": 7, "stream": True, "partial_images": 3, "cot": False}
    first, *_, whole = events(ask(body)[0])
    assert (first["type"], whole["type"]) == (
        "image_generation.partial_image",
        "image_generation.completed",
    )
    gray = (pixels(first["b64_json"]) == 128).all(-1)
    assert gray[8:].all() and gray[4:8, 12:].all()
    assert not gray[:4].all() and not gray[4:8, :12].all()
    assert not (pixels(whole["b64_json"]) == 128).all(-1)[8:].all()


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "red " * 200}, "prompt"),
        ({"prompt": "x" * 32_001}, "prompt"),
        ({"cot": "red " * 200}, "prompt"),
        ({"cot": 3}, "cot"),
        ({"cot": " "}, "cot"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": "2"}, "n"),
        ({"size": "1024x1024"}, "size"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "webp"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"guidance": 0.5}, "guidance"),
        ({"temperature": -1}, "temperature"),
        ({"partial_images": 9, "stream": True}, "partial_images"),
        ({"partial_images": 1}, None),
        ({"stream": "yes"}, "stream"),
        ({"steps": 50}, "steps"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(ask, changes, param):
    (reply,) = ask({"prompt": TWO} | changes)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


def test_a_stream_is_refused_before_it_begins(ask):
    (reply,) = ask({"prompt": "red " * 200, "stream": True})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b'{"prompt": "x", "guidance": 1e999}', "application/json", 400),
        (b'{"prompt": "x"}', "text/plain", 415),
        (b"prompt=x", "application/x-www-form-urlencoded", 415),
        (bytes(2**20 + 1), "application/json", 413),
    ],
)
def test_a_body_that_is_none_is_refused(http, content, kind, status):
    async def post():
        async with http() as client:
            return await client.post(URL, content=content, headers={"content-type": kind})

    reply = asyncio.run(post())
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


def test_what_is_not_there_is_refused_in_the_same_form(http, ask):
    async def get():
        async with http() as client:
            gone = [await client.get("/v1/models/dall-e-3"), await client.get("/v1/nothing")]
            return [*gone, await client.put("/v1/models")]

    other, nothing, method = asyncio.run(get())
    (generated,) = ask({"prompt": TWO, "model": "dall-e-3"})
    assert [r.status_code for r in (other, generated, nothing, method)] == [404, 404, 404, 405]
    assert generated.json() == other.json()
    assert other.json()["error"]["code"] == "model_not_found"
    assert all(r.json()["error"]["type"] == "invalid_request_error" for r in (nothing, method))


def test_more_images_than_may_wait_get_a_429_and_retry_after(http):
    async def many():
        async with http(max_waiting=12, max_images=6) as client:
            bodies = [{"prompt": TWO, "n": 6}] * 2 + [{"prompt": TWO, "n": 1, "stream": True}]
            first = await asyncio.gather(*(client.post(URL, json=body) for body in bodies))
            return [*first, await client.post(URL, json=bodies[-1])]

    replies = asyncio.run(many())
    assert [reply.status_code for reply in replies] == [200, 200, 429, 200]
    assert replies[2].headers["retry-after"] == "1"
    assert replies[2].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_request_that_takes_too_long_is_given_up(http):
    async def late():
        async with http(timeout_s=0.01, max_waiting=10) as client:
            plain = await client.post(URL, json={"prompt": TWO, "n": 10})
            stream = await client.post(URL, json={"prompt": TWO, "n": 10, "stream": True})
            return plain, stream, await client.post(URL, json={"prompt": TWO, "n": 10})

    plain, stream, again = asyncio.run(late())
    assert plain.status_code == again.status_code == 503  # and not 429: its places are free
    assert plain.json()["error"]["type"] == "server_error"
    assert "no image within 0.01 s" in stream.text


# --- state ---


def test_the_model_is_listed_and_described(http):
    async def get():
        async with http() as client:
            paths = ("/v1/models", "/v1/models/shapes", "/healthz", "/readyz", "/openapi.json")
            return [good(await client.get(path)) for path in paths]

    models, model, health, ready, described = asyncio.run(get())
    assert models == {"object": "list", "data": [model]}
    assert (model["id"], model["object"], model["size"]) == ("shapes", "model", "24x24")
    assert (health, ready) == ({"status": "alive"}, {"status": "ready"})
    body = described["paths"][URL]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "n", "seed", "cot", "stream"} <= body["properties"].keys()


def test_metrics_count_what_is_drawn_and_what_is_given_up(http):
    def number(text: str, name: str, **labels: str) -> float:
        samples = (s for f in text_string_to_metric_families(text) for s in f.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    async def ask_and_leave():
        async with http() as client:
            before = (await client.get("/metrics")).text
            good(await client.post(URL, json={"prompt": TWO, "n": 3}))
            await client.post(URL, json={"prompt": " "})
            leaving = [
                asyncio.create_task(client.post(URL, json={"prompt": TWO, "n": 10, "stream": stream}))
                for stream in (False, True)
            ]
            await asyncio.sleep(0.02)
            for request in leaving:
                request.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            good(await client.post(URL, json={"prompt": TWO}))
            return before, (await client.get("/metrics")).text

    before, after = asyncio.run(ask_and_leave())

    def more(name: str, **labels: str) -> float:
        return number(after, name, **labels) - number(before, name, **labels)

    assert more("bicot_model_requests_total") == 4
    assert more("bicot_model_cancelled_requests_total") == 2
    assert more("bicot_model_latency_seconds_count", replica="here") == 2
    assert more("bicot_model_images_total") == 4  # of those who left, none was decoded
    assert number(after, "bicot_model_held") == number(after, "bicot_model_waiting_images") == 0
    # Two, the stream that had begun, and the metrics of before.
    assert more("bicot_images_api_replies_total", status="200") == 4
    assert more("bicot_images_api_replies_total", status="400") == 1


def test_metrics_of_several_replicas_are_one_page(ask, replica):
    good(*ask({"prompt": TWO}))
    here = asyncio.run(replica.metrics())
    text = exposition({"one": here, "other": here}, {200: 3}).decode()
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names)) > 5
    (images,) = (family for family in families if family.name == "bicot_model_images")
    assert [sample.labels for sample in images.samples] == [{"replica": "one"}, {"replica": "other"}]
    assert images.samples[0].value == images.samples[1].value > 0
    assert text.count("# TYPE bicot_model_latency_seconds histogram") == 1


def test_sampling_settings_are_those_of_the_configuration_unless_asked(ask, replica):
    default = SamplingConfig(guidance=1.5, max_cot_tokens=32)
    assert ACTORS.sampling == default
    plain, same, other = ask(
        {"prompt": TWO, "seed": 1},
        {"prompt": TWO, "seed": 1, "guidance": 1.5, "temperature": 1},
        {"prompt": TWO, "seed": 1, "guidance": 4},
    )
    assert good(plain)["data"] == good(same)["data"] != good(other)["data"]
