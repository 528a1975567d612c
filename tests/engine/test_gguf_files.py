"""GGUF files: blocks mean what the `gguf` package says, and a model runs as transformers runs the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from test_quantized_checkpoints import BOUNDS, PROMPT, error_of, logits_of
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from engine import LLM, SamplingParams
from engine.chat import render_chat
from engine.config import load_config
from engine.quant.gguf_blocks import BLOCKS, BYTES, grouped, read_blocks
from engine.quant.packed import dequantize
from engine.tokenizer import Tokenizer
from hub_loader.errors import ModelError, UsageError

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 256, 512, 4, 2, 2
HEAD = HIDDEN // HEADS
KINDS = gguf.GGMLQuantizationType
# Where the fp16 factors of a block are; all other bytes may be anything.
FACTORS = {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,), "Q5_K": (0, 2), "Q4_1": (0, 2)}

WriteModel = Callable[..., Path]


def blocks(kind: str, rows: int, columns: int, seed: int) -> np.ndarray:
    """Random blocks of a type, uint8 [rows, bytes]; some without any scale."""
    random = np.random.default_rng(seed)
    size, count = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    data = random.integers(0, 256, (rows * columns // size, count), dtype=np.uint8)
    for place in FACTORS[kind]:
        factor = random.normal(0, 0.1 / 2 ** (4 if kind in ("Q4_0", "Q4_1") else 8), len(data)).astype(
            np.float16
        )
        data[:, place : place + 2] = factor[:, None].view(np.uint8)
    if kind in ("Q4_K", "Q5_K"):
        data[:2, 4:16] = 0
    return data.reshape(rows, -1)


@pytest.fixture(scope="session")
def write_gguf(tmp_path_factory: pytest.TempPathFactory) -> WriteModel:
    """write_gguf("Q4_K", arch="llama") -> a file of random weights with a byte-level tokenizer."""

    def write(
        kind: str = "F32",
        arch: str = "llama",
        tied: bool = False,
        biases: tuple[str, ...] = (),
        **fields: Any,
    ) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "model.gguf"
        writer = gguf.GGUFWriter(path, arch)
        writer.add_context_length(128)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(INNER)
        writer.add_block_count(LAYERS)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(10000.0)
        _add_tokenizer(writer)
        for key, value in fields.items():
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}[type(value)]
            add(key.replace("__", "."), value)
        random = np.random.default_rng(7)
        for seed, (name, shape) in enumerate(_tensors(arch, tied, biases)):
            if kind in FACTORS and name.endswith(".weight") and len(shape) == 2 and "embd" not in name:
                writer.add_tensor(name, blocks(kind, *shape, seed), raw_dtype=KINDS[kind])
                continue
            spread = random.normal(1.0 if "norm" in name else 0.0, 0.08, shape).astype(np.float32)
            if kind == "F64" or (kind == "F16" and len(shape) == 2):
                spread = spread.astype(np.float64 if kind == "F64" else np.float16)
            writer.add_tensor(name, spread)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _tensors(arch: str, tied: bool, biases: tuple[str, ...]) -> list[tuple[str, tuple[int, ...]]]:
    names: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (256, HIDDEN)),
        ("output_norm.weight", (HIDDEN,)),
    ]
    names += [] if tied else [("output.weight", (256, HIDDEN))]
    for layer in range(LAYERS):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * HEAD, HIDDEN),
            "attn_k": (KV_HEADS * HEAD, HIDDEN),
            "attn_v": (KV_HEADS * HEAD, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        if arch == "qwen3":
            shapes |= {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
        names += [(f"blk.{layer}.{name}.weight", shape) for name, shape in shapes.items()]
        names += [(f"blk.{layer}.{name}.bias", shapes[name][:1]) for name in biases]
        if arch == "qwen2":
            for part, size in (("q", HEADS * HEAD), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD)):
                names.append((f"blk.{layer}.attn_{part}.bias", (size,)))
    return names


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet[:252], "xyz", "he", "hel", "<|end|>"]  # no test has the bytes that are left out
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 255 + [3])
    writer.add_token_merges(["h e", "he l"])
    writer.add_eos_token_id(255)
    writer.add_chat_template(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    )


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_stand_for_what_the_gguf_package_says(kind: str) -> None:
    data = blocks(kind, 6, 512, seed=3)
    assert data.shape[1] * 6 == BYTES[kind] * 6 * 512 // gguf.GGML_QUANT_SIZES[KINDS[kind]][0]
    expected = torch.from_numpy(gguf.quants.dequantize(data, KINDS[kind]))
    got = dequantize(grouped(read_blocks(torch.from_numpy(data), kind, (6, 512))))
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=float(expected.abs().max()) * 1e-6)


def by_transformers(path: Path, **settings: Any) -> Any:
    """The model of a file in float64, by transformers' own reading of settings, names and blocks."""
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config._attn_implementation = "eager"
    config.head_dim = HEAD  # which it takes from the file for some architectures only
    config.update(settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    missing = model.load_state_dict(read["tensors"], strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "arch", "tied"),
    [
        ("F32", "llama", False),
        ("F16", "qwen2", True),
        ("Q4_0", "llama", False),
        ("Q8_0", "qwen3", False),
        ("Q4_K", "llama", True),
        ("Q6_K", "qwen2", False),
        ("Q5_K", "llama", False),
    ],
)
def test_logits_are_those_of_transformers_with_the_same_file(
    write_gguf: WriteModel, kind: str, arch: str, tied: bool
) -> None:
    path = write_gguf(kind, arch, tied)
    model = by_transformers(path)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0, -1]
    assert error_of(logits_of(LLM(path), PROMPT), expected) < BOUNDS["float32"]


