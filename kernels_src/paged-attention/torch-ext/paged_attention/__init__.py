"""Attention over a paged key-value cache, and the writes that fill the cache.

Two cache layouts, told apart by their number of dimensions:

* *flash* (default): key and value ``[num_blocks, block_size, kv_heads, head_size]``
* *classic*: key ``[num_blocks, kv_heads, head_size / x, block_size, x]``, value
  ``[num_blocks, kv_heads, head_size, block_size]``

float32, float16 and bfloat16 queries over a cache of their dtype, or of ``torch.float8_e4m3fn`` or
``torch.float8_e5m2``, whose numbers count times a scale; all sums are kept in float32.
"""

from typing import Optional, Union

import torch

from ._ops import add_op_namespace_prefix, ops

__all__ = [
    "attend",
    "convert_fp8",
    "copy_blocks",
    "merge_states",
    "paged_attention_v1",
    "paged_attention_v2",
    "reshape_and_cache",
    "reshape_and_cache_flash",
    "swap_blocks",
]

Scale = Union[float, torch.Tensor, None]

_FP8 = {
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    *,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: Optional[int] = None,
    softcap: float = 0.0,
    alibi_slopes: Optional[torch.Tensor] = None,
    sinks: Optional[torch.Tensor] = None,
    k_scale: Scale = None,
    v_scale: Scale = None,
    tree_mask: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    return_lse: bool = False,
) -> Union[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Attention of a step's tokens, any mixture of prefill chunks, decodes and draft trees.

    The tokens of sequence ``i`` are ``query[query_start_loc[i]:query_start_loc[i + 1]]``: its last ones,
    whose keys and values are in the cache already. A token that sees no key (an empty sequence) gets zeros.

    Args:
        query: ``[num_tokens, q_heads, head_size]``, head_size at most 256; q_heads is a multiple of kv_heads.
        key_cache, value_cache: the cache in either layout, with any block size; of the query's dtype, float8_e4m3fn
            or float8_e5m2.
        block_tables: int32 ``[num_seqs, max_blocks]``, the blocks of each sequence in order.
        seq_lens: int32 ``[num_seqs]``, tokens in the cache for each sequence, this step's included.
        query_start_loc: int32 ``[num_seqs + 1]``, from 0 to num_tokens.
        scale: what the logits are multiplied with, usually ``head_size ** -0.5``.
        causal: a token sees the keys up to its own; otherwise every key of its sequence.
        window: a token sees this many keys, its own included. Needs ``causal``.
        softcap: logits become ``softcap * tanh(logits / softcap)``; 0 leaves them.
        alibi_slopes: float32 ``[q_heads]``; adds ``slope * (key position - query position)``.
        sinks: float32 ``[q_heads]``: of each head a logit that takes part in the softmax and has no value. It is
            neither scaled nor capped; minus infinity is no sink.
        k_scale, v_scale: what the numbers of an FP8 cache are multiplied with; a float, or float32 of 1 element on
            the query's device, where it stays. None is 1. For other caches there is none.
        tree_mask: int32 ``[num_tokens, W]``. Of its sequence's last ``32 * W`` tokens, a token sees only those
            whose bits are set, the least significant first: bit ``b`` of word ``w`` is number ``w * 32 + b`` of
            them. It sees all tokens before them, and none that ``causal`` hides; its own bit is set like the others.
            Bits for tokens before the sequence's first mean nothing. With a mask, a window counts the keys
            that a token sees and ALiBi's distances are counted in them. Needs ``causal``.
        out: where to write, like ``query``; a new tensor without it.
        return_lse: also return the log of the sum of exponentials, the sink's among them, float32
            ``[num_tokens, q_heads]``. For a token that sees no key it is the sink, without one minus infinity.

    Raises:
        ValueError: a window that is not positive, or a window or tree_mask without ``causal``.
        RuntimeError: a tensor of the wrong shape, dtype, device or stride; on the CPU also a value out of
            range.
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (the token itself) or None, got {window}")
    if window is not None and not causal:
        raise ValueError("window needs causal=True: it counts the keys up to the token's own")
    if tree_mask is not None and not causal:
        raise ValueError("tree_mask needs causal=True: a node sees only what comes before it")
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:2], dtype=torch.float32) if return_lse else None
    ops.attend(
        out,
        lse,
        query,
        key_cache,
        value_cache,
        block_tables,
        seq_lens,
        query_start_loc,
        alibi_slopes,
        sinks,
        _scale_tensor(k_scale, query),
        _scale_tensor(v_scale, query),
        tree_mask,
        scale,
        causal,
        window or 0,
        softcap,
    )
    return out if lse is None else (out, lse)


