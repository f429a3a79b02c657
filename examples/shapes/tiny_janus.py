"""A Janus small enough to ship: the real class and layout, under a million parameters."""

from itertools import chain

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from examples.shapes.experts import COLORS, SHAPES
from examples.shapes.riddles import descriptions
from examples.shapes.world import COLUMNS, NUMBERS, RELATIONS, ROWS, SIZE

PATCH = 4
GRID = SIZE // PATCH
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<begin_of_image>", "<end_of_image>", "<image>"]
PUNCTUATION = [".", ";", ":", ","]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the world, in the conversation format of Janus."""
    plurals = [f"{shape}s" for shape in SHAPES]
    relations = chain.from_iterable(r.split() for r in RELATIONS)
    words = ["User", "Assistant", "plan", "a", "and", *NUMBERS, *COLORS, *SHAPES, *plurals]
    facts = " ".join(
        str(described) for held_out in (False, True) for described in descriptions(held_out)
    )
    known = [*SPECIAL, *PUNCTUATION, *words, *relations, *ROWS, *COLUMNS, *facts.split()]
    vocabulary = dict.fromkeys(known)
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        clean_up_tokenization_spaces=False,
    )


def build_janus(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int = 128, layers: int = 3, codes: int = 128
) -> JanusForConditionalGeneration:
    """A randomly initialised Janus for 24 x 24 images of 6 x 6 tokens."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=hidden,
        depth=1,
        num_image_tokens=GRID * GRID,
    )
    vq = JanusVQVAEConfig(
        embed_dim=16,
        num_embeddings=codes,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=0,
        num_patches=GRID,
        projection_dim=hidden,
        num_hidden_layers=2,
        image_token_embed_dim=hidden,
    )
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    return JanusForConditionalGeneration(config)
