"""Write the prompt files of the shapes world: `python -m examples.shapes.make_prompts`.

`train.jsonl` and `heldout.jsonl` are disjoint: plain prompts are split by a hash of the text, riddles
by the facts that they combine. Kinds with many prompts are subsampled, in the order of the same hash,
so that no kind dominates. One prompt in four is a riddle.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from examples.shapes.riddles import some_riddles
from examples.shapes.world import all_prompts, is_held_out
from policy.records import Prompt

HERE = Path(__file__).parent / "prompts"
TRAIN = {"single": 14, "count": 34, "two": 66, "mixed": 66, "spatial": 120, "riddle": 100}
HELD_OUT = {"single": 4, "count": 13, "two": 23, "mixed": 23, "spatial": 45, "riddle": 36}


def row(prompt: Prompt) -> dict:
    fields = {key: value for key, value in asdict(prompt).items() if value and key != "id"}
    return {"prompt": fields.pop("text"), **fields}


def choose(held_out: bool, counts: dict[str, int]) -> list[Prompt]:
    chosen = []
    for kind, prompts in all_prompts().items():
        mine = [p for p in prompts if is_held_out(p) == held_out]
        mine.sort(key=lambda p: hashlib.sha256(p.text.encode()).digest()[1:])
        chosen += mine[: counts[kind]]
    return chosen + some_riddles(counts["riddle"], held_out)


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for name, prompts in (("train", choose(False, TRAIN)), ("heldout", choose(True, HELD_OUT))):
        lines = [json.dumps(row(prompt)) for prompt in prompts]
        (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{len(lines)} prompts in {HERE / name}.jsonl")


if __name__ == "__main__":
    main()
