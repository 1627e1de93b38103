"""examples/rl_loop.py: the sampler follows the trainer, and the policy learns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "rl_loop.py"
LINE = re.compile(r"step +(\d+)  reward ([\d.]+)  difference ([\d.e+-]+)  weights (\d+)")


def test_sampler_and_trainer_agree_and_the_reward_rises() -> None:
    ran = subprocess.run([sys.executable, str(EXAMPLE), "--steps", "12"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    steps = [LINE.fullmatch(line) for line in ran.stdout.splitlines()]
    assert len(steps) == 12 and all(steps)
    values = [match.groups() for match in steps if match]
    assert [int(step) for step, _, _, _ in values] == list(range(12))
    assert [int(version) for _, _, _, version in values] == list(range(1, 13))
    assert all(float(difference) <= 1e-4 for _, _, difference, _ in values)
    rewards = [float(reward) for _, reward, _, _ in values]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
