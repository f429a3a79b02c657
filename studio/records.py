"""Records between the process that serves HTTP and those that draw. Needs no torch."""

from dataclasses import dataclass, field


class RequestError(Exception):
    """A request that gets no image: what to tell the client, and as which HTTP status."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        """`param`: the field at fault. `code`: OpenAI's word for the fault."""
        super().__init__(message, param, status, code, retry_after_s)  # so that unpickling works
        self.message, self.param, self.status, self.code = message, param, status, code
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class ModelCard:
    """The model that is served, and its settings for requests that leave them out."""

    name: str
    size: str
    """The size of its images, "WIDTHxHEIGHT"."""
    guidance: float
    temperature: float
    created: int
    """When it was loaded, in seconds since 1970."""


@dataclass(frozen=True)
class Settings:
    """What all images of a batch have in common."""

    guidance: float
    temperature: float


@dataclass(frozen=True)
class ImageTask:
    """One image to be drawn. The image depends on these fields and the weights alone."""

    prompt: str
    cot: bool | str
    """Whether to write a semantic CoT first; or one that the client gives."""
    seed: int
    index: int
    """The image's number in its request."""
    settings: Settings


@dataclass(frozen=True)
class GeneratedImage:
    """An image as PNG, and the semantic CoT that it was drawn from."""

    png: bytes = field(repr=False)
    cot: str | None
    """None: there was none."""
    prompt_tokens: int
    cot_tokens: int
    """How many CoT tokens the model wrote."""
    image_tokens: int


# --- events for a client that streams; `index`: the image's number in the request ---


@dataclass(frozen=True)
class CotDelta:
    """More text of the semantic CoT."""

    index: int
    delta: str


@dataclass(frozen=True)
class CotDone:
    """The whole semantic CoT, once it is written."""

    index: int
    text: str


@dataclass(frozen=True)
class PartialImage:
    """The image as drawn so far, as PNG, gray where nothing is drawn yet."""

    index: int
    number: int
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Completed:
    index: int
    image: GeneratedImage


Event = CotDelta | CotDone | PartialImage | Completed
