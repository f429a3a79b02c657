"""Janus as vLLM sees it: one language model over a joint vocabulary, text ids first, then image ids.

vLLM knows a model by its config and its class. The config is a Llama's with the joint vocabulary; the
class wraps vLLM's own Llama trunk, embeds both kinds of tokens inside it (so CUDA graphs cover that),
and computes only the head that the phase needs.

T tokens, R rows, D hidden, Vt text and Vi image vocabulary.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusConfig, LlamaConfig
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead
from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.llama import LlamaModel
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix

from actors.vllm.guided_sampling import Phase
from policy.model import head_logits

ARCHITECTURE = "BicotJanusForCausalLM"


def joint_config(janus: JanusConfig) -> LlamaConfig:
    """The config that vLLM reads in place of Janus's own."""
    text, vq = janus.text_config, janus.vq_config
    identity = ("model_type", "architectures", "transformers_version", "_name_or_path")
    joint = LlamaConfig(**{k: v for k, v in text.to_dict().items() if k not in identity})
    joint.architectures = [ARCHITECTURE]
    joint.tie_word_embeddings = False
    joint.text_vocabulary = text.vocab_size
    joint.vocab_size = text.vocab_size + vq.num_embeddings
    joint.vq = vq.to_dict()
    return joint


class JointTrunk(LlamaModel):
    """vLLM's Llama, which reads joint ids."""

    def __init__(self, *, vllm_config: VllmConfig, vq: JanusVQVAEConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.image_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.image_aligner = JanusVQVAEAlignerMLP(vq)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """int [T] -> [T, D]. Both embeddings are computed: whether a token is text or image is data,
        not shape."""
        is_image = input_ids >= self.vocab_size
        text = self.embed_tokens(torch.where(is_image, 0, input_ids))
        image_ids = torch.where(is_image, input_ids - self.vocab_size, 0)
        image = self.image_aligner(self.image_embeddings(image_ids))
        return torch.where(is_image[:, None], image, text)


class BicotJanusForCausalLM(nn.Module):
    names = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "model.",
            "model.generation_embeddings.": "model.image_embeddings.",
            "model.generation_aligner.": "model.image_aligner.",
            "model.generation_head.": "image_head.",
            "model.vision_model.": None,
            "model.aligner.": None,
            "model.vqmodel.": None,
        }
    )
    """transformers' names -> ours; None: not needed here."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        joint = vllm_config.model_config.hf_config
        vq = JanusVQVAEConfig(**joint.vq)
        text = LlamaConfig(**{**joint.to_dict(), "vocab_size": joint.text_vocabulary})
        self.config = joint
        self.phase: Phase | None = None
        """The head to compute; None: both."""
        self.text_vocabulary = joint.text_vocabulary
        self.model = JointTrunk(
            vllm_config=vllm_config.with_hf_config(text, architectures=["LlamaForCausalLM"]),
            vq=vq,
            prefix=maybe_prefix(prefix, "model"),
        )
        self.lm_head = ParallelLMHead(
            joint.text_vocabulary, joint.hidden_size, prefix=maybe_prefix(prefix, "lm_head")
        )
        self.text_head = LogitsProcessor(joint.text_vocabulary)
        self.text_head.head_dtype = torch.float32  # as policy.heads does it
        self.image_head = JanusVQVAEHead(vq)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
        for module in self.model.modules():
            if isinstance(module, LinearBase):
                # vLLM's CPU kernels would keep a packed copy and drop the weight, which then could not
                # be updated in place, nor in part.
                module._cpu_skip_gemm_dispatch = True

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden: Tensor) -> Tensor | None:
        """[R, D] -> float32 [R, Vt + Vi]; -inf for the phase that is not drawn."""
        shape = (len(hidden), self.config.vocab_size)
        logits = torch.full(shape, float("-inf"), device=hidden.device)
        if self.phase != "image":
            text = self.text_head(self.lm_head, hidden)
            if text is None:  # with tensor parallelism only the first rank gets it
                return None
            logits[:, : self.text_vocabulary] = text
        if self.phase != "cot":
            logits[:, self.text_vocabulary :] = head_logits(self.image_head, hidden)
        return logits

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Copy into the parameters where they are, whole or in part; CUDA graphs stay valid."""
        loaded = AutoWeightsLoader(self).load_weights(weights, mapper=self.names)
        self.lm_head.cpu_linear = F.linear  # in place of the copy that vLLM's CPU kernels packed
        return loaded


def register() -> None:
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, BicotJanusForCausalLM)
