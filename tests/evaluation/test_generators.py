"""Generators beside the policy: an images API on a server here, a tiny pipeline of diffusers."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from actors.config import ActorsConfig
from evaluation.benchmark import Item
from evaluation.config import ApiConfig, BenchConfig, DiffusersConfig
from evaluation.generators import ApiGenerator, DiffusersGenerator, as_png, image_seed, make_generator
from policy.errors import UserError
from tests.evaluation.toy import gray

ITEMS = [Item("a", "a cat", "t"), Item("b", "a dog", "t")]
IMAGES = [(item, n) for item in ITEMS for n in range(2)]


@pytest.fixture
def server():
    """(url, what it was asked, answers to be given first: (status, body))."""
    asked, first = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            status, reply = first.pop(0) if first else (200, None)
            if reply is None:
                level = body["seed"] % 256
                data = base64.b64encode(as_png(gray(level))).decode()
                reply = {"data": [{"b64_json": data, "revised_prompt": f"plan of {body['prompt']}"}]}
            content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1", asked, first
        running.shutdown()


def api(url, **options) -> ApiGenerator:
    return ApiGenerator(ApiConfig(url=url, model="m", timeout_s=20, **options), seed=3)


def test_an_images_api_is_asked_for_every_image_with_its_own_seed(server, monkeypatch):
    url, asked, _ = server
    monkeypatch.setenv("THE_KEY", "secret")
    drawn = api(url, api_key_env="THE_KEY", options={"size": "8x8"}).draw(IMAGES)
    for (item, n), one in zip(IMAGES, drawn, strict=True):
        np.testing.assert_array_equal(one.image, gray(image_seed(3, item, n) % 256))
        assert one.cot == f"plan of {item.text}"
    assert len(asked) == 4
    for path, key, body in asked:
        assert path == "/v1/images/generations" and key == "Bearer secret"
        assert body["model"] == "m" and body["n"] == 1 and body["size"] == "8x8"
    assert len({body["seed"] for _, _, body in asked}) == 4


def test_a_seed_is_the_same_everywhere_and_differs_by_seed_prompt_and_index():
    item = ITEMS[0]
    seeds = {image_seed(s, i, n) for s in (0, 1) for i in ITEMS for n in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**31 for seed in seeds)
    assert image_seed(0, item, 0) == image_seed(0, Item("z", item.text, "other"), 0) == 1_066_545_148


def test_a_server_that_is_busy_is_asked_again(server):
    url, asked, first = server
    first += [(503, {"error": "busy"}), (429, {"error": "slow down"})]
    (one,) = api(url, concurrent=1).draw(IMAGES[:1])
    assert len(asked) == 3 and one.image.shape == (8, 8, 3)


def test_a_refused_prompt_has_its_reason_in_the_place_of_its_image(server):
    url, asked, first = server
    first += [(400, {"error": "not\nthis one"})]
    refused, drawn = api(url, concurrent=1).draw(IMAGES[:2])
    assert refused == '400: {"error": "not\\nthis one"}' and drawn.image.shape == (8, 8, 3)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ((401, {"error": "no key"}), "prompt a: 401: .*no key"),
        ((200, b"<html>"), "not a reply of an images API"),
        ((200, {"data": []}), "not a reply of an images API"),
        ((200, {"data": [{"url": "http://elsewhere/x.png"}]}), "not a reply of an images API"),
        ((200, {"data": [{"b64_json": base64.b64encode(b"no image").decode()}]}), "image"),
    ],
)
def test_a_reply_that_is_no_image_ends_the_run_in_one_line(server, answer, complaint):
    url, _, first = server
    first.append(answer)
    with pytest.raises(UserError, match=complaint) as error:
        api(url, concurrent=1).draw(IMAGES[:1])
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tiny_pipeline(tmp_path_factory):
    """A Stable Diffusion of a few thousand parameters, as the hub has it."""
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny_diffusion")
    letters = [chr(n) for n in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    saved = folder / "pipeline"
    pipeline.save_pretrained(saved)
    return saved


def test_a_pipeline_of_diffusers_draws_the_same_alone_and_in_a_batch(tiny_pipeline):
    options = {"num_inference_steps": 2, "height": 8, "width": 8}

    def generator(batch_size):
        config = DiffusersConfig(
            path=str(tiny_pipeline), dtype="float32", batch_size=batch_size, options=options
        )
        whole = BenchConfig(benchmark="x", diffusers=config, actors=ActorsConfig(), seed=5)
        found = make_generator(whole)
        assert isinstance(found, DiffusersGenerator)
        return found

    together = generator(4).draw(IMAGES)
    alone = generator(1).draw(IMAGES[2:])
    for one, other in zip(together[2:], alone, strict=True):
        assert one.image.shape == (8, 8, 3) and one.cot is None
        np.testing.assert_allclose(one.image.astype(int), other.image, atol=1)
    assert (together[0].image != together[1].image).any()


def test_a_folder_that_is_no_pipeline_is_one_line(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(UserError, match="no pipeline of diffusers"):
        DiffusersGenerator(DiffusersConfig(path=str(tmp_path)), ActorsConfig(), 0)


@pytest.mark.parametrize("named", [{}, {"images": "x", "policy": {"path": "y"}}])
def test_a_run_has_one_source_of_images(named):
    with pytest.raises(ValueError, match="name one source of images"):
        BenchConfig(benchmark="x", **named)
