"""What is asked of an engine that is timed, and how its time is taken: the same code for quire and for its peers.

An engine is anything with `generate(prompts, new_tokens, temperature)`. Decides prompts, lengths, repeats and which
size still fits the time that is left. A workload yields lines of the record as it gets them, so that a killed process
loses only what it was doing. Knows no engine by name, no device and no report.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpu_models import MODELS, Work, work_of

Line = dict[str, Any]
Lengths = list[tuple[int, int]]  # prompt and new tokens of each request


class Engine(Protocol):
    def generate(self, prompts: list[list[int]], new_tokens: Sequence[int], temperature: float) -> int:
        """Completes prompts to exactly these lengths; returns how many tokens came out."""
        ...

    def counters(self) -> dict[str, float]:
        """Numbers that grow while it works; empty where there are none."""
        ...


@dataclass(frozen=True)
class Ceilings:
    """Of this run; 0: not measured."""

    gb_s: float = 0.0
    tflop_s: float = 0.0

    def floor(self, seconds: Callable[[float, float], float]) -> float | None:
        return seconds(self.gb_s, self.tflop_s) if self.gb_s > 0 else None


@dataclass
class Clock:
    """How long a workload may go on."""

    seconds: float
    begin: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begin)


def tokens_of(model: str, seed: str, length: int) -> list[int]:
    draw = random.Random(seed)
    limit = min(10000, MODELS[model]["vocab_size"])
    return [draw.randrange(3, limit) for _ in range(length)]


def timed(engine: Engine, prompts: list[list[int]], new_tokens: Sequence[int], temperature: float) -> float:
    begin = time.perf_counter()
    count = engine.generate(prompts, new_tokens, temperature)
    seconds = time.perf_counter() - begin
    if count != sum(new_tokens):
        raise RuntimeError(f"{count} tokens came out of {sum(new_tokens)} that were asked for")
    return seconds


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


# Decode latency ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decode:
    """Milliseconds a step of `batch` sequences around `context` tokens: the difference of a long and a short run over
    that of their steps, so that prefill, tokenization and the way in and out of the call cancel."""

    model: str
    context: int
    batches: tuple[int, ...]
    short: int = 8
    long: int = 72
    repeats: int = 3

    def case(self, batch: int) -> str:
        return f"decode/{self.model}/b{batch}"

    def lines(self, engine: Engine, ceilings: Ceilings, clock: Clock) -> Iterator[Line]:
        work = work_of(self.model)
        length = max(1, self.context - (self.short + self.long) // 2)
        prompts = [tokens_of(self.model, f"decode/{i}", length) for i in range(max(self.batches))]
        engine.generate(prompts[:2], [4] * min(2, len(prompts)), 0.0)
        slowest = 0.0
        for batch in self.batches:
            line = {"case": self.case(batch), "workload": "decode", "model": self.model}
            if clock.left() < 2 * slowest:
                yield {"kind": "engine_skipped", **line, "reason": "out of time"}
                continue
            begin = time.monotonic()
            yield {"kind": "engine", **line, **self.measure(engine, prompts[:batch], ceilings, work)}
            slowest = time.monotonic() - begin

    def measure(self, engine: Engine, prompts: list[list[int]], ceilings: Ceilings, work: Work) -> Line:
        batch = len(prompts)
        engine.generate(prompts, [1] * batch, 0.0)  # where there is a prefix cache, it holds them from here on
        short, long, steps = [], [], self.long - self.short
        before: dict[str, float] = {}
        for _ in range(self.repeats):
            short.append(timed(engine, prompts, [self.short] * batch, 0.0))
            before = engine.counters()
            long.append(timed(engine, prompts, [self.long] * batch, 0.0))
        ms, method = (statistics.median(long) - statistics.median(short)) / steps * 1e3, "difference"
        if ms <= 0:  # of toys on a busy machine: the noise is longer than the steps
            ms, method = min(long) / self.long * 1e3, "whole call"
        floor = ceilings.floor(lambda gb_s, tflop_s: work.decode_seconds(batch, self.context, gb_s, tflop_s))
        return {
            "shape": {"batch": batch, "context": self.context, "steps": steps},
            "ms": ms,
            "method": method,
            "ms_lowest": (min(long) - max(short)) / steps * 1e3,
            "ms_highest": (max(long) - min(short)) / steps * 1e3,
            "tok_s": batch / ms * 1e3,
            "floor_ms": None if floor is None else floor * 1e3,
            "bytes": work.weight_bytes + work.kv_bytes * batch * self.context,
            "flops": (work.weight_flops + work.attention_flops * self.context) * batch,
            "counters": grown(before, engine.counters()),
        }


# Throughput ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    name: str
    lengths: Lengths
    required: bool = False  # else the first that fits the time is taken, and the rest are left out


@dataclass(frozen=True)
class Throughput:
    """Output tokens a second of requests that are all there at once, prefill included, as vLLM and nano-vllm count."""

    model: str
    sizes: tuple[Size, ...]
    temperature: float = 1.0

    def lines(self, engine: Engine, ceilings: Ceilings, clock: Clock) -> Iterator[Line]:
        engine.generate([tokens_of(self.model, f"warm/{i}", 16) for i in range(2)], [4, 4], self.temperature)
        slowdown, has_optional = 1.0, False  # against a guess
        for size in self.sizes:
            line = {"case": f"throughput/{self.model}/{size.name}", "workload": "throughput", "model": self.model}
            expected = slowdown * self.guess(size)
            if not size.required and has_optional:
                continue
            if not size.required and clock.left() < 1.2 * expected:
                yield {"kind": "engine_skipped", **line, "reason": f"out of time: would take {expected:.0f} s"}
                continue
            measured = self.measure(engine, size, ceilings)
            slowdown = measured["seconds"] / self.guess(size)
            has_optional = has_optional or not size.required
            yield {"kind": "engine", **line, **measured}

    def guess(self, size: Size) -> float:
        """Whatever the machine, as only ratios of guesses matter: bytes, flops, and what a step costs besides."""
        floor = work_of(self.model).generate_seconds(size.lengths, 3000.0, 500.0)
        return floor + 2e-3 * max(new for _, new in size.lengths)

    def measure(self, engine: Engine, size: Size, ceilings: Ceilings) -> Line:
        prompts = [
            tokens_of(self.model, f"{size.name}/{i}", prompt_length)  # other prompts in each size: no cache helps
            for i, (prompt_length, _) in enumerate(size.lengths)
        ]
        new_tokens = [new for _, new in size.lengths]
        before = engine.counters()
        seconds = timed(engine, prompts, new_tokens, self.temperature)
        work = work_of(self.model)
        floor = ceilings.floor(lambda gb_s, tflop_s: work.generate_seconds(size.lengths, gb_s, tflop_s))
        return {
            "shape": {
                "num_prompts": len(prompts),
                "prompt_tokens": sum(map(len, prompts)),
                "output_tokens": sum(new_tokens),
            },
            "seconds": seconds,
            "tok_s": sum(new_tokens) / seconds,
            "floor_seconds": floor,
            "floor_has_prefill": floor is not None and ceilings.tflop_s > 0,
            "counters": grown(before, engine.counters()),
        }


def uniform(num: int, prompt: int, new: int, is_required: bool = False) -> Size:
    return Size(f"n{num}_i{prompt}_o{new}", [(prompt, new)] * num, is_required)


def nano_lengths() -> Lengths:
    """nano-vllm's bench.py, draw for draw: 256 prompts and outputs of 100 to 1,024 tokens, seed 0."""
    draw = random.Random(0)
    prompts = []
    for _ in range(256):
        length = draw.randint(100, 1024)
        for _ in range(length):
            draw.randint(0, 10000)
        prompts.append(length)
    return [(prompt, draw.randint(100, 1024)) for prompt in prompts]


