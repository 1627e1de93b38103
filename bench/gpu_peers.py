#!/usr/bin/env python3
"""Times other people's kernels at the shapes that bench_cuda_kernels was timed at, one JSON object a line.

Reads the shapes from the records of that program and measures torch (scaled_dot_product_attention by flash, cuDNN and
efficient kernels; topk, sort and multinomial; matmul, which is cuBLASLt) and FlashInfer where it is installed, plus two
ceilings: a large matrix product and a copy. Decides how each peer is called at its best: graphs of calls, contiguous
keys and values where it has no pages, inputs in turn from more memory than the cache holds. A peer that fails is a line
of the record and nothing else. Without a GPU it runs on the CPU, as a test of itself.

usage: python bench/gpu_peers.py RECORD.jsonl... [--filter REGEX] [--json FILE] [--seconds S]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Call = Callable[[int], Any]  # of copy 0, 1, ...
Shape = dict[str, Any]
# A peer: the launch, and how many copies of its inputs there are.
Peer = tuple[int, Call]

SAMPLES = 9
SAMPLE_US = 1500.0


class Device:
    """Where tensors live, and the time of a call."""

    def __init__(self) -> None:
        self.is_cuda = torch.cuda.is_available()
        self.name = "cuda" if self.is_cuda else "cpu"
        self.cache_bytes = 0
        capacity = 1 << 24
        if self.is_cuda:
            properties = torch.cuda.get_device_properties(0)
            self.cache_bytes = properties.L2_cache_size
            capacity = int(min(40 << 30, torch.cuda.mem_get_info()[0] * 0.6)) // 2
        # One arena of random values, cut into tensors: filling 34 GB for each case would take longer than the case.
        self.arena = torch.empty(capacity, device=self.name, dtype=torch.bfloat16).uniform_(-1, 1)
        self.used = 0

    def take(self, *shape: int) -> torch.Tensor:
        count = 1
        for extent in shape:
            count *= extent
        if self.used + count > self.arena.numel():
            raise MemoryError("more inputs than the arena holds")
        tensor = self.arena[self.used : self.used + count].view(*shape)
        self.used += (count + 127) // 128 * 128
        return tensor

    def copies(self, num_bytes: float) -> int:
        return max(1, min(320, int(3 * self.cache_bytes / max(num_bytes, 1) + 1)))

    def measure(self, copies: int, call: Call) -> dict[str, Any]:
        if not self.is_cuda:
            return summary([host_us(lambda: call(0)) for _ in range(3)], 1, "host clock")
        torch.cuda.synchronize()  # the inputs were made on another stream
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for i in range(copies):
                call(i)
            stream.synchronize()
            estimate = event_us(lambda: [call(i % copies) for i in range(4)]) / 4
            count = int(max(1, min(256, SAMPLE_US / estimate)))
            count = max(copies, (count + copies - 1) // copies * copies)

            def loop() -> None:
                for i in range(count):
                    call(i % copies)

            method, run = "graph", loop
            try:
                graph = capture(loop)
                run = graph.replay
            except Exception:  # some peers wait for the device inside
                torch.cuda.synchronize()
                method = "loop"
            run()
            return summary([event_us(run) / count for _ in range(SAMPLES)], count, method)


def capture(run: Callable[[], Any]) -> Any:
    """torch.cuda.graph collects garbage and empties the cache first, which takes longer than the measurement."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    try:
        run()
    finally:
        graph.capture_end()
    return graph


