"""OpenVINO GenAI: its continuous batching pipeline, prefix caching on.

A second environment exports the checkpoint, since optimum wants torch. Weights are stored as float16, computed with in
bfloat16, and keys and values are kept in 8 bits: its defaults. Requests that come together do not share a prefix, so
where a prefix is shared the first request runs alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .base import Environment, Peer, Task


class Adapter(Peer):
    distribution = "openvino-genai"
    importing = "import openvino_genai"
    note = (
        "ContinuousBatchingPipeline, prefix caching, 8-bit keys and values (the default); in d one request goes first"
    )
    environments = (
        Environment("openvino", (("openvino-genai==2026.4.1.0", "openvino==2026.4.1", "numpy"),)),
        Environment(
            "openvino-export",
            (("torch==2.13.0", "optimum-intel[openvino]==2.2.0"),),
            ("torchvision", "torchaudio", "torchcodec"),
        ),
    )
    converts = True

    def convert(self, checkpoint: Path, out: Path) -> None:
        command = [self.folder / "openvino-export/bin/optimum-cli", "export", "openvino", "-m", checkpoint]
        command += ["--task", "text-generation-with-past", "--weight-format", "fp16", out]
        subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)

    def load(self, task: Task) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._shared_len = task.shared_len
        self._config = openvino_genai.GenerationConfig
        self._tensor = lambda ids: openvino.Tensor(numpy.array([ids], numpy.int64))
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = -(-task.kv_bytes // 2**30)  # GiB
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = task.max_num_seqs
        scheduler.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(task.converted), scheduler, "CPU", {"INFERENCE_NUM_THREADS": task.threads}
        )

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        if self._shared_len and len(prompts) > 1:
            return self._together(prompts[:1], num_new) + self._together(prompts[1:], num_new)
        return self._together(prompts, num_new)

    def _together(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        config = self._config()
        config.max_new_tokens = config.min_new_tokens = num_new
        config.ignore_eos, config.do_sample = True, False
        results = self._pipeline.generate([self._tensor(ids) for ids in prompts], [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]
