"""Prints, as one line of JSON, the prompt tokens per second of mlx-lm's own ``stream_generate``.

``gpu_comparison.py`` runs it: nothing of pippin is in the process. The first prompt warms up.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics

from mlx_lm import load, stream_generate

_NUM_PROMPTS = 3


def main() -> None:
    """Measure, and print the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder")
    parser.add_argument("num_tokens", type=int, help="of each prompt")
    args = parser.parse_args()
    model, tokenizer = load(args.model)[:2]
    draw = random.Random(0)
    speeds = []
    for _ in range(1 + _NUM_PROMPTS):
        prompt = [draw.randrange(1000, tokenizer.vocab_size) for _ in range(args.num_tokens)]
        *_, last = stream_generate(model, tokenizer, prompt, max_tokens=2)
        speeds.append(last.prompt_tps)
    print(json.dumps({"prefill_tok_s": float(f"{statistics.median(speeds[1:]):.4g}")}))


if __name__ == "__main__":
    main()