def merge_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    out_lse: Optional[torch.Tensor] = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins the attention of the same tokens over two sets of keys: what it is over both.

    Sinks belong to one of the two alone.

    Args:
        out_a, out_b: ``[num_tokens, heads, head_size]``, float32, float16 or bfloat16.
        lse_a, lse_b: float32 ``[num_tokens, heads]``, as :func:`attend` returns it. Where it is minus infinity, the
            output with it is not read; where both are, the result is zeros and minus infinity.
        out, out_lse: where to write, like ``out_a`` and ``lse_a``, which they may be; new tensors without them.

    Returns:
        The output and its log-sum-exp.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    if out is None:
        out = torch.empty_like(out_a, memory_format=torch.contiguous_format)
    if out_lse is None:
        out_lse = torch.empty_like(lse_a, memory_format=torch.contiguous_format)
    ops.merge_states(out, out_lse, out_a, lse_a, out_b, lse_b)
    return out, out_lse


def paged_attention_v1(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    num_kv_heads: int,
    scale: float,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    block_size: int,
    max_seq_len: int,
    alibi_slopes: Optional[torch.Tensor],
    kv_cache_dtype: str,
    k_scale: Union[float, torch.Tensor],
    v_scale: Union[float, torch.Tensor],
    tp_rank: int = 0,
    blocksparse_local_blocks: int = 0,
    blocksparse_vert_stride: int = 0,
    blocksparse_block_size: int = 64,
    blocksparse_head_sliding_step: int = 0,
) -> None:
    """Decode attention, one query token per sequence, written to ``out``.

    ``query`` and ``out`` are ``[num_seqs, q_heads, head_size]``; the cache is in the classic layout (the
    flash layout works too). ``max_seq_len`` is not needed. ``kv_cache_dtype`` is ``"auto"``, the dtype of the cache
    tensors, or what a cache of uint8 holds: ``"fp8"`` (``"fp8_e4m3"``) or ``"fp8_e5m2"``. ``k_scale`` and ``v_scale``
    have a meaning for FP8 alone.

    Raises:
        ValueError: ``num_kv_heads`` or ``block_size`` other than the cache's, a kv_cache_dtype that is not known or
            not that of the cache, or a block-sparse argument.
        RuntimeError: as for :func:`attend`.
    """
    if blocksparse_vert_stride > 1 or blocksparse_local_blocks or blocksparse_head_sliding_step:
        raise ValueError("block-sparse attention is not supported; leave the blocksparse_* arguments out")
    classic = key_cache.dim() == 5
    found = (key_cache.shape[1 if classic else -2], key_cache.shape[3 if classic else 1])
    if found != (num_kv_heads, block_size):
        raise ValueError(
            f"num_kv_heads={num_kv_heads} and block_size={block_size} do not describe a key_cache with "
            f"{found[0]} KV heads and blocks of {found[1]}"
        )
    key_cache = _cache_as(key_cache, "key_cache", kv_cache_dtype)
    value_cache = _cache_as(value_cache, "value_cache", kv_cache_dtype)
    scaled = key_cache.dtype in _FP8.values()
    ops.attend(
        out,
        None,
        query,
        key_cache,
        value_cache,
        block_tables,
        seq_lens,
        None,
        alibi_slopes,
        None,
        _scale_tensor(k_scale, query) if scaled else None,
        _scale_tensor(v_scale, query) if scaled else None,
        None,
        scale,
        True,
        0,
        0.0,
    )


