"""A model in one GGUF file: its settings, its tokenizer and its weights, packed as they are stored.

The file is read, and mapped, by the `gguf` package. Settings come out as a config.json would state them, so that they
are checked by the same rules.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hub_loader.errors import MissingExtraError, ModelError

from .checkpoint import Loaded
from .gguf_blocks import BLOCKS, FORMATS, read_blocks
from .packed import PackedWeight

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Tokens that end a text: of the model, of a turn, of a message that calls a tool.
_ENDS = tuple(f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def open_gguf(path: Path) -> GGUFFile:
    """The file, mapped; the same object as long as it is not written to.

    Raises:
        ModelError: it is missing, cut short or malformed.
        MissingExtraError: the package that reads it is not installed.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing: name a GGUF file")
    return _open(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _open(path: Path, stamp: int) -> GGUFFile:
    try:
        import gguf
    except ModuleNotFoundError:
        raise MissingExtraError(f"{path}: reading GGUF files needs pip install 'kernel-hub[gguf]'") from None
    try:
        return GGUFFile(path, gguf.GGUFReader(path, "c"))
    except (ValueError, IndexError, KeyError, OSError, OverflowError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not a whole GGUF file ({error}): fetch it again") from None


class GGUFFile:
    """Settings and tensors by name."""

    def __init__(self, path: Path, reader: Any) -> None:
        self.path = path
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._arch = self.field("general.architecture")

    def field(self, key: str) -> Any:
        """A metadata value; None where there is none."""
        field = self._fields.get(key)
        return None if field is None else field.contents()

    @property
    def formats(self) -> frozenset[str]:
        """The formats of PackedWeight that its linear layers have."""
        kinds = {t.tensor_type.name for name, t in self._tensors.items() if name.startswith("blk.")}
        return frozenset(FORMATS[kind] for kind in kinds if kind in FORMATS)

    def config(self) -> dict[str, Any]:
        """What config.json would say.

        Raises:
            ModelError: another architecture, or something that the engine would compute wrongly.
        """
        if self._arch not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ModelError(
                f"{self.path}: architecture {self._arch!r}; of GGUF files the engine runs {known}"
            )
        if "rope_freqs.weight" in self._tensors:
            raise ModelError(
                f"{self.path}: rope_freqs are not run from GGUF: use the model's safetensors folder"
            )
        rotated, head = self._setting("rope.dimension_count"), self._setting("attention.key_length")
        if None not in (rotated, head) and rotated != head:
            raise ModelError(
                f"{self.path}: {rotated} of a head's {head} elements are rotated; the engine rotates whole heads"
            )
        if "token_embd.weight" not in self._tensors:
            raise ModelError(f"{self.path}: there is no tensor token_embd.weight: fetch it again")
        config = {
            "architectures": [ARCHITECTURES[self._arch]],
            "vocab_size": int(self._tensors["token_embd.weight"].shape[-1]),
            "hidden_size": self._setting("embedding_length"),
            "intermediate_size": self._setting("feed_forward_length"),
            "num_hidden_layers": self._setting("block_count"),
            "num_attention_heads": self._setting("attention.head_count"),
            "num_key_value_heads": self._setting("attention.head_count_kv"),
            "head_dim": self._setting("attention.key_length"),
            "max_position_embeddings": self._setting("context_length"),
            "rms_norm_eps": self._setting("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._setting("rope.freq_base"),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": "blk.0.attn_q.bias" in self._tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in self._tensors,
            "eos_token_id": [token for token in map(self.field, _ENDS) if token is not None],
        }
        scaling = self._setting("rope.scaling.type")
        if scaling not in (None, "none"):
            config["rope_scaling"] = {"rope_type": scaling, "factor": self._setting("rope.scaling.factor")}
        return config

    def _setting(self, key: str) -> Any:
        return self.field(f"{self._arch}.{key}")

    def get(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A dense tensor by its name in a Hugging Face checkpoint; float32 where it is stored in blocks.

        Raises:
            ModelError: it is missing, or has another shape than the settings imply.
        """
        module, _, kind = name.rpartition(".")
        loaded = self._load(module, kind, shape, packs=False)
        if not isinstance(loaded, torch.Tensor):
            raise AssertionError("asked for a dense tensor")
        return loaded

    def linear(self, module: str, shape: tuple[int, int]) -> Loaded:
        """The weight of a linear layer, packed where it is stored in blocks. Raises ModelError as `get`."""
        return Loaded(self._load(module, "weight", shape, packs=True))

    def _load(
        self, module: str, kind: str, shape: tuple[int, ...], packs: bool
    ) -> torch.Tensor | PackedWeight:
        layer = _LAYER.fullmatch(module)
        name = f"blk.{layer[1]}.{_NAMES[layer[2]]}.{kind}" if layer else f"{_NAMES[module]}.{kind}"
        if name not in self._tensors:
            raise ModelError(f"{self.path}: there is no tensor {name!r} that its settings ask for")
        tensor = self._tensors[name]
        stored = tuple(reversed(tensor.shape.tolist()))
        if stored != shape:
            raise ModelError(
                f"{self.path}: tensor {name!r} is {list(stored)}, its settings imply {list(shape)}"
            )
        rows = self._rows(name, shape[0])
        type_name = tensor.tensor_type.name
        if packs and type_name in BLOCKS:
            data = torch.from_numpy(np.asarray(tensor.data))
            return read_blocks(data if rows is None else data[rows], type_name, (shape[0], shape[1]))
        values = self._dense(tensor, name).reshape(shape)
        return values if rows is None else values[rows]

    def _dense(self, tensor: Any, name: str) -> torch.Tensor:
        from gguf import quants

        data = np.asarray(tensor.data)
        if data.dtype in (np.float32, np.float16):
            return torch.from_numpy(data)
        try:
            return torch.from_numpy(quants.dequantize(data, tensor.tensor_type))
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: tensor {name!r} is stored as {tensor.tensor_type.name}, which gguf does not read "
                f"({error}): take a file in Q4_0, Q8_0, Q4_K, Q5_K or Q6_K, or update gguf"
            ) from None

    def _rows(self, name: str, count: int) -> torch.Tensor | None:
        """Where a head's rows are: llama's files pair the rotated elements as neighbours, not half a head apart."""
        part = name.split(".")[-2]
        if self._arch != "llama" or part not in ("attn_q", "attn_k"):
            return None
        heads = self._setting("attention.head_count" if part == "attn_q" else "attention.head_count_kv")
        heads = heads or self._setting("attention.head_count")
        return torch.arange(count).view(heads, -1, 2).transpose(1, 2).reshape(-1)
