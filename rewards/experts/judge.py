"""A judge: any vision-language model behind an OpenAI-compatible endpoint (vLLM, SGLang, a hosted one).

| `answer` | asked | score |
|---|---|---|
| `yes_no` | yes or no | P(yes) / (P(yes) + P(no)), from the likeliest first tokens of the answer |
| `grade` | a number from 0 to 10 | a tenth of it; any other answer is an error |
| `auto` | one of the two | `yes_no` where the server returns log-probabilities, else `grade` |
"""

import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from policy.errors import UserError
from policy.records import Prompt
from rewards.expert import Expert, ExpertScores
from rewards.experts.chat import Chat, ChatError, Choice, Token
from rewards.experts.common import PROMPT, read_template

Answer = Literal["auto", "yes_no", "grade"]
_YES_NO = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 20}
_GRADE = {"max_tokens": 16, "temperature": 0.0}
_TRIAL_IMAGE = np.full((64, 64, 3), 128, np.uint8)
_TRIAL_QUESTION = "Is this image grey?"


def first_tokens(choice: Choice) -> list[Token]:
    """The likeliest tokens that the answer might have begun with; none if the server does not return
    them."""
    tokens = choice.logprobs and choice.logprobs.content
    return tokens[0].top_logprobs if tokens else []


def yes_share_of(choice: Choice) -> float:
    """P(yes) / (P(yes) + P(no)) over the listed first tokens, whatever their case and the space before
    them; a word that is not listed has probability 0. Raises ValueError if neither is listed."""
    top = first_tokens(choice)
    yes, no = (
        sum(math.exp(t.logprob) for t in top if t.token.strip().casefold() == word)
        for word in ("yes", "no")
    )
    if yes + no == 0:
        raise ValueError(f"the judge says neither yes nor no, but {[t.token for t in top[:5]]}")
    return yes / (yes + no)


def grade_of(choice: Choice) -> float:
    """A tenth of a number from 0 to 10, which is all that the answer may be. Raises ValueError."""
    reply = (choice.message.content or "").strip()
    match = re.fullmatch(r"(\d{1,2}(?:\.\d+)?)(?:\s*/\s*10)?\.?", reply, re.ASCII)
    if match is None or float(match[1]) > 10:
        raise ValueError(f"the judge was asked for a number from 0 to 10, and says {reply!r}")
    return float(match[1]) / 10


def quoted(text: str) -> str:
    """The inside of a JSON string: no prompt can close its quotation marks, and go on as if it were the
    question."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class VlmJudge(Expert):
    """Asks about each image by itself, several at a time. The constructor makes a trial request, so
    that a wrong address, model or key is found before training starts."""

    def __init__(
        self,
        url: str,
        model: str,
        answer: Answer = "auto",
        template: str | None = None,
        api_key_env: str | None = None,
        timeout_s: float = 60,
        retries: int = 4,
        concurrency: int = 8,
    ):
        """`template`: a file with the question and "{prompt}" in it, for the kind of answer that is
        asked for; the prompt is filled in as the inside of a JSON string. `api_key_env`: the
        environment variable that holds the API key, on every node that may run the expert. `timeout_s`:
        for one request; `concurrency`: how many may be under way."""
        if answer == "auto" and template is not None:
            raise UserError(
                f"{template}: with a template of your own, say answer: yes_no or answer: grade"
            )
        self._chat = Chat(url, model, api_key_env, timeout_s, retries)
        self._concurrency = concurrency
        self._answer = self._tried(answer)
        self._question = read_template(template, f"judge_{self._answer}.txt", PROMPT)

    def _tried(self, answer: Answer) -> Answer:
        """The kind of answer to ask for, after a trial."""
        if answer != "grade":
            if self._returns_logprobs():
                return "yes_no"
            if answer == "yes_no":
                raise UserError("the judge's server returns no log-probabilities: set answer: grade")
        try:
            self._chat.ask(_TRIAL_IMAGE, _TRIAL_QUESTION, **_GRADE)
        except ChatError as error:
            raise UserError(f"the judge does not answer: {error}") from None
        return "grade"

    def _returns_logprobs(self) -> bool:
        try:
            return bool(first_tokens(self._chat.ask(_TRIAL_IMAGE, _TRIAL_QUESTION, **_YES_NO)))
        except ChatError as error:
            if error.status in (400, 422):  # a server that does not know the parameter
                return False
            raise UserError(f"the judge does not answer: {error}") from None

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="judge")
        try:
            values = list(pool.map(self._judge, images, prompts))
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure the rest need not be asked
        word = "yes" if self._answer == "yes_no" else "grade"
        return ExpertScores(
            np.array(values, np.float32), tuple(f"{word}: {value:.3f}" for value in values)
        )

    def _judge(self, image: np.ndarray, prompt: Prompt) -> float:
        question = self._question.replace(PROMPT, quoted(prompt.text))
        if self._answer == "yes_no":
            return yes_share_of(self._chat.ask(image, question, **_YES_NO))
        return grade_of(self._chat.ask(image, question, **_GRADE))
