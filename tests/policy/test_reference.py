"""What the published implementation computes, from its checkpoint in the original layout."""

import pytest
import torch
from torch.testing import assert_close

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from policy.model import Janus, PolicyConfig, load_janus


@pytest.fixture(scope="module")
def reference(reference_folder) -> Janus:
    return load_janus(PolicyConfig(path=str(reference_folder)))


def close(found, wanted):
    assert_close(found, wanted, rtol=0, atol=1e-5)


def hidden(janus, embedded, mask):
    """Last hidden states [B, T, D]; position ids count every column, as the published code does."""
    positions = torch.arange(embedded.shape[1])[None].expand(len(embedded), -1)
    return janus.model.model.language_model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


def rows(forward):
    """Each image prompt without its padding, ids int64 [1, P]."""
    pairs = zip(forward["image.prompt_ids"], forward["image.prompt_mask"].bool(), strict=True)
    return [ids[mask][None] for ids, mask in pairs]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_text_logits(reference, forward, side):
    ids, mask, logits, logps = (
        forward[f"text.{side}.{name}"]
        for name in ("input_ids", "attention_mask", "logits", "per_token_logps")
    )
    found = reference.text_logits(hidden(reference, reference.embed_text(ids), mask))
    close(found[mask.bool()], logits[mask.bool()])
    of_tokens = found.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    known = (mask[:, 1:] & mask[:, :-1]).bool()
    close(of_tokens[known], logps[known])


@torch.no_grad()
def test_image_embeddings_and_logits_of_padded_rows(reference, forward):
    images = reference.embed_image(forward["image.image_ids"])
    close(images, forward["image.gen_img_embeds"])
    embedded = torch.cat([reference.embed_text(forward["image.prompt_ids"]), images], 1)
    mask = torch.cat([forward["image.prompt_mask"], torch.ones_like(forward["image.image_ids"])], 1)
    states = hidden(reference, embedded, mask)
    close(states[mask.bool()], forward["image.last_hidden"][mask.bool()])
    close(reference.image_logits(states[:, -37:]), forward["image.gen_head_logits"])


@torch.no_grad()
def test_image_logits_of_rows_alone(reference, forward):
    for n, prompt in enumerate(rows(forward)):
        image = reference.embed_image(forward["image.image_ids"][n : n + 1])
        embedded = torch.cat([reference.embed_text(prompt), image], 1)
        states = hidden(reference, embedded, torch.ones(embedded.shape[:2], dtype=torch.long))
        close(
            reference.image_logits(states[:, -37:])[0],
            forward["image.gen_head_logits_unpadded_rows"][n],
        )


@torch.no_grad()
def test_pixels_from_ids_and_ids_from_pixels(reference, forward):
    pixels = reference.model.decode_image_tokens(forward["image.image_ids"])
    close(pixels.permute(0, 3, 1, 2), forward["vq.pixels"])
    ids = reference.encode_images(forward["vq.encode_input"])
    assert torch.equal(ids, forward["vq.encode_ids"])


@torch.no_grad()
def test_seen_images(reference, forward):
    seen = reference.model.model.get_image_features(forward["vision.pixel_values"])
    close(seen.pooler_output.view(2, 36, -1), forward["vision.aligned"])


@torch.no_grad()
def test_guided_images_of_padded_prompts(reference, forward):
    """The published sampling, faults included: padding counts, and is attended to without a prompt."""
    prompts = forward["image.prompt_ids"]
    without = prompts.clone()
    without[:, 1:-1] = reference.pad_id
    both = torch.stack([prompts, without], 1).flatten(0, 1)
    embedded = reference.embed_text(both)
    mask = forward["cfg.attention_mask_img"]
    drawn, margins = [], []
    for _ in range(reference.image_tokens):
        logits = reference.image_logits(hidden(reference, embedded, mask)[:, -1])
        with_prompt, alone = logits[0::2], logits[1::2]
        guided = alone + 5 * (with_prompt - alone)
        drawn.append(guided.argmax(-1))
        best = guided.log_softmax(-1).topk(2).values
        margins.append(best[:, 0] - best[:, 1])
        token = reference.embed_image(drawn[-1].repeat_interleave(2)[:, None])
        embedded, mask = torch.cat([embedded, token], 1), torch.cat([mask, mask.new_ones(8, 1)], 1)
    assert torch.equal(torch.stack(drawn, 1), forward["cfg.greedy_ids"])
    # Guidance multiplies the rounding of both rows by its weight, and differences add up.
    found, wanted = torch.stack(margins, 1), forward["cfg.greedy_logprob_margin"]
    assert_close(found, wanted, rtol=0, atol=5e-5)


@torch.no_grad()
def test_the_samplers_guided_images_are_those_of_prompts_alone(reference, forward):
    """All prompts in one batch: ours must draw each as the published code draws it alone."""
    sampler = TorchSampler(reference, SamplingConfig(guidance=5.0, temperature=0.0), run_seed=0)
    prompts = [row[0].tolist() for row in rows(forward)]
    images = sampler.generate_images(prompts, keys=[0] * len(prompts))
    known = [n for n in range(len(prompts)) if f"cfg.row{n}_alone_greedy_ids" in forward]
    assert known
    for n in known:
        ids, probs = (forward[f"cfg.row{n}_alone_{name}"][0] for name in ("greedy_ids", "probs"))
        assert torch.equal(images.ids[n], ids)
        close(images.guided_logps[n].exp(), probs.gather(1, ids[:, None]).squeeze(1))


def test_prompt_ids(reference, prompt_cases):
    for case in prompt_cases:
        assert reference.tokenizer(case["sft"]).input_ids == case["input_ids"]
