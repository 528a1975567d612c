"""A decoder over a flat batch of tokens, every heavy operation through a kernel slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm

from .batch import Batch
from .compiled import compiled
from .config import ModelConfig
from .device import CPU
from .experts import Mixture
from .kernels import Kernels
from .linear import Map, make_linear, output_format
from .pages import in_huge_pages
from .quant.checkpoint import Loaded, dense
from .rope import cos_sin_cache
from .weights import Checkpoint

KVCache = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, both [num_blocks, block_size, kv_heads, head_dim]."""


class FeedForward:
    """x [T, hidden] -> [T, hidden]: down(activation(gate(x)) * up(x)), gate and up as one matrix."""

    def __init__(self, gate_up: Map, down: Map, inner: int, activation: str, kernels: Kernels) -> None:
        self._gate_up, self._down, self._inner = gate_up, down, inner
        self._activate = kernels.silu_and_mul if activation == "silu" else kernels.gelu_tanh_and_mul

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        activated = x.new_empty(len(x), self._inner)
        self._activate(activated, self._gate_up(x))
        return self._down(activated)


@dataclass(frozen=True)
class Layer:
    """One decoder layer; projections that read the same input are one matrix.

    after_attention, after_mlp: norms of what the halves give, where the family has them. options: what
    attention is asked for beside causality.
    """

    input_norm: torch.Tensor
    qkv: Map
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    cos_sin: torch.Tensor
    options: Mapping[str, Any]
    out: Map
    after_attention: torch.Tensor | None
    mlp_norm: torch.Tensor
    mlp: Map
    after_mlp: torch.Tensor | None


