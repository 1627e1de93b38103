"""Ctrl-C: returns within a second, frees the requests of the call, and the engine works on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Prints "ready", then runs until it is interrupted; afterwards it proves that the engine is empty and right.
SCRIPT = """
import json, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
from quire import LLM, SamplingParams
mode, model = sys.argv[1:]
llm = LLM(model, max_num_seqs=16)
short = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ids = lambda: llm.generate([[5, 6, 7], [8, 9]], short, use_tqdm=False)
expected = [o.outputs[0].token_ids for o in ids()]
endless = SamplingParams(temperature=0, max_tokens=240, ignore_eos=True)
prompts = [[2 + i % 400, 3 + i % 7] for i in range(20000)]
calls = {
    "generate": lambda: llm.generate(prompts, endless, use_tqdm=False),
    "iter": lambda: [None for _ in llm.generate_iter(prompts, endless)],
    "stream": lambda: [None for p in prompts for _ in llm.stream(p, endless)],
}
try:
    print("ready", flush=True)
    calls[mode]()
    print("not interrupted")
except KeyboardInterrupt:
    stats = llm.stats()
    again = [o.outputs[0].token_ids for o in ids()]
    print(json.dumps({"running": stats["num_running"], "waiting": stats["num_waiting"], "same": again == expected}))
"""


@pytest.mark.parametrize("mode", ["generate", "iter", "stream"])
@pytest.mark.parametrize("after_ms", [0, 30, 60, 90, 200, 500])  # while tokenizing, queueing, running
def test_sigint(tiny_model: Path, mode: str, after_ms: int) -> None:
    command = [sys.executable, "-c", SCRIPT, mode, str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        time.sleep(after_ms / 1000)
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=20)  # a hang shows here; how quick it is depends on the machine
        finally:
            process.kill()
    assert process.returncode == 0, (process.returncode, out, err)
    assert json.loads(out) == {"running": 0, "waiting": 0, "same": True}
