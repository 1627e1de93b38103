#!/usr/bin/env python3
"""Trains the embedded storyteller (quire/demo) and exports it as a Hugging Face Llama directory.

Decides: tokenizer, data mixture, rates and schedule of the demo model. The prompts it learns to answer come from
demo_prompts.py, the network and the optimiser from demo_network.py. Knows nothing of the engine; one process.
Reads tinystories_train.txt (trained on) and tinystories_heldout.txt (loss only). Needs torch, numpy, tokenizers.

  python tools/train_demo_model.py --minutes 67            # train, then export into python/quire/demo_model
  python tools/train_demo_model.py --epochs 9              # the same with a schedule that does not depend on the clock
  python tools/train_demo_model.py --export-only CHECKPOINT
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from demo_network import IGNORE, ModelShape, Muon, Storyteller
from demo_prompts import PromptWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

REPO = Path(__file__).resolve().parent.parent
BOS = "<|endoftext|>"  # begins every sequence and ends a plain story
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = [BOS, USER, ASSISTANT, END]
NUM_POOLED_BATCHES = 24  # batches of similar length are cut from pools of this many batches, so padding stays small

# A system message is accepted and left out: the model has never seen one.
CHAT_TEMPLATE = (
    "{{- bos_token -}}\n"
    "{%- for message in messages -%}\n"
    "{%- if message['role'] == 'user' -%}\n"
    "{{- '<|user|>' + message['content'] | trim + '<|end|>' -}}\n"
    "{%- elif message['role'] == 'assistant' -%}\n"
    "{{- '<|assistant|>' + message['content'] | trim + '<|end|>' -}}\n"
    "{%- elif message['role'] != 'system' -%}\n"
    "{{- raise_exception('The storyteller knows the roles system, user and assistant, not ' + message['role']) -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|assistant|>' -}}\n"
    "{%- endif -%}\n"
)


# ---------------------------------------------------------------- data


def read_stories(path: Path) -> list[str]:
    stories = [block.strip() for block in path.read_text(encoding="utf-8").split(BOS)]
    return [story for story in stories if story]


def train_tokenizer(stories: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


class Corpus:
    """Tokenised stories, and the samples of an epoch: plain stories, single chats, conversations of several stories."""

    def __init__(self, stories: list[str], tokenizer: Tokenizer, chat_share: float, max_length: int):
        self.stories, self.tokenizer = stories, tokenizer
        self.chat_share, self.max_length = chat_share, max_length
        self.story_ids = [e.ids for e in tokenizer.encode_batch(stories, add_special_tokens=False)]
        self.bos, self.user, self.assistant, self.end = (tokenizer.token_to_id(t) for t in SPECIALS)
        self.prompts = PromptWriter(stories)

    def epoch(self, rng: random.Random) -> list[tuple[list[int], list[bool]]]:
        """Each story once: (ids, is_target) per sample. The user's words are read, not learned."""
        order = list(range(len(self.stories)))
        rng.shuffle(order)
        num_chat = round(self.chat_share * len(order))
        samples = []
        for index in order[num_chat:]:
            ids = [self.bos, *self.story_ids[index], self.bos]
            samples.append((ids, [False] + [True] * (len(ids) - 1)))
        chat, position = order[:num_chat], 0
        while position < len(chat):
            num_turns = rng.choice((1, 1, 1, 1, 1, 2, 3, 4))
            samples.append(self.conversation(chat[position : position + num_turns], rng))
            position += num_turns
        rng.shuffle(samples)
        return [(ids[: self.max_length + 1], mask[: self.max_length + 1]) for ids, mask in samples]

    def conversation(self, indices: list[int], rng: random.Random) -> tuple[list[int], list[bool]]:
        ids, mask = [self.bos], [False]
        for turn, index in enumerate(indices):
            text = self.prompts.prompt(index, turn, rng)
            prompt = [self.user, *self.tokenizer.encode(text, add_special_tokens=False).ids, self.end, self.assistant]
            reply = [*self.story_ids[index], self.end]
            ids += prompt + reply
            mask += [False] * len(prompt) + [True] * len(reply)
        return ids, mask

    def batches(self, samples, batch_tokens: int, rng: random.Random):
        """Samples of like length side by side, one document a row, so that positions and attention match inference."""
        out, pool_tokens, pool = [], 0, []
        for sample in samples + [None]:
            if sample is not None:
                pool.append(sample)
                pool_tokens += len(sample[0])
            if pool and (sample is None or pool_tokens >= NUM_POOLED_BATCHES * batch_tokens):
                out += self.cut(sorted(pool, key=lambda s: len(s[0])), batch_tokens)
                pool_tokens, pool = 0, []
        rng.shuffle(out)
        return out

    def cut(self, pool, batch_tokens: int):
        rows, out = [], []
        for sample in pool:
            if rows and (len(rows) + 1) * (len(sample[0]) - 1) > batch_tokens:
                out.append(self.collate(rows))
                rows = []
            rows.append(sample)
        return out + [self.collate(rows)]

    def collate(self, rows) -> tuple[Tensor, Tensor]:
        longest = max(len(ids) for ids, _ in rows) - 1
        length = min((longest + 15) // 16 * 16, self.max_length)
        inputs = torch.zeros(len(rows), length, dtype=torch.long)
        targets = torch.full((len(rows), length), IGNORE)
        for row, (ids, mask) in enumerate(rows):
            ids_t = torch.tensor(ids)
            inputs[row, : len(ids) - 1] = ids_t[:-1]
            targets[row, : len(ids) - 1] = torch.where(torch.tensor(mask[1:]), ids_t[1:], IGNORE)
        return inputs, targets


@torch.no_grad()
def bits_per_byte(model: Storyteller, corpus: Corpus, stories: list[str], device: str) -> float:
    """Bits of each story's tokens and its closing <|endoftext|>, given <|endoftext|> before it, over its UTF-8 bytes.

    A story longer than the context is read in windows: the second starts half a context before its first counted token.
    """
    model.eval()
    context, bos = corpus.max_length, corpus.bos
    samples = []
    for encoding in corpus.tokenizer.encode_batch(stories, add_special_tokens=False):
        ids, begin = [bos, *encoding.ids, bos], 1
        while begin < len(ids):
            start = 0 if begin == 1 else begin - context // 2
            window = ids[start : start + context + 1]
            samples.append((window, [start + i >= begin for i in range(len(window))]))
            begin = start + len(window)
    samples.sort(key=lambda s: len(s[0]))
    nats = sum(model(x.to(device), y.to(device)).item() for x, y in corpus.cut(samples, 8192))
    model.train()
    return nats / math.log(2) / sum(len(story.encode()) for story in stories)


# ---------------------------------------------------------------- training


def learning_rate_factor(progress: float, warmup: float = 0.02, hold: float = 0.3) -> float:
    """Rises, holds, then falls linearly to zero; progress in [0, 1]."""
    if progress < warmup:
        return progress / warmup + 0.01
    return min(1.0, max(0.0, 1 - progress) / (1 - hold))


class ThreadChooser:
    """Takes one or two threads, whichever has been quicker lately: on a shared machine that changes by the minute."""

    def __init__(self, num_threads: int, device: str):
        self.fixed = num_threads
        self.candidates = (1, 2) if num_threads == 0 and device == "cpu" else (max(num_threads, 1),)
        self.seconds_per_token: dict[int, list[float]] = {count: [] for count in self.candidates}
        self.best, self.current, self.step = self.candidates[0], self.candidates[0], 0

    def begin(self) -> None:
        probe = self.step % 60  # the first steps of every sixty try each count
        self.current = self.candidates[probe // 4] if probe < 4 * len(self.candidates) else self.best
        if torch.get_num_threads() != self.current:
            torch.set_num_threads(self.current)

    def end(self, seconds: float, num_tokens: int) -> None:
        self.seconds_per_token[self.current] = [*self.seconds_per_token[self.current][-2:], seconds / num_tokens]
        self.step += 1
        if self.step % 60 == 4 * len(self.candidates):
            self.best = min(self.candidates, key=lambda count: sorted(self.seconds_per_token[count])[1])


class Trainer:
    def __init__(self, args: argparse.Namespace, corpus: Corpus, heldout: list[str], model: Storyteller):
        self.args, self.corpus, self.heldout, self.model = args, corpus, heldout, model
        matrices = [p for p in model.layers.parameters() if p.ndim == 2]
        rest = [p for p in model.layers.parameters() if p.ndim == 1] + [model.norm]
        adam_groups = [{"params": [model.embed], "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
        self.optimizers = [
            Muon(matrices, lr=args.muon_lr, weight_decay=args.weight_decay),
            torch.optim.AdamW(adam_groups, lr=args.adam_lr, betas=(0.9, 0.95), eps=1e-8),
        ]
        self.base_rates = [[g["lr"] for g in opt.param_groups] for opt in self.optimizers]
        self.threads = ThreadChooser(args.threads, args.device)
        self.epoch, self.batch, self.step, self.elapsed, self.tokens = 0, 0, 0, 0.0, 0

    def progress(self, num_batches: int) -> float:
        if self.args.minutes:
            return self.elapsed / (60 * self.args.minutes)
        return (self.epoch + self.batch / num_batches) / self.args.epochs

    def train_step(self, batch: tuple[Tensor, Tensor], progress: float) -> float:
        for opt, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * learning_rate_factor(progress)
        inputs, targets = (t.to(self.args.device) for t in batch)
        num_targets = (targets != IGNORE).sum()
        loss = self.model(inputs, targets) / num_targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for opt in self.optimizers:
            opt.step()
            opt.zero_grad(set_to_none=False)
        self.step += 1
        self.tokens += int(num_targets)
        return loss.item()

    def run(self) -> None:
        mean_loss, last_eval, last_print = None, self.elapsed, self.elapsed
        done = False
        while not done:
            rng = random.Random(1000 * self.args.seed + self.epoch)
            batches = self.corpus.batches(self.corpus.epoch(rng), self.args.batch_tokens, rng)
            while self.batch < len(batches):
                began = time.monotonic()
                progress = self.progress(len(batches))
                if progress >= 1:
                    done = True
                    break
                self.threads.begin()
                loss = self.train_step(batches[self.batch], progress)
                seconds = time.monotonic() - began
                self.threads.end(seconds, batches[self.batch][0].numel())
                self.batch += 1
                self.elapsed += seconds
                mean_loss = loss if mean_loss is None else 0.98 * mean_loss + 0.02 * loss
                if self.elapsed - last_print > 20:
                    last_print = self.elapsed
                    print(
                        f"step {self.step} epoch {self.epoch}+{self.batch}/{len(batches)} progress {progress:.3f} "
                        f"loss {mean_loss:.4f} {self.tokens / self.elapsed:.0f} tokens/s {self.elapsed / 60:.1f} min "
                        f"threads {self.threads.best}",
                        flush=True,
                    )
                if self.elapsed - last_eval > self.args.eval_seconds:
                    began = time.monotonic()
                    self.save()
                    value = bits_per_byte(self.model, self.corpus, self.heldout[::3], self.args.device)
                    print(f"  held-out (every third story): {value:.4f} bits per byte", flush=True)
                    self.elapsed += time.monotonic() - began
                    last_eval = self.elapsed
            if not done:
                self.epoch, self.batch = self.epoch + 1, 0
                done = not self.args.minutes and self.epoch >= self.args.epochs
        self.save()

    def save(self) -> None:
        counters = {k: getattr(self, k) for k in ("epoch", "batch", "step", "elapsed", "tokens")}
        checkpoint = {
            "shape": asdict(self.model.shape),
            "tokenizer": self.corpus.tokenizer.to_str(),
            "model": self.model.state_dict(),
            "optimizers": [opt.state_dict() for opt in self.optimizers],
            "counters": counters,
        }
        path = self.args.checkpoint_dir / "last.pt"
        torch.save(checkpoint, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def resume(self, checkpoint: dict) -> None:
        self.model.load_state_dict(checkpoint["model"])
        for opt, state in zip(self.optimizers, checkpoint["optimizers"], strict=True):
            opt.load_state_dict(state)
        for name, value in checkpoint["counters"].items():
            setattr(self, name, value)


# ---------------------------------------------------------------- export


def export(checkpoint: dict, out: Path) -> None:
    from safetensors.torch import save_file

    shape = ModelShape(**checkpoint["shape"])
    tokenizer = Tokenizer.from_str(checkpoint["tokenizer"])
    model = Storyteller(shape, 0.0)
    model.load_state_dict(checkpoint["model"])
    bos, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(END)
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": bos,
    }
    generation = {
        "bos_token_id": bos,
        "eos_token_id": [bos, end],
        "pad_token_id": bos,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
        "max_new_tokens": 256,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "pad_token": BOS,
        "model_max_length": shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    save_file(model.hugging_face_state(), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # it is created readable to its owner alone
    print(f"exported to {out}")


def default_data() -> Path:
    root = os.environ.get("QUIRE_TEST_DATA")
    return (Path(root) if root else REPO.parent / "shared" / "data") / "tinystories"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data(), help="folder with the two tinystories files")
    parser.add_argument("--out", type=Path, default=REPO / "python" / "quire" / "demo_model")
    parser.add_argument("--checkpoint-dir", type=Path, default=REPO / "build" / "demo_model")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="schedule paced by the clock")
    length.add_argument("--epochs", type=float, help="schedule paced by the data (default 9)")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument("--export-only", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: one or two, by trial")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=6144)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--chat-share", type=float, default=0.4)
    parser.add_argument("--eval-seconds", type=float, default=300)
    args = parser.parse_args()
    if not args.minutes and not args.epochs:
        args.epochs = 9.0
    return args


def main() -> None:
    args = parse_arguments()
    if args.export_only:
        export(torch.load(args.export_only, map_location="cpu"), args.out)
        return
    torch.set_num_threads(max(args.threads, 1))
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    shape = ModelShape()
    stories = read_stories(args.data / "tinystories_train.txt")
    heldout = read_stories(args.data / "tinystories_heldout.txt")
    checkpoint = torch.load(args.resume, map_location="cpu") if args.resume else None
    if checkpoint:
        tokenizer = Tokenizer.from_str(checkpoint["tokenizer"])
    else:
        tokenizer = train_tokenizer(stories, shape.vocab_size)
    corpus = Corpus(stories, tokenizer, args.chat_share, shape.max_position_embeddings)
    model = Storyteller(shape, args.dropout).to(args.device)
    print(
        f"{len(stories)} stories, {sum(map(len, corpus.story_ids))} tokens, {len(heldout)} held out; "
        f"{sum(p.numel() for p in model.parameters())} parameters",
        flush=True,
    )
    args.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args, corpus, heldout, model)
    if checkpoint:
        trainer.resume(checkpoint)
    trainer.run()
    print(f"held-out (all): {bits_per_byte(model, corpus, heldout, args.device):.4f} bits per byte")
    export(torch.load(args.checkpoint_dir / "last.pt", map_location="cpu"), args.out)


if __name__ == "__main__":
    main()
