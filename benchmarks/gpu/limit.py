"""The least time that a decoding step can take: the bytes that it must read, over the bandwidth that a
large copy reaches here.

Every step reads each weight of the trunk once, the head of its phase, and all keys and values so far.
Prompts and arithmetic come on top.
"""

from torch import nn
from transformers import JanusConfig

from benchmarks.gpu.measure import parameters
from benchmarks.gpu.setting import Setting
from policy.model import PolicyModel, image_head_of, text_head_of, trunk_of


def kv_bytes(config: JanusConfig, width: int) -> int:
    """Bytes of the keys and values of one token in one row."""
    text = config.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * size * width


def step_bytes(janus: PolicyModel, setting: Setting, phase: str, pairs: int) -> float:
    """Bytes of one step in the middle of a phase: a CoT is one row a sample, an image two."""
    model, lengths = janus.model, setting.lengths
    width = model.dtype.itemsize
    head: nn.Module = text_head_of(model)
    rows, seen = pairs, lengths.cot_prompt + lengths.cot / 2
    if phase == "image":
        head = image_head_of(model)
        rows, seen = 2 * pairs, lengths.image_prompt + janus.image_tokens / 2
    weights = parameters([*trunk_of(model).layers, head]) * width
    return weights + rows * seen * kv_bytes(model.config, width)
