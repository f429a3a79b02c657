"""The Triton kernel, run by Triton's interpreter, draws what the torch version draws."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT

COMPARE = """
import json, torch
from actors import token_choice_kernel
from actors.token_choice import choose_tokens

generator = torch.Generator().manual_seed(0)
found = []
for rows, vocabulary in ((5, 300), (3, 5000), (2, 16384)):
    for temperature in (1.0, 0.7, 0.0):
        for guidance in (1.0, 5.0):
            logits = torch.randn(2 * rows, vocabulary + 3, generator=generator)[:, :vocabulary] * 3
            keys = torch.randint(0, 2**32, (rows,), generator=generator)
            where = torch.randint(0, 600, (rows,), generator=generator)
            cond, uncond = logits[:rows], logits[rows:] if guidance != 1 else None
            mine = token_choice_kernel.choose(cond, uncond, guidance, keys, where, temperature)
            plain = choose_tokens(
                cond, keys, where, temperature, unconditional=uncond, guidance=guidance
            )
            gaps = [float((a - b).abs().max()) for a, b in zip(mine, plain)]
            found.append([rows, vocabulary, temperature, guidance, *gaps])
print(json.dumps(found))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_the_kernel_draws_the_tokens_of_the_torch_version():
    """In a process of its own: Triton reads when it is imported whether to interpret."""
    done = subprocess.run(
        [sys.executable, "-c", COMPARE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 18
    for *case, tokens, logps, guided in found:
        assert tokens == 0, case
        assert max(logps, guided) < 2e-5, case
