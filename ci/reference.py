"""Greedy tokens of transformers for each prompt of a file, alone: what the engine's must be equal to.

python ci/reference.py MODEL PROMPTS MAX_TOKENS      prints {"tokens": [[…], …], "seconds": …}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model_folder: str, prompts_file: str, max_tokens: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    prompts = [line for line in Path(prompts_file).read_text().splitlines() if line.strip()]
    tokens = []
    start = time.perf_counter()
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=int(max_tokens), do_sample=False)
        tokens.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(*sys.argv[1:])
