"""A checkpoint for another number of ranks: DeepSpeed's universal format, one file a parameter."""

import subprocess
import sys
from pathlib import Path

from learner.engine import ENGINE_FOLDER, UNIVERSAL_FOLDER
from policy.errors import UserError


def to_universal(folder: Path) -> None:
    """Write `learner_universal/` beside `learner/` in a checkpoint; nothing to do if it is there.

    In a process of its own: DeepSpeed's converter changes the directory's names and its own globals.
    Raises UserError with its last words if it fails.
    """
    if (folder / UNIVERSAL_FOLDER).exists():
        return
    part = folder / f"{UNIVERSAL_FOLDER}.part"
    options = {"input_folder": folder / ENGINE_FOLDER, "output_folder": part}
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    for name, value in {**options, "num_extract_workers": 1, "num_merge_workers": 1}.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise UserError(f"{folder}: cannot be made ready for another number of ranks: {last}")
    part.rename(folder / UNIVERSAL_FOLDER)