def paged_attention_v2(
    out: torch.Tensor,
    exp_sum: torch.Tensor,
    max_logits: torch.Tensor,
    tmp_out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    num_kv_heads: int,
    scale: float,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    block_size: int,
    max_seq_len: int,
    alibi_slopes: Optional[torch.Tensor],
    kv_cache_dtype: str,
    k_scale: Union[float, torch.Tensor],
    v_scale: Union[float, torch.Tensor],
    tp_rank: int = 0,
    blocksparse_local_blocks: int = 0,
    blocksparse_vert_stride: int = 0,
    blocksparse_block_size: int = 64,
    blocksparse_head_sliding_step: int = 0,
) -> None:
    """:func:`paged_attention_v1` with the arguments of the partitioned variant.

    ``exp_sum``, ``max_logits`` and ``tmp_out`` are scratch space for partial results. They are not used.
    """
    paged_attention_v1(
        out,
        query,
        key_cache,
        value_cache,
        num_kv_heads,
        scale,
        block_tables,
        seq_lens,
        block_size,
        max_seq_len,
        alibi_slopes,
        kv_cache_dtype,
        k_scale,
        v_scale,
        tp_rank,
        blocksparse_local_blocks,
        blocksparse_vert_stride,
        blocksparse_block_size,
        blocksparse_head_sliding_step,
    )


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache_dtype: str,
    k_scale: Union[float, torch.Tensor],
    v_scale: Union[float, torch.Tensor],
) -> None:
    """Writes the keys and values of a step's tokens into a cache of the classic layout.

    ``key`` and ``value`` are ``[num_tokens, kv_heads, head_size]``. ``slot_mapping`` is int64, one slot
    (``block * block_size + offset``) for each of the first tokens; a negative slot skips its token, and slots
    must be distinct. ``kv_cache_dtype`` is ``"auto"``, the dtype of the cache tensors, or what a cache of uint8 is to
    hold: ``"fp8"`` (``"fp8_e4m3"``) or ``"fp8_e5m2"``. An FP8 cache gets the numbers nearest to the keys over
    ``k_scale`` and the values over ``v_scale`` (ties to even; what is too large becomes the largest, NaN stays).

    Raises:
        ValueError: a kv_cache_dtype that is not known or not that of the cache, or a cache in the flash layout.
        RuntimeError: a tensor of the wrong shape, dtype, device or stride; on the CPU also a slot out of
            range.
    """
    if key_cache.dim() != 5:
        raise ValueError(f"key_cache must have the 5 dimensions of the classic layout, got {key_cache.dim()}")
    _write(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale)


def reshape_and_cache_flash(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache_dtype: str = "auto",
    k_scale: Union[float, torch.Tensor] = 1.0,
    v_scale: Union[float, torch.Tensor] = 1.0,
) -> None:
    """:func:`reshape_and_cache` for a cache of the flash layout."""
    if key_cache.dim() != 4:
        raise ValueError(f"key_cache must have the 4 dimensions of the flash layout, got {key_cache.dim()}")
    _write(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale)


def _write(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache_dtype: str,
    k_scale: Scale,
    v_scale: Scale,
) -> None:
    key_cache = _cache_as(key_cache, "key_cache", kv_cache_dtype)
    value_cache = _cache_as(value_cache, "value_cache", kv_cache_dtype)
    scaled = key_cache.dtype in _FP8.values()
    ops.reshape_and_cache(
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        _scale_tensor(k_scale, key) if scaled else None,
        _scale_tensor(v_scale, key) if scaled else None,
    )


def copy_blocks(
    key_caches: list[torch.Tensor], value_caches: list[torch.Tensor], block_mapping: torch.Tensor
) -> None:
    """Copies whole blocks within each layer's caches, for copy-on-write.

    ``block_mapping`` is int64 ``[num_pairs, 2]`` of (source, destination). No destination may be a source or
    a destination of another pair: on a GPU all pairs are copied at once.

    Raises:
        RuntimeError: caches whose blocks are not contiguous; on the CPU also a block out of range.
    """
    ops.copy_blocks(key_caches, value_caches, block_mapping)


