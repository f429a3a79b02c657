"""Visual question answering: is each thing that the prompt names there, with its attributes?

For each of the prompt's attribute phrases ("a red dog") the model is asked "a red dog?", and answers
with P(yes) / (P(yes) + P(no)), from its distribution over the first token of an answer. The score is
the mean over the phrases (T2I-R1, arXiv 2505.00703, section 3.3). These experts do not apply to prompts
without such phrases; the published code gives spatial and count prompts a constant 0.
"""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    GitForCausalLM,
    PreTrainedModel,
)

from policy.errors import UserError
from policy.hub import model_folder
from policy.records import Prompt
from rewards.expert import Expert, ExpertScores
from rewards.experts.common import Device, Dtype, batches, pictures, yes_share
from rewards.experts.published_weights import (
    Placement,
    load_model,
    load_part,
    load_tokenizer,
    read_config,
    token_id,
)

_PHRASE = "{phrase}"


class _Vqa(Expert):
    """Takes the questions of all images together, `batch_size` questions at a time."""

    model_class: type[PreTrainedModel]
    model_type: str
    image_processor: type[BaseImageProcessor]

    def __init__(self, path: str, device: Device, dtype: Dtype, batch_size: int, question: str):
        if _PHRASE not in question:
            raise UserError(f"a question must contain {_PHRASE}; {question!r} does not")
        self._question = question
        self._batch_size = batch_size
        self._place = Placement.pick(device, dtype)
        folder = model_folder(path)
        read_config(folder, self.model_type)
        self._tokenizer = load_tokenizer(folder)
        self._image_processor = load_part(
            self.image_processor.from_pretrained, folder, "image processor"
        )
        self._model = load_model(self.model_class, folder, self._place)
        self._yes, self._no = token_id(self._tokenizer, "yes"), token_id(self._tokenizer, "no")

    def applies(self, prompt: Prompt) -> bool:
        return bool(prompt.attr_nouns)

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        yes = self.yes(images, [prompt.attr_nouns for prompt in prompts])
        lines = [
            "; ".join(f"{phrase}: {p:.2f}" for phrase, p in zip(prompt.attr_nouns, some, strict=True))
            for prompt, some in zip(prompts, yes, strict=True)
        ]
        return ExpertScores(np.array([some.mean() for some in yes], np.float32), tuple(lines))

    @torch.inference_mode()
    def yes(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """The answers on each image's phrases, float32 [P] for an image with P of them."""
        owners = [n for n, some in enumerate(phrases) for _ in some]
        answers = [
            self._answers([images[n] for n in some], whose, asked)
            for some, whose, asked in self._batched(owners, [p for some in phrases for p in some])
        ]
        together = np.concatenate([np.zeros(0, np.float32), *answers])
        ends = np.cumsum([0, *map(len, phrases)])
        return [together[begin:end] for begin, end in pairwise(ends)]

    def _batched(
        self, owners: list[int], phrases: list[str]
    ) -> Iterator[tuple[list[int], list[int], list[str]]]:
        """Batches of questions: the images that they are about, each once; for each question, which of
        these it is about; and the questions."""
        for part in batches(range(len(phrases)), self._batch_size):
            of_part = [owners[n] for n in part]
            some = sorted(set(of_part))
            asked = [self._question.replace(_PHRASE, phrases[n]) for n in part]
            yield some, [some.index(owner) for owner in of_part], asked

    def _answers(self, images: list[np.ndarray], whose: list[int], questions: list[str]) -> np.ndarray:
        pixels = self._image_processor(pictures(images), return_tensors="pt").pixel_values
        pixels = pixels.to(self._place.device, self._place.dtype)
        about = torch.tensor(whose, device=self._place.device)
        return yes_share(self._logits(pixels, about, questions), self._yes, self._no).cpu().numpy()

    @abstractmethod
    def _logits(self, pixels: Tensor, about: Tensor, questions: list[str]) -> Tensor:
        """Logits of the first answer token, [Q, V]. Pixels are [N, 3, H, W], `about` int64 [Q] says
        which of them each question is about."""


class Git(_Vqa):
    """GIT (Wang et al., arXiv 2205.14100), a decoder that reads image, question, answer in one row: the
    VQA model of T2I-R1."""

    model_class = GitForCausalLM
    model_type = "git"
    image_processor = CLIPImageProcessorPil

    def __init__(
        self,
        path: str = "microsoft/git-large-vqav2",
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 32,
        question: str = "{phrase}?",
    ):
        super().__init__(path, device, dtype, batch_size, question)

    def _logits(self, pixels: Tensor, about: Tensor, questions: list[str]) -> Tensor:
        rows = self._tokenizer(questions, add_special_tokens=False).input_ids
        rows = [torch.tensor([self._tokenizer.cls_token_id, *row]) for row in rows]
        lengths = torch.tensor([len(row) for row in rows], device=self._place.device)
        # Padding comes last, so causal attention never sees it: each row is read as it would be alone.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._place.device)
        model = self._model.git
        hidden = model(input_ids=ids, pixel_values=pixels[about], use_cache=False).last_hidden_state
        patches = hidden.shape[1] - ids.shape[1]
        last = hidden[torch.arange(len(ids), device=self._place.device), patches + lengths - 1]
        return self._model.output(last)


class BlipVqa(_Vqa):
    """BLIP-VQA (Li et al., arXiv 2201.12086), an encoder of the question that looks at the image and a
    decoder of the answer: the VQA model of T2I-CompBench."""

    model_class = BlipForQuestionAnswering
    model_type = "blip"
    image_processor = BlipImageProcessorPil

    def __init__(
        self,
        path: str = "Salesforce/blip-vqa-base",
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 32,
        question: str = "{phrase}?",
    ):
        super().__init__(path, device, dtype, batch_size, question)

    def _logits(self, pixels: Tensor, about: Tensor, questions: list[str]) -> Tensor:
        # Its position embeddings are interpolated for pictures of another size.
        seen = self._model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True)
        return self._read(seen.last_hidden_state[about], questions)

    def _read(self, seen: Tensor, questions: list[str]) -> Tensor:
        """Logits [Q, V] of questions, each about the picture that it sees, [Q, N, D]."""
        rows = self._tokens(questions)
        # Questions of one length together: transformers' decoder attends to padding whatever the mask.
        by_length = defaultdict(list)
        for n, row in enumerate(rows):
            by_length[len(row)].append(n)
        logits = [
            self._read_alike(seen[some], torch.tensor([rows[n] for n in some], device=seen.device))
            for some in by_length.values()
        ]
        order = torch.tensor([n for some in by_length.values() for n in some], device=seen.device)
        return torch.cat(logits)[order.argsort()]

    def _read_alike(self, seen: Tensor, ids: Tensor) -> Tensor:
        """The same for questions of one length, int64 [Q, T]."""
        question = self._model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        return self._model.text_decoder(
            input_ids=ids.new_full((len(ids), 1), self._model.decoder_start_token_id),
            encoder_hidden_states=question,
            use_cache=False,
        ).logits[:, -1]

    def _tokens(self, questions: list[str]) -> list[list[int]]:
        """Token ids of each question."""
        return self._tokenizer(questions).input_ids
