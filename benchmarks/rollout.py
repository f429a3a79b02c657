"""Images per second of the torch sampler against a plain transformers loop: `python -m
benchmarks.rollout`.

Same model, same prompts, same batch, same number of tokens, in one run, one CPU thread (or the GPU).
The plain loop is what one writes with transformers alone: forward calls with a cache that grows by a
token a step, multinomial draws, conditional and unconditional rows in one batch. The two take turns;
medians and their ratio are printed, because absolute times on a shared machine vary.
"""

import argparse
import statistics
import time

import torch
from transformers import DynamicCache

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from policy.model import PolicyConfig, PolicyModel, load_janus
from policy.prompts import read_prompts
from policy.records import SampleRequest


class TransformersBaseline:
    """Both phases with transformers' own modules and a growing cache."""

    def __init__(self, janus: PolicyModel, config: SamplingConfig):
        self.janus, self.config = janus, config
        self.trunk = janus.trunk
        self.device = next(janus.model.parameters()).device

    def draw(self, texts: list[str]):
        """Semantic CoTs, then images as uint8 [B, H, W, 3]."""
        janus = self.janus
        plans = [janus.cot_text(cot) for cot in self.cots([janus.cot_prompt_ids(t) for t in texts])]
        prompts = [janus.image_prompt_ids(t, plan) for t, plan in zip(texts, plans, strict=True)]
        return janus.decode_images(self.images(prompts))

    @torch.no_grad()
    def images(self, prompts: list[list[int]]) -> torch.Tensor:
        """Image token ids, int64 [B, Ti]."""
        rows = prompts + [self.janus.unconditional_ids(p) for p in prompts]
        hidden, cache, mask = self._prefill(rows)
        ids = []
        for _ in range(self.janus.image_tokens):
            cond, uncond = self.janus.image_head(hidden).chunk(2)
            token = self._pick(uncond + self.config.guidance * (cond - uncond))
            ids.append(token)
            if len(ids) < self.janus.image_tokens:
                embedded = self.janus.embed_image(token.repeat(2)[:, None])
                hidden, mask = self._step(embedded, cache, mask)
        return torch.stack(ids, 1)

    @torch.no_grad()
    def cots(self, prompts: list[list[int]]) -> list[list[int]]:
        """Semantic CoTs, each up to its end token."""
        hidden, cache, mask = self._prefill(prompts)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        drawn = []
        for _ in range(self.config.max_cot_tokens):
            token = self._pick(self.janus.text_head(hidden))
            drawn.append(token)
            done |= token == self.janus.eos_id
            if done.all():
                break
            hidden, mask = self._step(self.janus.embed_text(token[:, None]), cache, mask)
        rows = torch.stack(drawn, 1).tolist()
        eos = self.janus.eos_id
        return [row[: row.index(eos)] if eos in row else row for row in rows]

    def _prefill(self, rows: list[list[int]]):
        width = max(map(len, rows))
        padded = [[self.janus.pad_id] * (width - len(row)) + row for row in rows]
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        ids, mask = torch.tensor(padded, device=self.device), mask.to(self.device)
        cache = DynamicCache(config=self.trunk.config)
        out = self.trunk(
            inputs_embeds=self.janus.embed_text(ids),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1], cache, mask

    def _step(self, embedded, cache, mask):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        out = self.trunk(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1], mask

    def _pick(self, logits):
        return torch.multinomial(logits.softmax(-1), 1).squeeze(1)


def main() -> None:
    # Imported here, because the plain loop is also measured on machines without it.
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="examples/shapes/checkpoint")
    parser.add_argument("--templates", default="examples/shapes/templates")
    parser.add_argument("--prompts", default="examples/shapes/prompts/heldout.jsonl")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()

    torch.set_num_threads(1)
    janus = load_janus(PolicyConfig(path=args.policy, templates=args.templates))
    config = SamplingConfig(guidance=1.5, max_cot_tokens=32)
    sampler, plain = TorchSampler(janus, config, run_seed=0), TransformersBaseline(janus, config)
    prompts = read_prompts(args.prompts)
    table = Table(title="images per second (median), one thread")
    for column in ("batch", "plain loop", "torch sampler", "ratio"):
        table.add_column(column, justify="right")
    for batch in args.batch:
        groups = batch // args.group_size
        chosen = [prompts[i % len(prompts)] for i in range(groups) for _ in range(args.group_size)]
        times: dict[str, list[float]] = {"plain": [], "ours": []}
        for run in range(args.runs + 1):  # the first of each is a warm-up
            started = time.perf_counter()
            torch.manual_seed(run)
            plain.draw([p.text for p in chosen])
            middle = time.perf_counter()
            sampler.generate([SampleRequest(p, run * batch + i) for i, p in enumerate(chosen)])
            times["plain"].append(middle - started)
            times["ours"].append(time.perf_counter() - middle)
        plain_s, ours_s = (statistics.median(t[1:]) for t in times.values())
        ratios = [p / o for p, o in zip(times["plain"][1:], times["ours"][1:], strict=True)]
        ratio = statistics.median(ratios)
        table.add_row(str(batch), f"{batch / plain_s:.1f}", f"{batch / ours_s:.1f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