def host_us(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e6


def event_us(run: Callable[[], Any]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return max(1e-3, begin.elapsed_time(end) * 1e3)


def summary(samples: list[float], launches: int, method: str) -> dict[str, Any]:
    return {
        "us": statistics.median(samples),
        "us_lowest": min(samples),
        "us_highest": max(samples),
        "launches": launches,
        "samples": len(samples),
        "method": method,
    }


# Attention -----------------------------------------------------------------------------------------------------------


def with_backend(backend: SDPBackend, call: Call) -> Call:
    def run(copy: int) -> Any:
        with sdpa_kernel(backend):
            return call(copy)

    return run


def sdpa(device: Device, shape: Shape, backend: SDPBackend, is_decode: bool) -> Peer:
    """Contiguous keys and values; the efficient kernel gets as many heads as queries have."""
    batch, length, dim = shape["batch"], shape["length"], shape["head_dim"]
    heads, kv_heads = shape["num_heads"], shape["num_kv_heads"]
    if shape.get("mixed"):
        raise NotImplementedError("no ragged batches")
    if is_decode and backend == SDPBackend.EFFICIENT_ATTENTION and heads != kv_heads:
        raise NotImplementedError("would read each key once for each head")
    copies = device.copies(4.0 * batch * length * kv_heads * dim) if is_decode else 1
    queries = 1 if is_decode else length
    q = [device.take(batch, queries, heads, dim).transpose(1, 2) for _ in range(copies)]
    k = [device.take(batch, kv_heads, length, dim) for _ in range(copies)]
    v = [device.take(batch, kv_heads, length, dim) for _ in range(copies)]
    has_groups = backend != SDPBackend.EFFICIENT_ATTENTION
    if not has_groups:
        group = heads // kv_heads
        k = [x[:, :, None].expand(-1, -1, group, -1, -1).reshape(batch, heads, length, dim) for x in k]
        v = [x[:, :, None].expand(-1, -1, group, -1, -1).reshape(batch, heads, length, dim) for x in v]

    def call(copy: int) -> Any:
        return F.scaled_dot_product_attention(
            q[copy], k[copy], v[copy], is_causal=not is_decode, enable_gqa=has_groups and heads != kv_heads
        )

    return copies, with_backend(backend, call)


def lengths_of(shape: Shape) -> list[int]:
    """Of a mixed batch: the same mean and spread as the benchmark's, not the same numbers."""
    if not shape.get("mixed"):
        return [shape["length"]] * shape["batch"]
    batch, length = shape["batch"], shape["length"]
    return [max(1, int(length * (0.25 + 1.5 * (i + 0.5) / batch))) for i in range(batch)]


def flashinfer_attention(device: Device, shape: Shape, is_decode: bool, backend: str = "auto") -> Peer:
    import flashinfer

    page, dim, heads, kv_heads = shape["page"], shape["head_dim"], shape["num_heads"], shape["num_kv_heads"]
    lengths = lengths_of(shape)
    pages = [(length + page - 1) // page for length in lengths]
    num_pages = sum(pages)
    copies = device.copies(4.0 * sum(lengths) * kv_heads * dim) if is_decode else 1
    tokens = len(lengths) if is_decode else sum(lengths)
    q = [device.take(tokens, heads, dim) for _ in range(copies)]
    kv = [device.take(num_pages, 2, kv_heads, page, dim) for _ in range(copies)]  # layout HND
    ints: dict[str, Any] = {"dtype": torch.int32, "device": device.name}
    indptr = torch.tensor([sum(pages[:i]) for i in range(len(pages) + 1)], **ints)
    indices = torch.randperm(num_pages, device=device.name).to(torch.int32)
    last = torch.tensor([(length - 1) % page + 1 for length in lengths], **ints)
    room = torch.empty(256 << 20, dtype=torch.uint8, device=device.name)
    common: dict[str, Any] = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
    if is_decode:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(room, "HND", use_tensor_cores=True)
        wrapper.plan(indptr, indices, last, heads, kv_heads, dim, page, **common)
    else:
        starts = torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], **ints)
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(room, "HND", backend=backend)
        wrapper.plan(starts, indptr, indices, last, heads, kv_heads, dim, page, causal=True, **common)
    return copies, lambda copy: wrapper.run(q[copy], kv[copy])


# Sampling ------------------------------------------------------------------------------------------------------------


def logits_of(device: Device, shape: Shape) -> list[torch.Tensor]:
    rows, vocab = shape["batch"], shape["vocab_size"]
    count = device.copies(4.0 * rows * vocab)
    return [torch.randn(rows, vocab, device=device.name) * shape["deviation"] for _ in range(count)]


def draw(probabilities: torch.Tensor) -> torch.Tensor:
    """multinomial of one sample, as inference engines write it: no wait, no check."""
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)


