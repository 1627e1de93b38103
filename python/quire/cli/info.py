"""`quire info MODEL`: what a model is and what memory it would take, without loading it.

Decides the layout; the numbers are the core's own plan.
"""

from __future__ import annotations

import json
from typing import Any

from quire.cli import options

_ACTIVATIONS = {"none": "as it is", "normalize": "length 1", "softmax": "softmax", "sigmoid": "sigmoid"}


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
    rows = _model_rows(plan) + (_generation_rows(plan) if plan["task"] == "generate" else _pooling_rows(plan))
    total = sum(plan[name] for name in ("weight_bytes", "workspace_bytes", "kv_cache_bytes"))
    rows.append(("all together", in_bytes(total)))
    rows += [
        (
            f"rank {rank}",
            f"weights {in_bytes(of['weight_bytes'])}, workspace {in_bytes(of['workspace_bytes'])}, "
            f"KV cache {in_bytes(of['kv_cache_bytes'])}",
        )
        for rank, of in enumerate(plan["ranks"])
    ]
    if plan["offloaded_weight_bytes"] > 0:
        rows.append(("weights in CPU memory", in_bytes(plan["offloaded_weight_bytes"])))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _model_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("architecture", plan["architecture"]),
        ("task", plan["task"]),
        ("parameters", f"{plan['num_parameters']:,}"),
        ("layers, hidden size", f"{plan['num_layers']}, {plan['hidden_size']}"),
        ("vocabulary", f"{plan['vocab_size']:,}"),
        ("dtype on device", f"{plan['dtype']} on {plan['device']} ({plan['kernels']} kernels)"),
        ("quantization", plan["quantization"] or "none"),
        ("longest sequence", f"{plan['max_model_len']:,} tokens"),
        ("weights", in_bytes(plan["weight_bytes"])),
    ]


def _generation_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("workspace", in_bytes(plan["workspace_bytes"])),
        ("KV cache", f"{in_bytes(plan['kv_cache_bytes'])}, {in_bytes(plan['kv_bytes_per_token'])} a token"),
        ("KV blocks", f"{plan['num_blocks']:,} of {plan['block_size']} tokens"),
        ("sequences at once", f"{plan['max_num_seqs']}"),
        ("tokens a step", f"{plan['max_num_batched_tokens']:,}"),
    ]


def _pooling_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    types = plan["num_token_types"]
    return [
        ("pooling", f"{plan['pooling_type']}, then {_ACTIVATIONS[plan['pooling_activation']]}"),
        ("size of an answer", f"{plan['num_outputs']:,}"),
        *([("token types", f"{types}")] if types else []),
        ("workspace", f"{in_bytes(plan['workspace_bytes'])}, of it scratch of a step {in_bytes(plan['step_bytes'])}"),
        ("texts a step", f"at most {plan['max_num_seqs']}"),
        ("tokens a step", f"{max(plan['max_num_batched_tokens'], plan['max_model_len']):,}"),
    ]


def plan_of(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The core's plan for a model with these arguments of LLM."""
    from quire import (
        _quire,
        engine_args,
        gpu_libraries,
        model_source,
        pooler_config,
        reranking,
        speculative,
        tasks,
    )

    values = engine_args.resolve({"model": model, **arguments})
    path = model_source.resolve_model(model, values["revision"], values["download_dir"], values["hf_token"])
    config = model_source.read_config(path)
    overrides = model_source.config_overrides(path, values["hf_overrides"], values["trust_remote_code"])
    config = {**config, **overrides}
    task = tasks.resolve_task(values, config, path)
    tasks.check_options(values, task)
    if task != "generate" and config.get("classifier_from_token") is not None:
        labels = reranking.label_ids(config, model_source.tokenizer_of(values, path))
        config, overrides = {**config, **labels}, {**overrides, **labels}
    pooler = pooler_config.core_options(pooler_config.pooler_config_of(values), task, config)
    engine_options = engine_args.engine_options(values, model_source.to_json(overrides))
    draft = values["speculative_config"]
    engine_options.update(speculative.engine_options(draft, values["download_dir"], values["hf_token"]))
    gpu_libraries.tell_folders(engine_options["device"])
    if task == "generate":
        return {"task": task, **_quire.plan_model(str(path), engine_options)}
    return {"task": task, **_quire.plan_pooling_model(str(path), engine_options, pooler)}


def in_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
