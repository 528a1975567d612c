"""A Llama decoder over a flat batch of tokens, every heavy operation through a kernel slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from hub_loader.errors import ModelError

from .batch import Batch
from .config import ModelConfig
from .kernels import Kernels
from .rope import cos_sin_cache
from .weights import Weights

INT4_GROUPS = (128, 64, 32)

KVCache = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, both [num_blocks, block_size, kv_heads, head_dim]."""


class Linear:
    """x [T, in] -> [T, out]: dense, or through the matmul slot when the weight is quantized."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels, quantize: str | None
    ) -> None:
        self._bias = bias
        self._matmul = functional.linear
        self._weight = weight
        if quantize:
            groups = {"group_size": _group_size(weight.shape[1])} if quantize == "int4" else {}
            self._matmul = kernels.matmul
            self._weight = kernels.quantize(weight, quantize, **groups)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._matmul(x, self._weight, bias=self._bias)


def _group_size(columns: int) -> int:
    """The largest usual group of columns that shares an int4 scale."""
    for size in INT4_GROUPS:
        if columns % size == 0:
            return size
    raise ModelError(f"a layer of {columns} inputs does not divide into int4 groups of 32: use int8")


@dataclass(frozen=True)
class Layer:
    """One decoder layer; projections that read the same input are one matrix."""

    input_norm: torch.Tensor
    qkv: Linear
    out: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class Llama:
    """Weights and the forward pass. Linear layers may be quantized; embedding and output layer stay dense."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        kernels: Kernels,
        dtype: torch.dtype = torch.float32,
        quantize: str | None = None,
    ) -> None:
        """Read every tensor and convert it to `dtype`.

        Raises:
            ModelError: a tensor is missing or has the wrong shape.
        """
        self.config = config
        self.dtype = dtype
        self._kernels = kernels
        hidden, inner = config.hidden_size, config.intermediate_size
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self._qkv_sizes = [query_size, kv_size, kv_size]

        def get(name: str, *shape: int) -> torch.Tensor:
            return weights.get(name, shape).to(dtype)

        def linear(prefix: str, outputs: dict[str, int], inputs: int, biased: bool) -> Linear:
            weight = torch.cat([get(f"{prefix}{n}.weight", size, inputs) for n, size in outputs.items()])
            bias = (
                torch.cat([get(f"{prefix}{n}.bias", size) for n, size in outputs.items()]) if biased else None
            )
            return Linear(weight, bias, kernels, quantize)

        def layer(index: int) -> Layer:
            prefix = f"model.layers.{index}."
            attention, mlp = prefix + "self_attn.", prefix + "mlp."
            qkv = {"q_proj": query_size, "k_proj": kv_size, "v_proj": kv_size}
            return Layer(
                input_norm=get(prefix + "input_layernorm.weight", hidden),
                qkv=linear(attention, qkv, hidden, config.attention_bias),
                out=linear(attention, {"o_proj": hidden}, query_size, config.attention_bias),
                post_norm=get(prefix + "post_attention_layernorm.weight", hidden),
                gate_up=linear(mlp, {"gate_proj": inner, "up_proj": inner}, hidden, config.mlp_bias),
                down=linear(mlp, {"down_proj": hidden}, inner, config.mlp_bias),
            )

        self._embedding = get("model.embed_tokens.weight", config.vocab_size, hidden)
        self._layers = [layer(index) for index in range(config.num_layers)]
        self._final_norm = get("model.norm.weight", hidden)
        tied = config.tied_embeddings
        self._output = self._embedding if tied else get("lm_head.weight", config.vocab_size, hidden)
        self._cos_sin = cos_sin_cache(config.rope, config.head_dim, config.context, dtype)

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        """A zeroed paged cache for every layer."""
        shape = (num_blocks, block_size, self.config.num_kv_heads, self.config.head_dim)
        return [
            (torch.zeros(shape, dtype=self.dtype), torch.zeros(shape, dtype=self.dtype)) for _ in self._layers
        ]

    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes in the cache, over all layers."""
        c = self.config
        return 2 * c.num_layers * c.num_kv_heads * c.head_dim * self.dtype.itemsize

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Compute a step: writes the tokens' keys and values, returns logits [sampled rows, vocabulary]."""
        kernels, config = self._kernels, self.config
        tokens, epsilon = len(batch.tokens), config.norm_epsilon
        residual = functional.embedding(batch.tokens, self._embedding)
        x = torch.empty_like(residual)
        kernels.rms_norm(x, residual, self._layers[0].input_norm, epsilon)
        # Each layer ends with the norm that the next begins with, so that the residual sum is fused into it.
        next_norms = [layer.input_norm for layer in self._layers[1:]] + [self._final_norm]
        for layer, next_norm, (key_cache, value_cache) in zip(self._layers, next_norms, cache, strict=True):
            query, key, value = (t.contiguous() for t in torch.split(layer.qkv(x), self._qkv_sizes, dim=-1))
            kernels.rotary_embedding(batch.positions, query, key, config.head_dim, self._cos_sin, True)
            key, value = (t.view(tokens, config.num_kv_heads, config.head_dim) for t in (key, value))
            kernels.reshape_and_cache_flash(key, value, key_cache, value_cache, batch.slot_mapping)
            attended = kernels.attend(
                query.view(tokens, config.num_heads, config.head_dim),
                key_cache,
                value_cache,
                block_tables=batch.block_tables,
                seq_lens=batch.seq_lens,
                query_start_loc=batch.query_start_loc,
                scale=config.head_dim**-0.5,
            )
            x = layer.out(attended.view(tokens, -1))
            kernels.fused_add_rms_norm(x, residual, layer.post_norm, epsilon)
            activated = x.new_empty(tokens, config.intermediate_size)
            kernels.silu_and_mul(activated, layer.gate_up(x))
            x = layer.down(activated)
            kernels.fused_add_rms_norm(x, residual, next_norm, epsilon)
        return functional.linear(x[batch.sample_rows], self._output)
