"""`quire info MODEL`: what a model is and what memory it would take, without loading it.

Decides the layout; the numbers are the core's own plan.
"""

from __future__ import annotations

import json
from typing import Any

from quire.cli import options


def info(
    model: options.Model,
    as_json: options.AsJson = False,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Parameters and memory plan of a model, without loading it."""
    plan = plan_of(model, options.llm_arguments(dtype, max_model_len, num_threads, assignments))
    if as_json:
        print(json.dumps(plan, indent=2))
        return
    rows = [
        ("architecture", plan["architecture"]),
        ("parameters", f"{plan['num_parameters']:,}"),
        ("layers, hidden size", f"{plan['num_layers']}, {plan['hidden_size']}"),
        ("vocabulary", f"{plan['vocab_size']:,}"),
        ("dtype on device", f"{plan['dtype']} on {plan['device']} ({plan['kernels']} kernels)"),
        ("longest sequence", f"{plan['max_model_len']:,} tokens"),
        ("weights", in_bytes(plan["weight_bytes"])),
        ("workspace", in_bytes(plan["workspace_bytes"])),
        ("KV cache", f"{in_bytes(plan['kv_cache_bytes'])}, {in_bytes(plan['kv_bytes_per_token'])} a token"),
        ("KV blocks", f"{plan['num_blocks']:,} of {plan['block_size']} tokens"),
        ("sequences at once", f"{plan['max_num_seqs']}"),
        ("tokens a step", f"{plan['max_num_batched_tokens']:,}"),
        ("all together", in_bytes(sum(plan[name] for name in ("weight_bytes", "workspace_bytes", "kv_cache_bytes")))),
    ]
    if plan["offloaded_weight_bytes"] > 0:
        rows.append(("weights in CPU memory", in_bytes(plan["offloaded_weight_bytes"])))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def plan_of(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The core's plan for a model with these arguments of LLM."""
    from quire import _quire, engine_args, gpu_libraries, model_source, tasks

    values = engine_args.resolve({"model": model, **arguments})
    path = model_source.resolve_model(model, values["revision"], values["download_dir"], values["hf_token"])
    config = model_source.read_config(path)
    overrides = model_source.config_overrides(path, values["hf_overrides"], values["trust_remote_code"])
    task = tasks.resolve_task(values, {**config, **overrides}, path)
    if task != "generate":
        raise NotImplementedError(
            f"quire info plans the memory of models that generate; {model} is for the task {task!r}. "
            "LLM(...).info() says what it takes once it is loaded."
        )
    engine_options = engine_args.engine_options(values, model_source.to_json(overrides))
    gpu_libraries.tell_folders(engine_options["device"])
    return _quire.plan_model(str(path), engine_options)


def in_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
