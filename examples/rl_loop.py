"""Reinforcement learning in one process: quire samples, torch learns, weights are pushed after every step.

    pip install 'quire[torch]' transformers
    python examples/rl_loop.py --steps 20

The policy is a random Llama of 50,000 parameters over 64 tokens; its reward is the share of even tokens that it writes.
After every push the log-probabilities that quire sampled with are compared with those that torch computes: they agree
to 1e-4 in float32, so no importance weight has to correct for the sampler.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from quire import LLM, SamplingParams
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=1,
    tie_word_embeddings=True,
)
PROMPTS = [[0, 5, 9], [0, 12, 7], [0, 33, 21], [0, 40, 2]]
TOLERANCE = 1e-4


def sampled(llm: LLM, step: int, n: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with their completions, [rows, tokens], and the log-probabilities of the completions' tokens."""
    params = SamplingParams(n=n, temperature=1.0, max_tokens=length, ignore_eos=True, logprobs=0, seed=1000 * step)
    rows, logprobs = [], []
    for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, params, use_tqdm=False), strict=True):
        for completion in output.outputs:
            ids = list(completion.token_ids)
            rows.append(prompt + ids)
            logprobs.append([entry[token].logprob for token, entry in zip(ids, completion.logprobs, strict=True)])
    return torch.tensor(rows), torch.tensor(logprobs)


def learned(policy: LlamaForCausalLM, rows: torch.Tensor, length: int) -> torch.Tensor:
    """What torch makes of the same tokens."""
    logits = policy(rows[:, :-1]).logits[:, -length:].float()
    return logits.log_softmax(-1).gather(-1, rows[:, -length:, None]).squeeze(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="A policy that learns to write even tokens.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16, help="completions of each prompt in a step")
    parser.add_argument("--length", type=int, default=16, help="tokens of a completion")
    options = parser.parse_args()
    torch.manual_seed(0)
    policy = LlamaForCausalLM(CONFIG)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        llm = LLM(folder, skip_tokenizer_init=True, dtype="float32", seed=0)
    with llm:
        for step in range(options.steps):
            rows, sampler = sampled(llm, step, options.samples, options.length)
            trainer = learned(policy, rows, options.length)
            difference = float((trainer.detach() - sampler).abs().max())
            if difference > TOLERANCE:
                raise SystemExit(f"step {step}: sampler and trainer differ by {difference:.2e}")
            reward = (rows[:, -options.length :] % 2 == 0).float().mean(dim=1)
            advantage = reward - reward.mean()
            optimizer.zero_grad()
            (-(advantage[:, None] * trainer).sum(dim=1).mean()).backward()
            optimizer.step()
            llm.load_weights(policy.named_parameters())
            version = llm.get_weight_version()
            print(f"step {step:3}  reward {reward.mean():.3f}  difference {difference:.1e}  weights {version}")


if __name__ == "__main__":
    main()
