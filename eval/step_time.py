"""Step time of two versions of this code, measured in turns: the median ratio and its range.

Runs on its own and uses `mmdiff.eval.speed` alone, so that the other version may be an older one:

    git worktree add ../old COMMIT
    python eval/step_time.py ../old --rounds 7

Each version runs in a process of its own, from its own folder, with one model of random weights;
one waits while the other is measured. A ratio above 1 means that this version is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

CASES = [(batch, cache) for batch in (1, 8, 16) for cache in ("none", "prefix", "dual")]


def serve(size: str, prompt_length: int, steps: int) -> None:
    """For each line with a batch size and a cache: the median milliseconds of a step."""
    import torch

    from mmdiff.config import DecodingConfig
    from mmdiff.eval.speed import SIZES, Load, measure, random_model

    model = random_model(SIZES[size], torch.device("cpu"), torch.float32)
    machine = {"bytes_per_second": 1.0, "operations_per_second": 1.0}  # of no interest here
    for line in sys.stdin:
        batch, cache = json.loads(line)
        decoding = DecodingConfig(steps, max(1, steps // 2), steps, cache=cache, stop=False)
        made = measure(model, Load(prompt_length, batch, decoding), 1, machine)
        print(json.dumps(made["ms_of_a_step"]), flush=True)


def started(folder: Path, given: argparse.Namespace) -> subprocess.Popen[str]:
    sizes = [given.size, "--prompt", str(given.prompt), "--steps", str(given.steps)]
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), "--serve", "--size", *sizes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder.resolve())},
    )


def ask(process: subprocess.Popen[str], case: tuple[int, str]) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(case) + "\n")
    process.stdin.flush()
    return float(json.loads(process.stdout.readline()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the folder of the other version")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", default="small")
    parser.add_argument("--prompt", type=int, default=256, help="positions of the prompt")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.size, given.prompt, given.steps)
        return 0
    this, other = started(Path(__file__).parents[1], given), started(given.other, given)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        pairs = [(ask(this, case), ask(other, case)) for _ in range(given.rounds)]
        ratios = [mine / its for mine, its in pairs]
        rows.append(
            {
                "batch": case[0],
                "cache": case[1],
                "ratio": round(statistics.median(ratios), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
                "ms": [round(statistics.median(times), 2) for times in zip(*pairs, strict=True)],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    for process in (this, other):
        process.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
