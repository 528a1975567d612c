"""Train the small Llama that ships here, on the text of the Python standard library.

    python train.py --out DIR --minutes 60

The corpus is the standard library of the interpreter that runs this file, so nothing is downloaded.
DIR becomes a complete Hugging Face model folder within the first minutes and is renewed as the loss
falls: every file is written beside its place, synced and renamed, so that a reader never sees half a file.
The learning rate follows the clock, not a step count; a faster machine sees more text in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

END = "<|endoftext|>"
# Tests repeat themselves, the tables under encodings and pydoc_data are not prose or code, lib2to3 and
# distutils are gone from newer versions, and site-packages is not the standard library.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "distutils", "encodings", "pydoc_data", "site-packages"}
CONTEXT = 1024
TOKENS_PER_STEP = 4096
PEAK_LEARNING_RATE = 3e-3


def read_library() -> tuple[list[str], list[str]]:
    """Source files of the standard library: (training texts, every fiftieth file held out)."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in root.rglob("*.py") if not SKIPPED & set(path.relative_to(root).parts))
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    return [t for i, t in enumerate(texts) if i % 50], texts[::50]


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE: every byte string has a spelling, so no token is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts as one int64 vector, each preceded by the end-of-text token."""
    end = tokenizer.token_to_id(END)
    return torch.tensor([i for e in tokenizer.encode_batch(texts) for i in (end, *e.ids)])


def batches(tokens: torch.Tensor, length: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Shuffled non-overlapping windows, [TOKENS_PER_STEP / length, length + 1], one pass over `tokens`."""
    offset = int(torch.randint(length, (1,), generator=generator))
    windows = tokens[offset:].unfold(0, length + 1, length)
    order = torch.randperm(len(windows), generator=generator)
    rows = TOKENS_PER_STEP // length
    for start in range(0, len(order) - rows + 1, rows):
        yield windows[order[start : start + rows]]


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of each token given those before it; batch [rows, length + 1]."""
    logits = model(batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.inference_mode()
def evaluate(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """Mean loss over the held-out files in whole windows of the model's context."""
    windows = tokens.unfold(0, CONTEXT + 1, CONTEXT)[:24]
    return sum(float(loss_of(model, window[None])) for window in windows) / len(windows)


def write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def export(model: LlamaForCausalLM, out: Path) -> None:
    """Weights as bfloat16; the output layer is the embedding, so it is stored once."""
    weights = {
        k: v.detach().to(torch.bfloat16) for k, v in model.state_dict().items() if k != "lm_head.weight"
    }
    temporary = out / "model.safetensors.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(out / "model.safetensors")


def write_description(config: LlamaConfig, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_atomically(out / "config.json", config.to_json_string().encode())
    write_atomically(out / "generation_config.json", (json.dumps(generation, indent=2) + "\n").encode())
    write_atomically(out / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    write_atomically(out / "tokenizer_config.json", (json.dumps(described, indent=2) + "\n").encode())


def learning_rate(progress: float) -> float:
    """Linear warm-up over the first 2 % of the time, then a cosine to a hundredth of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return PEAK_LEARNING_RATE * min(progress / 0.02 + 0.01, 0.01 + 0.99 * cosine)


def train(out: Path, minutes: float, seed: int, export_minutes: float) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    training, held_out = read_library()
    tokenizer = train_tokenizer(training, vocabulary=2048)
    tokens, held_out_tokens = encode(tokenizer, training), encode(tokenizer, held_out)
    characters = sum(map(len, training))
    print(f"{len(training)} files, {characters:,} characters, {len(tokens):,} tokens", flush=True)

    end = tokenizer.token_to_id(END)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        dtype="bfloat16",
    )
    write_description(config, tokenizer, out)
    model = LlamaForCausalLM(config)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    start = exported = time.monotonic()
    limit, step, running = minutes * 60, 0, math.log(config.vocab_size)
    while (time.monotonic() - start) < limit:
        # Short windows first: more varied batches for the same work. Whole contexts at the end.
        length = 256 if time.monotonic() - start < 0.75 * limit else CONTEXT
        for batch in batches(tokens, length, generator):
            elapsed = time.monotonic() - start
            if elapsed >= limit or (length == 256 and elapsed >= 0.75 * limit):
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(elapsed / limit)
            loss = loss_of(model, batch)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            running += 0.05 * (loss.item() - running)
            if step % 20 == 0:
                rate = step * TOKENS_PER_STEP / (time.monotonic() - start)
                print(
                    f"{elapsed / 60:6.1f} min  step {step}  loss {running:.3f}  {rate:,.0f} tok/s", flush=True
                )
            if time.monotonic() - exported > export_minutes * 60:
                export(model, out)
                exported = time.monotonic()
    export(model, out)
    print(
        f"done: {step} steps of {TOKENS_PER_STEP} tokens, "
        f"loss {running:.3f}, held-out files {evaluate(model, held_out_tokens):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the model")
    parser.add_argument("--minutes", type=float, default=60, help="time to train, in minutes (60)")
    parser.add_argument("--export-minutes", type=float, default=4, help="minutes between two exports (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the text (0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.out, args.minutes, args.seed, args.export_minutes)


if __name__ == "__main__":
    main()
