"""The sampler that runs both phases in vLLM. It draws the tokens that TorchSampler draws."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from actors.sampler import Cots, Images, Progress, SamplingConfig, TwoPhaseSampler
from actors.vllm.config import VLLMConfig
from actors.vllm.engine import Engine, Request
from actors.vllm.guided_sampling import PhaseConfig
from policy.model import Janus


class VLLMSampler(TwoPhaseSampler):
    """Takes over `janus`, which must be on the CPU: its weights go into the engine, and all but the
    image decoder is dropped from it."""

    def __init__(
        self,
        janus: Janus,
        config: SamplingConfig,
        run_seed: int,
        settings: VLLMConfig | None = None,
        num_gpus: float = 1.0,
    ):
        """`num_gpus`: the GPUs of this process, as Ray counts them."""
        super().__init__(janus, config, run_seed)
        model = janus.model
        self.engine = Engine(model.config, model.dtype, settings or VLLMConfig(), num_gpus)
        self.engine.load_weights(model.named_parameters(), complete=True)
        _keep_only_the_image_decoder(model)
        self.device = "cuda:0" if torch.cuda.is_available() else "cpu"
        model.to(self.device)

    @torch.no_grad()
    def load_parameters(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        decoder = dict(self.janus.model.named_parameters())

        def engine_tensors() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in tensors:
                if name in decoder:
                    decoder[name].copy_(tensor)
                yield name, tensor

        self.engine.load_weights(engine_tensors())

    def generate_cots(
        self, prompts: list[list[int]], keys: list[int], on_progress: Progress | None = None
    ) -> Cots:
        config = PhaseConfig(
            "cot",
            temperature=self.config.temperature,
            guidance=1.0,
            max_tokens=self.config.max_cot_tokens,
            stop_id=self.janus.eos_id,
        )
        requests = [Request(p, None, key) for p, key in zip(prompts, keys, strict=True)]
        sampled = self.engine.run(config, requests, on_progress)
        return Cots([d.tokens for d in sampled], [d.logps for d in sampled])

    def generate_images(
        self, prompts: list[list[int]], keys: list[int], on_progress: Progress | None = None
    ) -> Images:
        config = PhaseConfig(
            "image",
            temperature=self.config.temperature,
            guidance=self.config.guidance,
            max_tokens=self.janus.image_tokens,
        )
        guided = self.config.guidance != 1.0
        requests = [
            Request(p, self.janus.unconditional_ids(p) if guided else None, key)
            for p, key in zip(prompts, keys, strict=True)
        ]
        sampled = self.engine.run(config, requests, on_progress)
        return Images(
            torch.tensor([d.tokens for d in sampled], device=self.device),
            torch.tensor([d.logps for d in sampled]),
            torch.tensor([d.guided_logps for d in sampled]),
        )


def _keep_only_the_image_decoder(model: JanusForConditionalGeneration) -> None:
    del model.lm_head
    for name, _ in list(model.model.named_children()):
        if name != "vqmodel":
            delattr(model.model, name)
