"""`llm.llm_engine`: the configuration of a running engine under the names that vLLM's users read.

Read-only values copied once; it holds no reference to the LLM and, as the workers of `model_executor`, a weak one to
the engine, so it keeps neither alive.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from quire.collective import Executor
from quire.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelConfigView:
    model: str
    tokenizer: str
    dtype: str
    quantization: str | None
    max_model_len: int
    architecture: str
    runner_type: str
    task: str
    hf_config: SimpleNamespace
    seed: int

    def get_vocab_size(self) -> int:
        return int(self.hf_config.vocab_size)


@dataclass(frozen=True)
class CacheConfigView:
    block_size: int
    num_gpu_blocks: int
    enable_prefix_caching: bool
    gpu_memory_utilization: float
    cache_dtype: str


@dataclass(frozen=True)
class SchedulerConfigView:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    policy: str


@dataclass(frozen=True)
class ParallelConfigView:
    tensor_parallel_size: int
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1

    @property
    def world_size(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size


class EngineView:
    def __init__(
        self,
        model: ModelConfigView,
        cache: CacheConfigView,
        scheduler: SchedulerConfigView,
        parallel: ParallelConfigView,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.model_config = model
        self.cache_config = cache
        self.scheduler_config = scheduler
        self.parallel_config = parallel
        self.vllm_config = SimpleNamespace(
            model_config=model, cache_config=cache, scheduler_config=scheduler, parallel_config=parallel
        )
        self._tokenizer = tokenizer
        self._engine: weakref.ref[Any] | None = None
        self.model_executor: Executor  # set when the engine is there

    def watch(self, engine: Any) -> None:
        """The engine whose state is asked for; it may go at any time."""
        self._engine = weakref.ref(engine)

    def is_sleeping(self) -> bool:
        engine = None if self._engine is None else self._engine()
        return engine is not None and bool(engine.is_sleeping())

    def collective_rpc(self, *args: Any, **kwargs: Any) -> list[Any]:
        """LLM.collective_rpc."""
        return self.model_executor.collective_rpc(*args, **kwargs)

    def apply_model(self, func: Any) -> list[Any]:
        """LLM.apply_model."""
        return self.model_executor.apply_model(func)

    def get_model_config(self) -> ModelConfigView:
        return self.model_config

    def get_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise ValueError("Unable to get tokenizer because skip_tokenizer_init is True")
        return self._tokenizer.hf_tokenizer()


def engine_view(
    model: str,
    values: dict[str, Any],
    options: dict[str, Any],
    info: dict[str, Any],
    config: dict[str, Any],
    tokenizer: Tokenizer | None,
    task: str = "generate",
) -> EngineView:
    """From the constructor's values, what the core reports, and config.json."""
    hf_config = SimpleNamespace(**{"vocab_size": info["vocab_size"], **config})
    return EngineView(
        ModelConfigView(
            model=model,
            tokenizer=str(values["tokenizer"] or model),
            dtype=info["dtype"],
            quantization=info["quantization"],
            max_model_len=info["max_model_len"],
            architecture=info["architecture"],
            runner_type="generate" if task == "generate" else "pooling",
            task=task,
            hf_config=hf_config,
            seed=options["seed"],
        ),
        CacheConfigView(
            block_size=info["block_size"],
            num_gpu_blocks=info["num_blocks"],
            enable_prefix_caching=values["enable_prefix_caching"] is not False,
            gpu_memory_utilization=values["gpu_memory_utilization"],
            cache_dtype="auto",
        ),
        SchedulerConfigView(info["max_num_seqs"], info["max_num_batched_tokens"], info["max_model_len"], "fcfs"),
        ParallelConfigView(info["tensor_parallel_size"]),
        tokenizer,
    )
