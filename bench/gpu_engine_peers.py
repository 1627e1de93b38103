#!/usr/bin/env python3
"""Times other engines at the workloads of bench/gpu_engine.py, one JSON object a line, each in a process of its own.

transformers (`generate` with a static cache, bf16, random weights made on the device; a batch is padded to its longest
prompt and runs to its longest output), the same with its compiled decode step, and vLLM and nano-vllm where they are
installed. A peer that is not there or fails is a line of the record and nothing else. Decides how each is called at its
best; what is asked and how it is timed is gpu_workloads.py, as for quire. On a CPU: toys, as a test of itself.

usage: python bench/gpu_engine_peers.py [RECORD.jsonl...] [--device cuda|cpu] [--json FILE] [--seconds S] [--filter RE]
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gpu_models as models
import gpu_workloads as workloads
from gpu_jobs import Context, Job, main
from gpu_workloads import Line

Make = Callable[[Context, str], workloads.Engine]


class Transformers:
    def __init__(self, context: Context, model: str, is_compiled: bool = False) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self.device = "cuda" if context.device == "cuda" else "cpu"
        self.is_compiled = is_compiled
        self.cache: Any = None
        self.cache_shape = (0, 0)
        values = {
            key: value for key, value in models.MODELS[model].items() if key not in ("architectures", "torch_dtype")
        }
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        torch.manual_seed(0)
        if context.is_toy:
            torch.set_num_threads(1)  # more would only wait for each other
        with torch.device(self.device):
            self.lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        self.lm.to(self.device)
        self.lm.generation_config.eos_token_id = None  # every request runs to its full length

    def generate(self, prompts: list[list[int]], new_tokens: Sequence[int], temperature: float) -> int:
        import torch

        longest, new = max(map(len, prompts)), max(new_tokens)
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        draw: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {}
        with torch.inference_mode():
            out = self.lm.generate(
                ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
                past_key_values=self.cache_for(len(prompts), longest + new), disable_compile=not self.is_compiled,
                **({"do_sample": False} | draw),
            )  # fmt: skip
        if out.shape[1] != longest + new:
            raise RuntimeError(f"{out.shape[1] - longest} tokens came out instead of {new}")
        if self.device == "cuda":
            torch.cuda.synchronize()
        return sum(new_tokens)  # what was asked for; the rest of the batch's steps is the price of a static batch

    def cache_for(self, batch: int, length: int) -> Any:
        """One cache for calls of one batch, so that its shape, and what was compiled for it, stays."""
        from transformers import StaticCache

        if self.cache_shape[0] != batch or self.cache_shape[1] < length:
            self.cache = None  # first, so that both are never there at once
            self.cache_shape = (batch, (length + 255) // 256 * 256)
            self.cache = StaticCache(config=self.lm.config, max_cache_len=self.cache_shape[1])
        self.cache.reset()
        return self.cache

    def counters(self) -> dict[str, float]:
        return {}


class VllmLike:
    """vLLM and what copies its interface."""

    def __init__(self, context: Context, model: str, module: str, **arguments: Any) -> None:
        self.module = importlib.import_module(module)
        if arguments.get("load_format") == "dummy":
            models.write_config(model, context.folder / model)
        else:
            models.write_checkpoint(model, context.folder / model)
            write_tokenizer(context, model)
        self.llm = self.module.LLM(str(context.folder / model), **arguments, **context.extra)
        self.is_nano = module == "nanovllm"

    def generate(self, prompts: list[list[int]], new_tokens: Sequence[int], temperature: float) -> int:
        # nano-vllm draws every token, and knows no more arguments than these.
        more = {} if self.is_nano else {"detokenize": False}
        params = [
            self.module.SamplingParams(
                temperature=max(temperature, 0.01) if self.is_nano else temperature,
                max_tokens=new,
                ignore_eos=True,
                **more,
            )
            for new in new_tokens
        ]
        asked: list[Any] = prompts if self.is_nano else [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self.llm.generate(asked, params, use_tqdm=False)
        if self.is_nano:
            return sum(len(output["token_ids"]) for output in outputs)
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)

    def counters(self) -> dict[str, float]:
        return {}


def write_tokenizer(context: Context, model: str) -> None:
    """One word, for an engine that cannot do without a tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers import models as tokenizer_models

    folder = context.folder / model
    Tokenizer(tokenizer_models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")


def vllm(context: Context, model: str) -> VllmLike:
    arguments = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "max_model_len": 4096,
        "seed": 0,
    }
    return VllmLike(context, model, "vllm", **arguments, max_num_seqs=256)


def nanovllm(context: Context, model: str) -> VllmLike:
    return VllmLike(context, model, "nanovllm", enforce_eager=False, max_model_len=4096)


PEERS: dict[str, tuple[str, Make]] = {  # the module it needs, how it is made
    "transformers": ("transformers", Transformers),
    "vllm": ("vllm", vllm),
    "nanovllm": ("nanovllm", nanovllm),
    "transformers_compiled": ("transformers", lambda c, m: Transformers(c, m, is_compiled=True)),
}


def run(context: Context, make: Make, workload: workloads.Decode | workloads.Throughput) -> Iterator[Line]:
    begin = time.perf_counter()
    engine = make(context, workload.model)
    yield {"kind": "engine_peer_load", "case": f"load/{workload.model}", "seconds": time.perf_counter() - begin}
    for line in workload.lines(engine, context.ceilings, context.clock):
        yield {**line, "kind": "engine_peer" if line["kind"] == "engine" else line["kind"]}


def jobs_of(scale: str) -> list[Job]:
    jobs, is_toy = [], scale != "full"
    for peer, (module, make) in PEERS.items():
        has_batching = peer in ("vllm", "nanovllm")  # the others get what a static batch can do in the time
        batches = workloads.LADDER if has_batching else (1,) if is_toy else (1, 16, 64)
        one, eight, tiny, big = (
            ("toy", "toy", "toy-qwen3", "toy-qwen3") if is_toy else ("llama-1b", "llama-8b", "qwen3-0.6b", "qwen3-8b")
        )
        asked: dict[str, workloads.Decode | workloads.Throughput] = {
            f"decode/{one}": workloads.decode(one, scale, batches),
            f"decode/{eight}": workloads.decode(eight, scale, batches),
            f"throughput/{tiny}": workloads.throughput_nano(tiny, scale, small_alone=not has_batching),
            f"throughput-8b/{big}": workloads.throughput_8b(big, scale, small_alone=not has_batching),
        }
        if peer == "transformers_compiled":
            asked = {f"decode/{one}": workloads.decode(one, scale, (1,))}
        if peer == "nanovllm":  # it runs Qwen3 alone
            asked = {name: workload for name, workload in asked.items() if "qwen3" in name}
        if is_toy and peer == "transformers_compiled":
            continue
        missing = "" if importlib.util.find_spec(module) else "not installed"
        for name, workload in asked.items():
            run_this = functools.partial(run, make=make, workload=workload)
            jobs.append(Job(f"{peer}/{name}", 1.0, run_this, (("peer", peer),), missing))
    return jobs


if __name__ == "__main__":
    main(__doc__, jobs_of)
