"""WISE with eight prompts of our own, in its published form: at least one of each task."""

import hashlib
import json
from pathlib import Path

from evaluation.data import RELEASES, PublishedFile, Release
from evaluation.wise import WiseVerified

IDS = (1, 2, 3, 401, 521, 641, 761, 881)
_SOURCE = '''
MESSAGES = [{"role": "system", "content": [{"type": "text", "text": "Be strict."}]}]


def ask(prompt_data):
    return f"""Judge.
PROMPT: "{prompt_data['Prompt']}"
EXPLANATION: "{prompt_data["Explanation"]}"
Now."""
'''
_ROWS = [
    {"prompt_id": number, "Prompt": f"a thing of number {number}", "Explanation": "it is a thing"}
    for number in IDS
]
FILES = {"merge.json": json.dumps(_ROWS), "vllm_eval.py": _SOURCE}

RELEASES["small_wise"] = Release(
    "somebody/wise",
    "0" * 40,
    "none",
    tuple(
        PublishedFile(name, len(text), hashlib.sha256(text.encode()).hexdigest())
        for name, text in FILES.items()
    ),
)


class SmallWise(WiseVerified):
    name = "tests.evaluation.small_wise:SmallWise"
    data_name = "small_wise"


def write_data(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