class Decoder:
    """Weights and the forward pass. Linear layers may be quantized; embedding and router stay dense.

    Asked to quantize to integers, the output layer takes 8 bits, also with 4 for the others: it is the largest
    matrix that each token reads, and the one whose rounding shows most.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Checkpoint,
        kernels: Kernels,
        dtype: torch.dtype = torch.float32,
        quantize: str | None = None,
        device: torch.device = CPU,
        compile: bool = False,
    ) -> None:
        """Read every tensor, convert it to `dtype` and bring it to `device`.

        compile: what stands between two layers' attention is compiled by torch when it first runs.

        Raises:
            ModelError: a tensor is missing or has the wrong shape.
        """
        self.config, self.dtype, self.device = config, dtype, device
        self._weights, self._kernels, self._quantize = weights, kernels, quantize
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self._qkv = {"q_proj": query_size, "k_proj": kv_size, "v_proj": kv_size}
        vocabulary = (config.vocab_size, config.hidden_size)
        self._embedding = in_huge_pages(self._get("model.embed_tokens.weight", *vocabulary))
        self._cos_sin = self._rotation(config.rope)
        self._local_cos_sin = self._rotation(config.local_rope) if config.local_rope else self._cos_sin
        bar = tqdm(range(config.num_layers), "weights", unit=" layers", leave=False, disable=None)
        self._layers = [self._layer(index) for index in bar]  # on a terminal: here every weight is read
        self._final_norm = self._norm("model.norm", config.hidden_size)
        output = self._embedding
        if not config.tied_embeddings:
            output = dense(self._weights.linear("lm_head", vocabulary)).to(self.device, self.dtype)
        self._output = make_linear([Loaded(output)], None, kernels, output_format(quantize))
        self._enter = compiled(self._project) if compile else self._project
        self._enter_at_once = compiled(self._project_at_once) if compile else self._project_at_once
        self._leave = compiled(self._conclude) if compile else self._conclude

    def new_cache(self, num_blocks: int, block_size: int, device: torch.device | None = None) -> KVCache:
        """A zeroed paged cache for every layer, on the model's device or another."""
        shape = (num_blocks, block_size, self.config.num_kv_heads, self.config.head_dim)

        def zeros() -> torch.Tensor:
            return torch.zeros(shape, dtype=self.dtype, device=device or self.device)

        return [(zeros(), zeros()) for _ in self._layers]

    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes in the cache, over all layers."""
        c = self.config
        return 2 * c.num_layers * c.num_kv_heads * c.head_dim * self.dtype.itemsize

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Compute a step: writes the tokens' keys and values, returns logits [sampled rows, vocabulary]."""
        batch = batch.on(self.device)
        logits = self._output(self.hidden(batch, cache)[batch.sample_rows])
        if self.config.output_softcap:
            logits = self.config.output_softcap * torch.tanh(logits / self.config.output_softcap)
        return logits

    @torch.inference_mode()
    def hidden(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Compute a step up to the output layer: writes keys and values, returns [T, hidden]."""
        batch = batch.on(self.device)
        residual = functional.embedding(batch.tokens, self._embedding)
        if self.config.family.scaled_embedding:  # rounded to the weights' dtype, as the models were trained
            residual *= torch.tensor(self.config.hidden_size**0.5, dtype=self.dtype)
        x = torch.empty_like(residual)
        self._kernels.rms_norm(x, residual, self._layers[0].input_norm, self.config.norm_epsilon)
        # Each layer ends with the norm that the next begins with, so that the residual sum is fused into it.
        next_norms = [layer.input_norm for layer in self._layers[1:]] + [self._final_norm]
        for layer, next_norm, held in zip(self._layers, next_norms, cache, strict=True):
            if self._kernels.fuses_qkv:
                query = self._enter_at_once(layer, x, batch.positions, *held, batch.slot_mapping)
            else:
                query, key, value = self._enter(layer, x, batch.positions)
                self._kernels.reshape_and_cache_flash(key, value, *held, batch.slot_mapping)
            x = self._leave(layer, self._attend(layer, query, batch, held), residual, next_norm)
        return x

    def _conclude(
        self, layer: Layer, attended: torch.Tensor, residual: torch.Tensor, next_norm: torch.Tensor
    ) -> torch.Tensor:
        """From what attention gave [T, query_heads * head_dim] to the input of the next layer; adds to `residual`."""
        kernels, epsilon = self._kernels, self.config.norm_epsilon
        x = layer.out(attended)
        self._norm_in_place(x, layer.after_attention)
        kernels.fused_add_rms_norm(x, residual, layer.mlp_norm, epsilon)
        x = layer.mlp(x)
        self._norm_in_place(x, layer.after_mlp)
        kernels.fused_add_rms_norm(x, residual, next_norm, epsilon)
        return x

    def _project(
        self, layer: Layer, x: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values [T, heads, head_dim] of x [T, hidden], rotated."""
        kernels, config, tokens = self._kernels, self.config, len(x)
        parts = torch.split(layer.qkv(x), list(self._qkv.values()), dim=-1)
        query, key, value = (part.contiguous() for part in parts)
        self._norm_in_place(query.view(-1, config.head_dim), layer.query_norm)
        self._norm_in_place(key.view(-1, config.head_dim), layer.key_norm)
        kernels.rotary_embedding(positions, query, key, config.head_dim, layer.cos_sin, True)
        return (
            query.view(tokens, config.num_heads, config.head_dim),
            key.view(tokens, config.num_kv_heads, config.head_dim),
            value.view(tokens, config.num_kv_heads, config.head_dim),
        )

    def _project_at_once(
        self,
        layer: Layer,
        x: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """Queries [T, heads, head_dim] of x [T, hidden], rotated; keys and values of it go to the cache."""
        config, qkv = self.config, layer.qkv(x)
        norms, cache = (layer.query_norm, layer.key_norm), (keys, values)
        self._kernels.qk_norm_rope_cache(
            qkv, *norms, positions, layer.cos_sin, *cache, slots, config.num_heads, True, config.norm_epsilon
        )
        return qkv.view(len(x), -1, config.head_dim)[:, : config.num_heads]

    def _attend(
        self, layer: Layer, query: torch.Tensor, batch: Batch, held: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Attention of a layer's queries over the cache: [T, query_heads * head_dim]."""
        options = (
            layer.options if batch.tree_mask is None else {**layer.options, "tree_mask": batch.tree_mask}
        )
        attended: torch.Tensor = self._kernels.attend(
            query,
            *held,
            block_tables=batch.block_tables,
            seq_lens=batch.seq_lens,
            query_start_loc=batch.query_start_loc,
            scale=self.config.query_scale,
            **options,
        )
        return attended.view(len(query), -1)

    def _norm_in_place(self, x: torch.Tensor, weight: torch.Tensor | None) -> None:
        if weight is not None:
            normed = torch.empty_like(x)
            self._kernels.rms_norm(normed, x, weight, self.config.norm_epsilon)
            x.copy_(normed)

    # -- weights

    def _layer(self, index: int) -> Layer:
        config, family = self.config, self.config.family
        prefix, hidden = f"model.layers.{index}.", config.hidden_size
        attention, window = prefix + "self_attn.", config.windows[index]
        query_size = self._qkv["q_proj"]
        options: dict[str, Any] = {} if window is None else {"window": window}
        if config.attention_softcap:
            options["softcap"] = config.attention_softcap
        before_mlp = "pre_feedforward_layernorm" if family.sandwich else "post_attention_layernorm"
        return Layer(
            input_norm=self._norm(prefix + "input_layernorm", hidden),
            qkv=self._linear(attention, self._qkv, hidden, config.qkv_bias),
            query_norm=self._norm(attention + "q_norm", config.head_dim) if family.qk_norm else None,
            key_norm=self._norm(attention + "k_norm", config.head_dim) if family.qk_norm else None,
            cos_sin=self._cos_sin if window is None else self._local_cos_sin,
            options=options,
            out=self._linear(attention, {"o_proj": hidden}, query_size, config.output_bias),
            after_attention=self._norm(prefix + "post_attention_layernorm", hidden)
            if family.sandwich
            else None,
            mlp_norm=self._norm(prefix + before_mlp, hidden),
            mlp=self._mlp(prefix, index),
            after_mlp=self._norm(prefix + "post_feedforward_layernorm", hidden) if family.sandwich else None,
        )

    def _mlp(self, prefix: str, index: int) -> Map:
        experts = self.config.experts
        if experts is None or index in experts.dense_layers:
            return self._feed_forward(f"{prefix}mlp.", self.config.intermediate_size)
        mixtral = self.config.family.experts == "mixtral"
        prefix += "block_sparse_moe." if mixtral else "mlp."
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        return Mixture(
            self._get(prefix + "gate.weight", experts.count, self.config.hidden_size),
            [
                self._feed_forward(f"{prefix}experts.{number}.", experts.inner_size, names)
                for number in range(experts.count)
            ],
            experts.per_token,
            experts.normalized,
        )

    def _feed_forward(
        self, prefix: str, inner: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    ) -> FeedForward:
        gate, up, down = names
        hidden, biased = self.config.hidden_size, self.config.mlp_bias
        return FeedForward(
            self._linear(prefix, {gate: inner, up: inner}, hidden, biased),
            self._linear(prefix, {down: hidden}, inner, biased),
            inner,
            self.config.activation,
            self._kernels,
        )

    def _linear(self, prefix: str, outputs: Mapping[str, int], inputs: int, biased: bool) -> Map:
        parts = [self._weights.linear(f"{prefix}{n}", (size, inputs)) for n, size in outputs.items()]
        bias = None
        if biased:
            bias = torch.cat([self._get(f"{prefix}{n}.bias", size) for n, size in outputs.items()])
        return make_linear([self._converted(part) for part in parts], bias, self._kernels, self._quantize)

    def _converted(self, loaded: Loaded) -> Loaded:
        """A weight on the device; a dense one in the dtype that is computed in."""
        if isinstance(loaded.weight, torch.Tensor):
            return Loaded(loaded.weight.to(self.device, self.dtype))
        return loaded.on(self.device)

    def _norm(self, name: str, size: int) -> torch.Tensor:
        weight = self._weights.get(f"{name}.weight", (size,))
        if self.config.family.unit_offset:
            weight = weight.to(torch.float32) + 1
        return weight.to(self.device, self.dtype)

    def _get(self, name: str, *shape: int) -> torch.Tensor:
        return self._weights.get(name, shape).to(self.device, self.dtype)

    def _rotation(self, rope: Any) -> torch.Tensor:
        return cos_sin_cache(rope, self.config.head_dim, self.config.context, self.dtype).to(self.device)
