"""Events of a stream as a client reads them: OpenAI's for images, our own for the semantic CoT."""

import time
from base64 import b64encode
from typing import Any

from studio.images_schemas import Usage
from studio.records import CotDelta, CotDone, Event, PartialImage


def to_event(event: Event, seed: int, size: str) -> tuple[str, dict[str, Any]]:
    """The event's type and data. `index`, which OpenAI's events lack, is the image's number in the
    request."""
    match event:
        case CotDelta(index, delta):
            kind = "image_generation.cot.delta"
            return kind, {"type": kind, "index": index, "delta": delta}
        case CotDone(index, text):
            kind = "image_generation.cot.done"
            return kind, {"type": kind, "index": index, "text": text}
        case PartialImage(index, number, png):
            kind = "image_generation.partial_image"
            return kind, _image(kind, index, png, size) | {"partial_image_index": number}
    image = event.image
    kind = "image_generation.completed"
    return kind, _image(kind, event.index, image.png, size) | {
        "revised_prompt": image.cot,
        "seed": seed,
        "usage": Usage.of([image]).model_dump(),
    }


def _image(kind: str, index: int, png: bytes, size: str) -> dict[str, Any]:
    return {
        "type": kind,
        "index": index,
        "b64_json": b64encode(png).decode(),
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": "png",
        "quality": "auto",
        "size": size,
    }
