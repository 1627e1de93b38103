"""On the device a result depends on the model, the prompt, the parameters and the seed alone.

Bit for bit, whatever else is in the batch, however the prompt is cut, whatever the cache holds and however often the
request was preempted.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from quire import RequestOutput, SamplingParams

pytestmark = pytest.mark.gpu

Request = tuple[list[int], SamplingParams]
# The first is the reference. The smallest cache holds one sequence of the greatest length, so that many are preempted.
ENGINES: dict[str, dict[str, Any]] = {
    "all at once": {"max_num_seqs": 256},
    "cut in chunks": {"max_num_seqs": 8, "max_num_batched_tokens": 13, "enable_prefix_caching": False},
    "small cache": {"max_num_seqs": 32, "num_gpu_blocks_override": 17},
    "one by one": {"max_num_seqs": 1},
}


def requests(count: int) -> list[Request]:
    source = random.Random(7)
    made = []
    for i in range(count):
        begin = [7 + j % 50 for j in range(source.choice([0, 16, 40]))]  # some share a beginning
        prompt = begin + [source.randrange(2, 400) for _ in range(source.randrange(1, 30))]
        params = SamplingParams(
            temperature=source.choice([0.0, 0.7, 1.3]), seed=i, top_k=source.choice([-1, 20]),
            top_p=source.choice([1.0, 0.9]), max_tokens=source.randrange(8, 24), logprobs=4, ignore_eos=True,
        )  # fmt: skip
        made.append((prompt, params))
    return made


def bits(output: RequestOutput) -> list[Any]:
    completion = output.outputs[0]
    entries = [[(token, entry.logprob) for token, entry in position.items()] for position in completion.logprobs]
    return [list(completion.token_ids), completion.cumulative_logprob, entries]


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def count(device: str) -> int:
    """More rows than one tile of the matrix products has, except on the emulation, which takes its time."""
    return 12 if device == "simt" else 150


def test_alone_and_among_others(make_llm, dtype: str, count: int, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    llm = make_llm(folder, dtype=dtype, num_gpu_blocks_override=2048)
    asked = requests(count)
    together = llm.generate([prompt for prompt, _ in asked], [params for _, params in asked], use_tqdm=False)
    assert len({str(bits(output)) for output in together}) == count
    assert sum(output.num_cached_tokens for output in together) > 0, "prompts that begin alike are computed once"
    llm.reset_prefix_cache()
    for i in range(0, count, max(1, count // 13)):
        prompt, params = asked[i]
        assert bits(llm.generate([prompt], params, use_tqdm=False)[0]) == bits(together[i]), f"request {i}"


@pytest.mark.parametrize("name", list(ENGINES)[1:])
def test_however_the_work_is_cut(name: str, make_llm, dtype: str, count: int, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    asked = requests(min(count, 24))
    prompts, params = [prompt for prompt, _ in asked], [params for _, params in asked]
    reference = make_llm(folder, dtype=dtype, num_gpu_blocks_override=2048)
    expected = [bits(output) for output in reference.generate(prompts, params, use_tqdm=False)]
    llm = make_llm(folder, dtype=dtype, **ENGINES[name])
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [bits(output) for output in outputs] == expected
    if name == "small cache" and len(asked) > 12:
        assert sum(output.metrics.num_preemptions for output in outputs) > 0
    again = llm.generate(prompts, params, use_tqdm=False)  # now much of the prompts is cached
    assert [bits(output) for output in again] == expected
    if name == "one by one":
        assert sum(output.num_cached_tokens for output in again) > 0