def torch_sampling(device: Device, shape: Shape) -> Peer:
    logits, wish = logits_of(device, shape), shape["wish"]
    top_k, top_p = shape["top_k"], shape["top_p"]

    def call(copy: int) -> Any:
        x = logits[copy]
        if wish == "greedy":
            return x.argmax(-1)
        if wish == "temperature":
            return draw(x.softmax(-1))
        if wish == "top_k":
            values, ids = x.topk(top_k, dim=-1)
            return ids.gather(-1, draw(values.softmax(-1))[:, None])
        values, ids = x.topk(top_k, dim=-1) if wish == "top_k_top_p" else x.sort(-1, descending=True)
        probabilities = values.softmax(-1)
        is_out = probabilities.cumsum(-1) - probabilities > top_p
        return ids.gather(-1, draw(probabilities.masked_fill(is_out, 0.0))[:, None])

    return len(logits), call


def torch_multinomial(device: Device, shape: Shape) -> Peer:
    if shape["wish"] != "temperature":
        raise NotImplementedError("multinomial filters nothing")
    logits = logits_of(device, shape)
    return len(logits), lambda copy: torch.multinomial(logits[copy].softmax(-1), 1)


def flashinfer_sampling(device: Device, shape: Shape) -> Peer:
    from flashinfer import sampling

    logits, wish = logits_of(device, shape), shape["wish"]
    top_k, top_p = shape["top_k"], shape["top_p"]
    calls: dict[str, Callable[[torch.Tensor], Any]] = {
        "temperature": lambda x: sampling.sampling_from_probs(x.softmax(-1)),
        "top_k": lambda x: sampling.top_k_sampling_from_probs(x.softmax(-1), top_k),
        "top_p": lambda x: sampling.top_p_sampling_from_probs(x.softmax(-1), top_p),
        "top_k_top_p": lambda x: sampling.top_k_top_p_sampling_from_logits(x, top_k, top_p),
    }
    if wish not in calls:
        raise NotImplementedError("no such sampler")
    return len(logits), lambda copy: calls[wish](logits[copy])


# Matrix products and norms -------------------------------------------------------------------------------------------


