"""The rate of torch's bfloat16 product (oneDNN): operations a second, the best of a second. Usage: THREADS"""

from __future__ import annotations

import sys
import time


def main() -> None:
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    size = 2048
    left, right = (torch.randn(size, size).to(torch.bfloat16) for _ in range(2))
    best = float("inf")
    with torch.inference_mode():
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            begin = time.perf_counter()
            torch.nn.functional.linear(left, right)
            best = min(best, time.perf_counter() - begin)
    print(2 * size**3 / best)


if __name__ == "__main__":
    main()
