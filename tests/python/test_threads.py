"""Several threads on one engine, and several engines in one process: everybody gets their own right answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkpoints import write_llama
from quire import LLM, SamplingParams


def run(llm: LLM, which: int) -> list[list[int]]:
    params = SamplingParams(temperature=0 if which % 2 else 1.0, seed=which, max_tokens=20, ignore_eos=True)
    prompts = [[2 + which, 3 + i, 5] for i in range(3)]
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


def test_eight_threads_on_one_engine(llm: LLM) -> None:
    alone = [run(llm, which) for which in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda which: run(llm, which), range(24))) == alone


def test_streams_and_batches_in_threads(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)

    def stream(which: int) -> list[int]:
        return [token for chunk in llm.stream([2 + which, 9], params) for token in chunk.token_ids]

    expected = [llm.generate([[2 + which, 9]], params, use_tqdm=False)[0].outputs[0].token_ids for which in range(8)]
    batches = [run(llm, which) for which in range(8)]
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, which) for which in range(8)]
        runs = [pool.submit(run, llm, which) for which in range(8)]
        assert [one.result() for one in streams] == expected
        assert [one.result() for one in runs] == batches


def test_one_bad_thread_leaves_the_others_alone(llm: LLM) -> None:
    expected = run(llm, 1)

    def bad() -> str:
        try:
            llm.generate([[10**6]], use_tqdm=False)
        except ValueError as error:
            return str(error)
        return "no error"

    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(run, llm, 1) for _ in range(4)]
        wrong = [pool.submit(bad) for _ in range(4)]
        assert all(one.result() == expected for one in good)
        assert all("out of vocabulary" in one.result() for one in wrong)


def test_two_engines_in_one_process(tiny_model: Path, tmp_path: Path) -> None:
    other_model = write_llama(tmp_path, seed=1)
    with LLM(str(tiny_model)) as one:
        first = run(one, 1)
    with LLM(str(other_model)) as two:
        second = run(two, 1)
    assert first != second
    with LLM(str(tiny_model)) as one, LLM(str(other_model)) as two, ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run, one, 1), pool.submit(run, two, 1)]
        assert [future.result() for future in both] == [first, second]
        assert (run(one, 1), run(two, 1)) == (first, second)


def test_inside_an_event_loop(llm: LLM) -> None:
    async def ask() -> list[list[int]]:
        return run(llm, 3)

    assert asyncio.run(ask()) == run(llm, 3)


def test_without_a_main_guard(tiny_model: Path) -> None:
    code = (
        "import sys; from quire import LLM; llm = LLM(sys.argv[1]);"
        "print(len(llm.generate('Once', use_tqdm=False)[0].prompt_token_ids) > 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tiny_model)], capture_output=True, text=True)
    assert (ran.stdout, ran.returncode) == ("True\n", 0), ran.stderr
    assert ran.stderr == ""