def test_tokenizer_and_chat_template_of_the_file_are_used(write_gguf: WriteModel) -> None:
    path = write_gguf()
    llm = LLM(path)
    tokens = llm.tokenizer.encode("hello<|end|>")
    assert len(tokens) == 4  # "hel", "l", "o" and the end
    assert tokens[-1] == 255
    assert tokens[0] == 254
    assert llm.tokenizer.decode(tokens) == "hello"
    assert llm.config.stop_tokens == {255}
    assert render_chat(path, [{"role": "user", "content": "hi"}]) == "user: hi<|end|>"
    (completion,) = llm.generate(["hello"], SamplingParams(max_tokens=3, ignore_stop=True))
    assert len(completion.tokens) == 3
    (guided,) = llm.generate(["hello"], SamplingParams(max_tokens=8, regex="[ab]{3}"))
    assert len(guided.text) == 3


def test_word_of_llama_3_that_is_a_token_is_not_merged_from_its_parts(write_gguf: WriteModel) -> None:
    tokenizer = Tokenizer(write_gguf())
    assert tokenizer.encode("xyz") == [252]  # which no merge makes
    assert len(tokenizer.encode("xyzz")) == 4


def test_text_of_llama_3_begins_with_bos_unless_the_file_says_not(write_gguf: WriteModel) -> None:
    bos = {"tokenizer__ggml__bos_token_id": 255}
    assert Tokenizer(write_gguf(**bos)).encode("xyz") == [255, 252]
    assert Tokenizer(write_gguf(**bos)).encode("xyz", add_special_tokens=False) == [252]
    assert Tokenizer(write_gguf(**bos, tokenizer__ggml__add_bos_token=False)).encode("xyz") == [252]


def test_end_of_a_turn_or_of_a_message_stops_as_the_end_of_text_does(write_gguf: WriteModel) -> None:
    path = write_gguf(tokenizer__ggml__eot_token_id=7, tokenizer__ggml__eom_token_id=8)
    assert load_config(path).stop_tokens == {255, 7, 8}


def test_tokenizer_that_is_malformed_is_refused(write_gguf: WriteModel) -> None:
    with pytest.raises(ModelError, match=r"model\.gguf: its tokenizer cannot be read"):
        Tokenizer(write_gguf(tokenizer__ggml__bos_token_id=256))
    path = write_gguf()
    (path.parent / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(path)


def test_biases_of_the_feed_forward_layers_are_not_left_out(write_gguf: WriteModel) -> None:
    path = write_gguf(biases=("ffn_gate", "ffn_up", "ffn_down"))
    model = by_transformers(path, mlp_bias=True)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0, -1]
    assert error_of(logits_of(LLM(path), PROMPT), expected) < BOUNDS["float32"]


def test_tokenizer_of_another_kind_is_refused_with_the_cure(write_gguf: WriteModel, tmp_path: Path) -> None:
    data = write_gguf().read_bytes().replace(b"llama-bpe", b"other-bpe")
    (other := tmp_path / "other.gguf").write_bytes(data)
    with pytest.raises(ModelError, match="put the model's tokenizer.json beside other.gguf"):
        LLM(other)


def test_file_of_another_architecture_or_with_what_is_not_run_is_refused(
    write_gguf: WriteModel, tmp_path: Path
) -> None:
    with pytest.raises(
        ModelError, match="architecture 'mamba'; of GGUF files the engine runs llama, qwen2, qwen3"
    ):
        load_config(write_gguf(arch="mamba"))
    with pytest.raises(ModelError, match="rope type 'yarn'"):
        load_config(write_gguf(llama__rope__scaling__type="yarn"))
    with pytest.raises(ModelError, match="32 of a head's 64 elements are rotated"):
        load_config(write_gguf(llama__rope__dimension_count=32))
    assert load_config(write_gguf(llama__rope__dimension_count=HEAD)).head_dim == HEAD


def test_file_that_is_cut_short_or_none_is_refused(write_gguf: WriteModel, tmp_path: Path) -> None:
    whole = write_gguf().read_bytes()
    for size in (0, 3, 200, len(whole) // 2):
        (cut := tmp_path / f"{size}.gguf").write_bytes(whole[:size])
        with pytest.raises(ModelError, match="is not a whole GGUF file"):
            LLM(cut)
    with pytest.raises(ModelError, match=r"nowhere\.gguf"):
        LLM(tmp_path / "nowhere.gguf")


def test_type_that_the_gguf_package_does_not_read_is_refused_with_the_cure(write_gguf: WriteModel) -> None:
    with pytest.raises(
        ModelError, match=r"is stored as F64, which gguf does not read .*: take a file in Q4_0"
    ):
        LLM(write_gguf("F64"))


def test_file_that_is_quantized_is_not_quantized_again(write_gguf: WriteModel) -> None:
    with pytest.raises(UsageError, match=r"is quantized already \(int4\)"):
        LLM(write_gguf("Q4_0"), quantize="int8")
