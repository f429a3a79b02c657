"""Is the page fast on a long run? `python -m benchmarks.studio --lines 100000 --pictures 5000`.

Makes a run directory with that many lines of metrics, each as a run of three experts writes it, and
that many pictures in evaluations of 250. Starts `bicot studio` on it in a process of its own, and sends
the requests of a browser. It checks that the first view (list, curves, state, newest samples) takes at
most a second, that resident memory stays below 200 MB, and that, once all is read, a request on a run
that does not grow reads none of its metrics again. Exit status 1 if a check fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from PIL import Image
from rich.console import Console

FIRST_S, MEMORY_MB = 1.0, 200.0
EACH = 250  # pictures of an evaluation
PARTS = ("kl", "entropy", "ratio", "logp", "sampler_gap", "sampler_gap_max", "clip_fraction")
EXPERTS = ("objects", "count", "relation")
_WAIT_S = 600.0


def metrics(step: int) -> dict[str, float]:
    """About as many numbers as a run writes for a step."""
    names = ["reward/mean", "reward/std", "cot/tokens", "loss", "loss/cot", "loss/image", "lr"]
    names += ["guidance_gap", "grad_norm", "groups/dropped", "groups/filtered", "step/skipped"]
    names += [f"{name}/{part}" for name in PARTS for part in ("cot", "image")]
    names += [f"time/{part}" for part in ("step", "generate", "score", "learn", "publish", "wait")]
    parts = ("retries", "failures", "left_out", "constant", "latency_s", "applied", "std", "min", "max")
    names += [f"expert/{name}/{what}" for name in EXPERTS for what in parts]
    names += [f"reward/{name}" for name in EXPERTS]
    return {name: (step * 7919 + n) % 1000 / 1000 for n, name in enumerate(names)}


def make_run(folder: Path, lines: int, pictures: int) -> None:
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"train: {{steps: {lines}}}\n")
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, lines + 1):
            file.write(json.dumps({"step": step, "time": float(step), **metrics(step)}) + "\n")
    for number in range(-(-pictures // EACH)):
        samples = folder / "samples" / f"eval_{number * lines * EACH // pictures:06d}"
        samples.mkdir()
        rows = []
        for n in range(min(EACH, pictures - number * EACH)):
            Image.new("RGB", (24, 24), (n % 255, 0, 0)).save(samples / f"{n:04d}.png")
            scores = dict.fromkeys(EXPERTS, n / EACH)
            prompt = {"id": str(n), "prompt": f"prompt {n}", "task_type": "color"}
            row = {"image": f"{n:04d}.png", "prompt": prompt, "cot": "a plan " * 10, "reward": n / EACH}
            rows.append({**row, "scores": scores, "explanation": {}, "index": 0, "seed": 0})
        (samples / "evaluation.json").write_text(json.dumps({"scored": rows}))


def first_view(http: httpx.Client) -> float:
    """Seconds until a browser has everything of the first view, pictures included."""
    began = time.perf_counter()
    http.get("/").raise_for_status()
    http.get("/api/runs").raise_for_status()
    http.get("/api/runs/long/curves").raise_for_status()
    about = http.get("/api/runs/long/about").raise_for_status().json()
    found = http.get(f"/api/runs/long/samples/{about['samples'][0]}").raise_for_status().json()
    for row in found["rows"]:
        http.get(f"/api/picture/{found['folder']}/{row['image']}").raise_for_status()
    return time.perf_counter() - began


def measure(url: str, server: psutil.Process, console: Console) -> bool:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        first_s = first_view(http)
        console.print(f"first view: {first_s:.2f} s")
        began, behind, slowest, known = time.perf_counter(), True, 0.0, ""
        while behind and time.perf_counter() - began < _WAIT_S:
            asked = time.perf_counter()
            found = http.get("/api/runs/long/curves").raise_for_status().json()
            slowest = max(slowest, time.perf_counter() - asked)
            behind, known = found["behind"], found["version"]
        console.print(
            f"read whole after {time.perf_counter() - began:.1f} s; slowest look {slowest:.2f} s"
        )
        http.get("/api/runs/long/curves", params={"every": True}).raise_for_status()
        before, looks = server.io_counters().read_chars, 20
        began = time.perf_counter()
        for _ in range(looks):
            reply = http.get("/api/runs/long/curves", params={"known": known})
            assert reply.status_code == 204, reply.status_code
        look_s = (time.perf_counter() - began) / looks
        read = (server.io_counters().read_chars - before) / looks
        console.print(f"a look at what did not grow: {look_s * 1000:.1f} ms, {read / 1000:.1f} kB read")
        status = Path(f"/proc/{server.pid}/status").read_text()
        most = next(int(line.split()[1]) / 1000 for line in status.splitlines() if "VmHWM" in line)
        console.print(f"most memory: {most:.0f} MB; load average {os.getloadavg()[0]:.1f}")
    return not behind and first_s < FIRST_S and most < MEMORY_MB and read < 64_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=5_000)
    wanted = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as root:
        make_run(Path(root) / "long", wanted.lines, wanted.pictures)
        size = (Path(root) / "long" / "metrics.jsonl").stat().st_size
        console.print(f"{wanted.lines} lines ({size / 1e6:.0f} MB), {wanted.pictures} pictures")
        command = [sys.executable, "-m", "studio", "studio", root, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                url = server.stdout.readline().split()[4].rstrip(";")
                good = measure(url, psutil.Process(server.pid), console)
            finally:
                server.terminate()
    sys.exit(not good)


if __name__ == "__main__":
    main()
