"""Decodes untrusted images in processes that are killed at a deadline, or when the client goes away."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from fastapi import HTTPException

from rewards.config import GatewayConfig

_MOST_PROCESSES = 4
_ROOT = Path(__file__).parents[1]  # where "rewards" is this one, whatever the working directory holds


class ImageDecoder:
    """A few processes of rewards/images.py, each started when it is first needed and kept. Use in one
    event loop."""

    def __init__(self, limits: GatewayConfig):
        self._timeout_s = limits.decode_timeout_s
        bounds = [str(limits.max_pixels), str(limits.max_images)]
        self._command = [sys.executable, "-m", "rewards.images", *bounds]
        self._idle: list[subprocess.Popen] = []
        self._turn = asyncio.Semaphore(_MOST_PROCESSES)
        # One more than there are processes: waiting for a killed one must not block the others.
        self._threads = ThreadPoolExecutor(_MOST_PROCESSES + 1, thread_name_prefix="decode")

    async def read(self, files: Sequence[bytes]) -> list[np.ndarray]:
        """Files as RGB images, uint8 [H, W, 3] each. Raises an HTTPException: 415 for what is no
        readable image, 413 for what is too much, or takes too long."""
        async with self._turn:
            process = self._idle.pop() if self._idle else self._start()
            fit = False
            try:
                async with asyncio.timeout(self._timeout_s):
                    loop = asyncio.get_running_loop()
                    reply = await loop.run_in_executor(self._threads, _exchange, process, files)
                fit = True
            except TimeoutError:
                late = f"the images take longer than {self._timeout_s:g} s to decode"
                raise HTTPException(413, late) from None
            except (EOFError, OSError):
                raise HTTPException(415, "the images ended the process that decodes them") from None
            finally:
                if fit:
                    self._idle.append(process)
                else:
                    process.kill()
                    self._threads.submit(process.communicate)  # leaves no zombie and no open pipe
        if isinstance(reply, HTTPException):
            raise reply
        return reply

    def _start(self) -> subprocess.Popen:
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(self._command, cwd=_ROOT, stdin=pipe, stdout=pipe, stderr=nowhere)


def _exchange(process: subprocess.Popen, files: Sequence[bytes]) -> list[np.ndarray] | HTTPException:
    """Have a process decode files. Raises EOFError or OSError if it ends meanwhile."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([len(data) for data in files]).encode() + b"\n")
    for data in files:
        process.stdin.write(data)
    process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    reply = json.loads(line)
    if "status" in reply:
        return HTTPException(reply["status"], reply["detail"])
    images = []
    for shape in reply["shapes"]:
        pixels = process.stdout.read(int(np.prod(shape)))
        if len(pixels) < np.prod(shape):
            raise EOFError
        images.append(np.frombuffer(pixels, np.uint8).reshape(shape))
    return images