def scaled(lengths: Lengths, num: int, part: int) -> Lengths:
    return [(max(1, prompt // part), max(2, new // part)) for prompt, new in lengths[:num]]


# The workloads -------------------------------------------------------------------------------------------------------

LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# What peers without continuous batching are asked too, so it is small.
SMALL_8B = uniform(32, 1024, 64, is_required=True)
SMALL_NANO = Size("nano_n64_quarter", scaled(nano_lengths(), 64, 4), required=True)


def decode(model: str, scale: str, batches: tuple[int, ...] = LADDER) -> Decode:
    """scale: "full", "toy" for a CPU, "tiny" for the emulation of a GPU, where a step takes long."""
    if scale == "full":
        return Decode(model, 1024, batches)
    batches = tuple(batch for batch in batches if batch in (1, 4))
    return Decode(model, 64, batches, short=2, long=66) if scale == "toy" else Decode(model, 16, batches, 1, 5, 1)


def throughput_8b(model: str, scale: str, small_alone: bool = False) -> Throughput:
    sizes = {
        "full": (SMALL_8B, *(uniform(256, 1024, new) for new in (1024, 512, 256, 128))),
        "toy": (uniform(4, 32, 8, is_required=True), uniform(8, 32, 64), uniform(8, 32, 16)),
        "tiny": (uniform(2, 16, 3, is_required=True), uniform(4, 16, 4)),
    }[scale]
    return Throughput(model, sizes[:1] if small_alone else sizes)


def throughput_nano(model: str, scale: str, small_alone: bool = False) -> Throughput:
    lengths = nano_lengths()
    small, large = {
        "full": (SMALL_NANO.lengths, lengths),
        "toy": (scaled(lengths, 4, 32), scaled(lengths, 12, 16)),
    }.get(scale, (scaled(lengths, 2, 128), scaled(lengths, 4, 128)))
    sizes = [Size("nano_n64_quarter", small, required=True), Size("nano_n256", large)]
    if scale == "full":
        sizes.append(Size("nano_n256_half", scaled(lengths, 256, 2)))
    return Throughput(model, tuple(sizes[:1] if small_alone else sizes), temperature=0.6)
