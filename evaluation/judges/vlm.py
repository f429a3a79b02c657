"""A vision-language model behind an OpenAI-compatible endpoint (vLLM, SGLang, a hosted one) that
replies with text, which its benchmark's own rule parses.

An ask has these keys:

| key | |
|---|---|
| `text` | the question about the image |
| `system` | a system message; may be absent or null |
| `image_first` | whether the image comes before the text; absent: after it |
| `image` | "png", or "jpeg" of quality 95; absent: "png" |
| `read` | how the reply is parsed: a key of READERS |
| `points` | how many answers it must hold, where that is known |
| `tries` | how often to ask until a reply can be parsed; absent: 3 times |
| `parameters` | of the request: temperature, max_tokens and the like, as the server expects them |

The reply is the parsed one, with the raw `text`, and `by`: the server, and the model as the server
names it. At temperature 0 a second try is much like the first, but the published judges try again too.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from evaluation import dpg, tiif, unigenbench, wise_rules
from evaluation.benchmark import Ask, Reply
from evaluation.judges.base import Judge, unusable
from policy.errors import UserError
from rewards.experts.chat import Chat, ChatError, user_turn

READERS: Mapping[str, Callable[[str, int], dict[str, Any] | None]] = {
    "wise": wise_rules.read_verified,
    "wise_legacy": wise_rules.read_legacy,
    "unigenbench": unigenbench.read_reply,
    "tiif": tiif.read_reply,
    "dpg": dpg.read_reply,
}
"""Name -> parser of a raw reply, given the number of points; it returns None if it cannot."""

_REFUSED = (400, 413, 415, 422)
"""Statuses for a request that the server will never accept: a picture too large or not allowed."""
_TRIAL_IMAGE = np.full((64, 64, 3), 128, np.uint8)
_TRIAL_QUESTION = "Is this image grey?"


class VlmReplies(Judge):
    """Asks about each image by itself, several at a time. The constructor makes a trial request, so
    that a wrong address, model or key is found before any image is judged."""

    def __init__(
        self,
        url: str = "",
        model: str = "",
        api_key_env: str | None = None,
        timeout_s: float = 300,
        retries: int = 4,
        concurrent: int = 8,
        parameters: Mapping[str, Any] | None = None,
    ):
        """`url` usually ends in /v1. `api_key_env`: the environment variable that holds the API key, on
        every node that may run the judge. `timeout_s`: for one request; `retries`: when the server
        fails; `concurrent`: how many requests may be under way. `parameters` replace an ask's own, for
        a server that does not know one; null removes it. They make another judge, so every reply names
        them."""
        if not url or not model:
            raise UserError(
                "the judge is a vision-language model on a server: name both, as --judge-url"
                " http://HOST:8000/v1 --judge-model NAME"
            )
        self._chat = Chat(url, model, api_key_env, timeout_s, retries)
        self._concurrent = concurrent
        self._parameters = dict(parameters or {})
        self._by = {"model": model, "url": httpx.URL(url).host}
        if self._parameters:
            self._by["parameters"] = str(dict(sorted(self._parameters.items())))
        try:
            trial = self._chat.ask(_TRIAL_IMAGE, _TRIAL_QUESTION, **self._sent({"max_tokens": 16}))
        except ChatError as error:
            raise UserError(f"the judge does not answer: {error}") from None
        # A request that is refused later has no reply to name the model.
        self._by["model"] = trial.model or model

    def identity(self) -> dict[str, str]:
        return self._by

    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        pool = ThreadPoolExecutor(self._concurrent, thread_name_prefix="judge")
        try:
            return list(pool.map(self._reply, images, asks))
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure the rest need not be asked

    def _reply(self, image: np.ndarray, ask: Ask) -> Reply:
        read, tries = _reader(ask), ask.get("tries", 3)
        turn = user_turn(
            ask["text"], [image], ask.get("image_first", False), kind=ask.get("image", "png")
        )
        messages = [turn]
        if ask.get("system"):
            messages.insert(0, {"role": "system", "content": ask["system"]})
        parameters = self._sent(ask.get("parameters", {}))
        reply, by = "", self._by
        for _ in range(tries):
            try:
                choice = self._chat.answer(messages, **parameters)
            except ChatError as error:
                if error.status not in _REFUSED:
                    raise
                return unusable(f"the judge's server refuses the request: {error}", text=reply, by=by)
            reply = choice.message.content or ""
            by = {**self._by, "model": choice.model or self._by["model"]}
            if (found := read(reply, ask.get("points", 0))) is not None:
                return {**found, "text": reply, "by": by}
        return unusable(f"{tries} replies, none of which can be read", text=reply, by=by)

    def _sent(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        merged = {**parameters, **self._parameters}
        return {name: value for name, value in merged.items() if value is not None}


def _reader(ask: Ask) -> Callable[[str, int], dict[str, Any] | None]:
    if (name := ask["read"]) not in READERS:
        raise UserError(f"read: {name!r}: no reader of replies; there are {', '.join(READERS)}")
    return READERS[name]
