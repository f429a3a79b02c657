"""An expert that runs on another cluster: it calls that cluster's gateway.

A score is always that expert's own, for exactly these images, which travel without loss. Whatever goes
wrong raises.
"""

import time
from collections.abc import Sequence
from io import BytesIO
from itertools import groupby
from json import dumps
from typing import Any, TypeVar

import httpx
import numpy as np
from PIL import Image
from pydantic import BaseModel, ValidationError

from policy.prompts import prompt_row
from policy.records import Box, Prompt
from rewards.expert import Expert, ExpertScores
from rewards.http import DIGEST, http_client, read_secret, request
from rewards.responses import AppliesReply, ExpertStates, ScoreReply

T = TypeVar("T", bound=BaseModel)
_COME_BACK = (429, 503)
_LONGEST_PAUSE_S = 30.0
_PROMPTS_AT_ONCE = 1000
_MOST_BYTES = 2**24  # of a reply


class RemoteExpertError(RuntimeError):
    """The gateway returned no score, or an invalid one."""


class RemoteExpert(Expert):
    """The expert `expert` behind the gateway at `url`, with the pass threshold that it has there.

    A gateway that is busy (429, 503) or cannot be reached is asked again, `retries` times, after the
    pause that it asks for or one that doubles. `token_env` names the environment variable with its
    bearer token.
    """

    def __init__(
        self,
        url: str,
        expert: str,
        token_env: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 5,
    ):
        """Raises RemoteExpertError if the gateway does not know the expert or the token."""
        headers = {}
        if token_env is not None:
            token = read_secret(token_env)
            if not token or token.startswith(DIGEST):  # this run's own gateway's
                raise RemoteExpertError(f"the environment variable {token_env} holds no token")
            headers["Authorization"] = f"Bearer {token}"
        self._expert, self._retries = expert, retries
        self._http = http_client(url, base_url=url, headers=headers, timeout=timeout_s)
        self.pass_threshold = self._look_up()

    def applies(self, prompt: Prompt) -> bool:
        return self.applies_to([prompt])[0]

    def applies_to(self, prompts: Sequence[Prompt]) -> list[bool]:
        """Asks for all prompts that differ at once."""
        rows = {prompt: prompt_row(prompt) for prompt in prompts}
        distinct = list(rows)
        answers: dict[Prompt, bool] = {}
        for begin in range(0, len(distinct), _PROMPTS_AT_ONCE):
            some = distinct[begin : begin + _PROMPTS_AT_ONCE]
            body = {"prompts": [rows[prompt] for prompt in some], "experts": [self._expert]}
            reply = _read(AppliesReply, self._ask("POST", "/v1/applies", json=body))
            given = reply.experts.get(self._expert, [])
            if len(given) != len(some):
                raise RemoteExpertError(f"{self} answered {len(given)} of {len(some)} prompts")
            answers |= dict(zip(some, given, strict=True))
        return [answers[prompt] for prompt in prompts]

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        """One request for each run of images with the same prompt."""
        values, explanation, boxes = [], [], []
        for prompt, run in groupby(zip(prompts, images, strict=True), key=lambda pair: pair[0]):
            files = [("image", (f"{n}.png", _png(image))) for n, (_, image) in enumerate(run)]
            form = {"prompt": dumps(prompt_row(prompt)), "experts": self._expert}
            reply = _read(ScoreReply, self._ask("POST", "/v1/score", data=form, files=files))
            if len(reply.images) != len(files):
                raise RemoteExpertError(f"{self} answered {len(reply.images)} of {len(files)} images")
            for image in reply.images:
                given = image.experts.get(self._expert)
                if given is None or given.score is None:
                    why = (given and given.error) or "it does not apply"
                    raise RemoteExpertError(f"{self} gave no score for {prompt.text!r}: {why}")
                values.append(given.score)
                explanation.append(given.explanation)
                boxes.append(tuple(Box(b.label, b.score, b.xyxy) for b in given.boxes))
        return ExpertScores(np.array(values, np.float32), tuple(explanation), tuple(boxes))

    def __str__(self) -> str:
        return f"expert {self._expert} at {self._http.base_url}"

    def _look_up(self) -> float:
        listed = _read(ExpertStates, self._ask("GET", "/v1/experts")).root
        states = {state.name: state for state in listed}
        if self._expert not in states:
            raise RemoteExpertError(f"there is no {self}; there are {', '.join(states)}")
        mark = states[self._expert].pass_threshold
        if mark is None:
            raise RemoteExpertError(f"{self} is {states[self._expert].status}, not RUNNING")
        return mark

    def _ask(self, method: str, path: str, **body: Any) -> bytes:
        """The body of a reply with status 200. Raises RemoteExpertError for any other status, or no
        reply."""
        for number in range(1 + self._retries):
            pause = min(_LONGEST_PAUSE_S, 0.25 * 2**number)
            try:
                reply, content = request(self._http, method, path, max_bytes=_MOST_BYTES, **body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if reply.status_code == 200:
                    return content
                problem = f"status {reply.status_code}: {content[:200].decode(errors='replace')}"
                if reply.status_code not in _COME_BACK:
                    break
                after = reply.headers.get("retry-after", "")
                pause = min(_LONGEST_PAUSE_S, int(after)) if after.isdecimal() else pause
            if number < self._retries:
                time.sleep(pause)
        raise RemoteExpertError(f"{self} did not answer: {problem}")


def _read(model: type[T], content: bytes) -> T:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RemoteExpertError(f"not a reply of a gateway: {where}: {first['msg']}") from error


def _png(image: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()
