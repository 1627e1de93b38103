"""quire, in the interpreter that compares."""

from __future__ import annotations

import sys
from pathlib import Path

from .base import Peer, Task


class Adapter(Peer):
    distribution = "quire"
    importing = "from quire import LLM"
    note = "defaults, bfloat16"

    def python(self) -> Path:
        return Path(sys.executable)

    def load(self, task: Task) -> None:
        from quire import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(
            str(task.checkpoint),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=task.max_model_len,
            max_num_seqs=task.max_num_seqs,
            kv_cache_memory_bytes=task.kv_bytes,
            num_threads=task.threads,
        )

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        params = self._params(temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False)
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def version(self) -> str:
        import quire

        return quire.__version__
