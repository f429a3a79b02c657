"""The gateway's replies, and how they are made from the experts' results."""

from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, Field, RootModel

from policy.records import Box
from rewards.config import RewardsConfig
from rewards.expert import ExpertResult
from rewards.rewards import RunningStats, scale_of, weighted_mean


class SeenBox(BaseModel):
    """An object that an expert found."""

    label: str
    score: float
    xyxy: tuple[float, float, float, float] = Field(
        description="left, top, right, bottom, each 0..1 of the image's width or height"
    )

    @classmethod
    def of(cls, box: Box) -> "SeenBox":
        return cls(label=box.label, score=box.score, xyxy=box.xyxy)


class ExpertScore(BaseModel):
    """One expert's score of one image."""

    score: float | None = Field(description="null: the expert does not apply to the prompt, or failed")
    error: str | None = Field(description="why the expert failed; null: it did not")
    explanation: str = Field(description="what it saw, for people; may be empty")
    boxes: list[SeenBox] = Field(description="what it found where; may be empty")


class ImageScore(BaseModel):
    """One image's reward and its parts."""

    reward: float | None = Field(
        description="weighted mean of the experts that apply; null: none, or one that counts failed"
    )
    experts: dict[str, ExpertScore]


class ScoreReply(BaseModel):
    """One entry an image, in the order of the request."""

    prompt_id: str
    images: list[ImageScore]


class AppliesReply(BaseModel):
    """Whether each expert applies, one entry a prompt."""

    experts: dict[str, list[bool]]


class ExpertState(BaseModel):
    """One expert: its configuration and its state."""

    name: str
    use: str
    weight: float
    pass_threshold: float | None = Field(
        description="score from which an image is right; null: not known"
    )
    replicas: int = Field(description="replicas that are wanted, at least")
    running: int = Field(description="replicas that run now")
    status: str = Field(description='"RUNNING": it answers')


class ExpertStates(RootModel[list[ExpertState]]):
    """All experts of a gateway."""


class State(BaseModel):
    status: str


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


def score_reply(
    config: RewardsConfig, prompt_id: str, results: Mapping[str, ExpertResult], images: int
) -> ScoreReply:
    """The reply. An expert's failure takes only the reward with it, if the expert counts."""
    return ScoreReply(
        prompt_id=prompt_id,
        images=[
            ImageScore(reward=reward, experts={name: _cell(o, n) for name, o in results.items()})
            for n, reward in enumerate(_rewards(config, results, images))
        ],
    )


def _rewards(
    config: RewardsConfig, results: Mapping[str, ExpertResult], images: int
) -> list[float | None]:
    weighted = {name: o for name, o in results.items() if config.experts[name].weight > 0}
    failed = any(o.failed for o in weighted.values())
    # Whether an expert applies depends on the prompt, and all images here have the same one.
    if failed or all(np.isnan(o.scores.values).any() for o in weighted.values()):
        return [None] * images
    scores = weighted_mean(
        [str(n) for n in range(images)],
        {name: o.scores for name, o in weighted.items()},
        {name: config.experts[name].weight for name in weighted},
        {name: o.pass_threshold for name, o in weighted.items()},
        {name: scale_of(config.experts[name], RunningStats()) for name in weighted},
    )
    return [float(reward) for reward in scores.rewards]


def _cell(result: ExpertResult, n: int) -> ExpertScore:
    if result.failed:
        return ExpertScore(score=None, error=str(result.outcome), explanation="", boxes=[])
    given, value = result.scores, float(result.scores.values[n])
    return ExpertScore(
        score=None if np.isnan(value) else value,
        error=None,
        explanation=given.explanation[n],
        boxes=[SeenBox.of(box) for box in given.boxes[n]],
    )
