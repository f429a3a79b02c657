"""A gateway to ask, and requests for it."""

import json
from base64 import b64encode
from io import BytesIO

import httpx
import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from rewards.config import RewardsConfig
from tests.rewards.drawing import draw

HERE = "tests.rewards.experts_for_tests"
CIRCLE = draw(("red", "circle", 2, 2))
ROW = json.dumps({"prompt": "a red circle", "task_type": "color", "attr_nouns": ["red circle"]})
CONFIG = RewardsConfig.model_validate(
    {
        "experts": {
            "objects": {"use": "examples.shapes.experts:ObjectsExpert", "weight": 3},
            "bright": {"use": f"{HERE}:Brightness"},
            "spatial": {"use": f"{HERE}:OnlySpatial"},
            "boxes": {"use": f"{HERE}:Boxes", "weight": 0},
            "broken": {
                "use": f"{HERE}:FixedAnswer",
                "options": {"values": [float("nan")]},
                "weight": 0,
            },
        },
        "retries": 0,
        "gateway": {"port": 0, "max_body_mb": 0.5, "max_pixels": 100 * 100},
    }
)


def encoded(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    out = BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def form(*files: bytes, prompt: str | None = ROW) -> dict:
    sent = {"files": [("image", (f"{n}.png", data)) for n, data in enumerate(files)]}
    return sent if prompt is None else sent | {"data": {"prompt": prompt}}


def as_json(*files: bytes, prompt: str | dict = ROW, **more) -> dict:
    return {"json": {"prompt": prompt, "images": [b64encode(f).decode() for f in files], **more}}


def metric(http: httpx.Client, name: str, **labels: str) -> float:
    """The sum over the replicas."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())