def swap_blocks(src: torch.Tensor, dst: torch.Tensor, block_mapping: torch.Tensor) -> None:
    """Copies whole blocks of ``src`` into ``dst``, which may be on another device: to the host and back.

    ``block_mapping`` is int64 ``[num_pairs, 2]`` of (source, destination), on the CPU; the pairs are copied in order.
    On a GPU the copies are queued on the current stream: wait for it before reading a ``dst`` in pinned memory.

    Raises:
        ValueError: caches whose dtype or blocks are not alike, or a mapping that is not as above.
    """
    if src.dtype != dst.dtype or src.shape[1:] != dst.shape[1:]:
        raise ValueError(
            f"src and dst must have the same dtype and blocks, got {src.dtype} {tuple(src.shape)} and "
            f"{dst.dtype} {tuple(dst.shape)}"
        )
    if block_mapping.dtype != torch.int64 or block_mapping.dim() != 2 or block_mapping.shape[1] != 2:
        raise ValueError(
            f"block_mapping must be int64 [num_pairs, 2], got {block_mapping.dtype} {list(block_mapping.shape)}"
        )
    if block_mapping.device.type != "cpu":
        raise ValueError(f"block_mapping must be on the CPU, got {block_mapping.device}; move it with .cpu()")
    pairs = block_mapping.tolist()
    for source, destination in pairs:
        for block, cache, name in ((source, src, "src"), (destination, dst, "dst")):
            if not 0 <= block < cache.shape[0]:
                raise ValueError(
                    f"block_mapping must hold blocks of {name} (0 to {cache.shape[0] - 1}), got {block}"
                )
    for source, destination in pairs:
        dst[destination].copy_(src[source], non_blocking=True)


def convert_fp8(output: torch.Tensor, input: torch.Tensor, scale: float = 1.0, kv_dtype: str = "fp8") -> None:
    """Writes ``input`` to ``output`` in FP8, or what it is in FP8 to a wider ``output``.

    One of the two is uint8 or of the dtype that ``kv_dtype`` names (``"fp8"``, ``"fp8_e4m3"``, ``"fp8_e5m2"``) and
    holds values over ``scale``, rounded as in :func:`reshape_and_cache`; the other is float32, float16 or bfloat16.
    Both have the same shape, and what is in dimension 0 is contiguous.

    Raises:
        ValueError: a kv_dtype that is not known or not that of the FP8 tensor.
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    if output.element_size() == 1:
        output = _cache_as(output, "output", kv_dtype)
    else:
        input = _cache_as(input, "input", kv_dtype)
    ops.convert_fp8(output, input, scale)


def _cache_as(cache: torch.Tensor, name: str, kv_cache_dtype: str) -> torch.Tensor:
    """The cache as the dtype it holds, which uint8 does not tell."""
    if kv_cache_dtype == "auto":
        if cache.dtype == torch.uint8:
            raise ValueError(
                f'kv_cache_dtype must be "fp8", "fp8_e4m3" or "fp8_e5m2" for a {name} of uint8, got "auto"'
            )
        return cache
    if kv_cache_dtype not in _FP8:
        known = ", ".join(f'"{each}"' for each in _FP8)
        raise ValueError(f'kv_cache_dtype must be "auto" or one of {known}, got "{kv_cache_dtype}"')
    dtype = _FP8[kv_cache_dtype]
    if cache.dtype not in (torch.uint8, dtype):
        raise ValueError(f'{name} must be uint8 or {dtype} for "{kv_cache_dtype}", got {cache.dtype}')
    return cache.view(dtype)


def _scale_tensor(scale: Scale, like: torch.Tensor) -> Optional[torch.Tensor]:
    """A float as a tensor of its own, 1 as none: the caches of no scale have that one."""
    if isinstance(scale, torch.Tensor) or scale is None:
        return scale
    return None if scale == 1 else like.new_full((1,), scale, dtype=torch.float32)


def _register_fakes() -> None:
    """The ops return nothing and allocate nothing, so tracing them is to do nothing."""
    for op in ("attend", "merge_states", "reshape_and_cache", "copy_blocks", "convert_fp8"):
        torch.library.register_fake(add_op_namespace_prefix(op))(lambda *args: None)


_register_fakes()