def torch_matmul(device: Device, shape: Shape, has_epilogue: bool) -> Peer:
    m, n, k = shape["m"], shape["n"], shape["k"]
    if has_epilogue and not (shape["gated"] or shape["residual"]):
        raise NotImplementedError("nothing follows this product")
    copies = device.copies(2.0 * n * k)
    a, weights = device.take(m, k), [device.take(n, k) for _ in range(copies)]
    residual = torch.zeros(m, n, device=device.name)

    def call(copy: int) -> Any:
        y = F.linear(a, weights[copy])
        if not has_epilogue:
            return y
        if shape["gated"]:
            return F.silu(y[:, : n // 2]) * y[:, n // 2 :]
        return residual.add_(y)

    return copies, call


def torch_norm(device: Device, shape: Shape) -> Peer:
    rows, dim = shape["rows"], shape["dim"]
    copies = device.copies(4.0 * rows * dim)
    x, weight = [device.take(rows, dim) for _ in range(copies)], device.take(dim)
    return copies, lambda copy: F.rms_norm(x[copy], (dim,), weight, 1e-5)


def peers_of(family: str) -> Iterator[tuple[str, Callable[[Device, Shape], Peer]]]:
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    if family in ("decode", "prefill"):
        is_decode = family == "decode"
        for name, backend in backends.items():
            yield f"torch_{name}", lambda d, s, b=backend: sdpa(d, s, b, is_decode)
        yield "flashinfer", lambda d, s: flashinfer_attention(d, s, is_decode)
    if family == "sampling":
        yield "torch", torch_sampling
        yield "torch_multinomial", torch_multinomial
        yield "flashinfer", flashinfer_sampling
    if family == "gemm":
        yield "torch_matmul", lambda d, s: torch_matmul(d, s, False)
        yield "torch_matmul_epilogue", lambda d, s: torch_matmul(d, s, True)
    if family == "norm":
        yield "torch", torch_norm


# Program --------------------------------------------------------------------------------------------------------------


def measure(device: Device, case: str, shape: Shape, name: str, make: Callable[[Device, Shape], Peer]) -> Shape:
    line: dict[str, Any] = {"kind": "peer", "case": case, "peer": name}
    try:
        device.used = 0
        copies, call = make(device, shape)
        return {**line, **device.measure(copies, call), "copies": copies}
    except NotImplementedError as error:
        return {**line, "kind": "peer_skipped", "reason": str(error)}
    except Exception as error:
        if device.is_cuda and isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
        text = f"{type(error).__name__}: {error}".strip().splitlines()
        return {**line, "kind": "peer_failed", "reason": text[0][:300] if text else "?"}


def ceilings(device: Device) -> Iterator[Shape]:
    size = 8192 if device.is_cuda else 64
    a = torch.randn(size, size, device=device.name, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device.name, dtype=torch.bfloat16)
    timing = device.measure(1, lambda _: a @ b)
    yield {"kind": "ceiling", "name": "torch_matmul", "tflop_s": 2 * size**3 / timing["us"] * 1e-6, **timing}
    half = min(device.arena.numel() // 2, 1 << 30)
    x, y = device.arena[:half], device.arena[half : 2 * half]
    timing = device.measure(1, lambda _: y.copy_(x))
    yield {"kind": "ceiling", "name": "torch_copy", "gb_s": 4 * half / timing["us"] * 1e-3, **timing}


def about(device: Device) -> Shape:
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("flashinfer", "triton"):
        try:
            versions[name] = __import__(name).__version__
        except Exception:
            versions[name] = None
    name = torch.cuda.get_device_name(0) if device.is_cuda else "cpu"
    return {"kind": "peers", "device": name, "versions": versions}


def cases_in(paths: list[Path], pattern: str) -> list[Shape]:
    """Each shape once: several kernels of ours may share one."""
    found: dict[str, Shape] = {}
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the last line of a program that was killed
            if line.get("kind") == "case" and re.search(pattern, line["case"]):
                shape = {key: value for key, value in line["shape"].items() if key not in ("kernel", "page")}
                found.setdefault(line["case"].split("/")[0] + json.dumps(shape, sort_keys=True), line)
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*", type=Path)
    parser.add_argument("--filter", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=1e9)
    arguments = parser.parse_args()
    begin = time.monotonic()
    cases = cases_in(arguments.records, arguments.filter)
    out = arguments.json.open("w", encoding="utf-8") if arguments.json else sys.stdout

    def write(line: Shape) -> None:
        print(json.dumps(line), file=out, flush=True)

    device = Device()
    write(about(device))
    for line in ceilings(device):
        write(line)
    jobs = [(case, *peer) for case in cases for peer in peers_of(case["case"].split("/")[0])]
    jobs.sort(key=lambda job: job[1] == "flashinfer")  # last, because it compiles for minutes
    with torch.inference_mode():
        for case, name, make in jobs:
            if time.monotonic() - begin > arguments.seconds:
                write({"kind": "peer_skipped", "case": case["case"], "peer": name, "reason": "out of time"})
            else:
                write(measure(device, case["case"], case["shape"], name, make))


if __name__ == "__main__":
    main()
