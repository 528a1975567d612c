"""Attention over a paged key-value cache, and the writes that fill the cache.

Two cache layouts, told apart by their number of dimensions:

* *flash* (default): key and value ``[num_blocks, block_size, kv_heads, head_size]``
* *classic*: key ``[num_blocks, kv_heads, head_size / x, block_size, x]``, value
  ``[num_blocks, kv_heads, head_size, block_size]``

float32, float16 and bfloat16, one dtype for query and cache; all sums are kept in float32.
"""

from typing import Optional, Union

import torch

from ._ops import add_op_namespace_prefix, ops

__all__ = [
    "attend",
    "copy_blocks",
    "paged_attention_v1",
    "paged_attention_v2",
    "reshape_and_cache",
    "reshape_and_cache_flash",
]


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
    tree_mask: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    return_lse: bool = False,
) -> Union[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Attention of a step's tokens, any mixture of prefill chunks, decodes and draft trees.

    The tokens of sequence ``i`` are ``query[query_start_loc[i]:query_start_loc[i + 1]]``: its last ones,
    whose keys and values are in the cache already. A token that sees no key (an empty sequence) gets zeros.

    Args:
        query: ``[num_tokens, q_heads, head_size]``, head_size at most 256; q_heads is a multiple of kv_heads.
        key_cache, value_cache: the cache in either layout, with any block size.
        block_tables: int32 ``[num_seqs, max_blocks]``, the blocks of each sequence in order.
        seq_lens: int32 ``[num_seqs]``, tokens in the cache for each sequence, this step's included.
        query_start_loc: int32 ``[num_seqs + 1]``, from 0 to num_tokens.
        scale: what the logits are multiplied with, usually ``head_size ** -0.5``.
        causal: a token sees the keys up to its own; otherwise every key of its sequence.
        window: a token sees this many keys, its own included. Needs ``causal``.
        softcap: logits become ``softcap * tanh(logits / softcap)``; 0 leaves them.
        alibi_slopes: float32 ``[q_heads]``; adds ``slope * (key position - query position)``.
        tree_mask: int32 ``[num_tokens, W]``. Of its sequence's last ``32 * W`` tokens, a token sees only those
            whose bits are set, the least significant first: bit ``b`` of word ``w`` is number ``w * 32 + b`` of
            them. It sees all tokens before them, and none that ``causal`` hides; its own bit is set like the others.
            Bits for tokens before the sequence's first mean nothing. With a mask, a window counts the keys
            that a token sees and ALiBi's distances are counted in them. Needs ``causal``.
        out: where to write, like ``query``; a new tensor without it.
        return_lse: also return the log of the sum of exponentials, float32 ``[num_tokens, q_heads]`` (minus
            infinity for a token that sees no key).

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
        tree_mask,
        scale,
        causal,
        window or 0,
        softcap,
    )
    return out if lse is None else (out, lse)


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
    flash layout works too). ``max_seq_len`` is not needed. ``kv_cache_dtype`` must be ``"auto"``, for which
    ``k_scale`` and ``v_scale`` have no meaning.

    Raises:
        ValueError: ``num_kv_heads`` or ``block_size`` other than the cache's, a kv_cache_dtype other than
            "auto", or a block-sparse argument.
        RuntimeError: as for :func:`attend`.
    """
    _check_kv_cache_dtype(kv_cache_dtype)
    if blocksparse_vert_stride > 1 or blocksparse_local_blocks or blocksparse_head_sliding_step:
        raise ValueError("block-sparse attention is not supported; leave the blocksparse_* arguments out")
    classic = key_cache.dim() == 5
    found = (key_cache.shape[1 if classic else -2], key_cache.shape[3 if classic else 1])
    if found != (num_kv_heads, block_size):
        raise ValueError(
            f"num_kv_heads={num_kv_heads} and block_size={block_size} do not describe a key_cache with "
            f"{found[0]} KV heads and blocks of {found[1]}"
        )
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
    must be distinct. ``kv_cache_dtype`` must be ``"auto"``.

    Raises:
        ValueError: a kv_cache_dtype other than "auto", or a cache in the flash layout.
        RuntimeError: a tensor of the wrong shape, dtype, device or stride; on the CPU also a slot out of
            range.
    """
    _check_kv_cache_dtype(kv_cache_dtype)
    if key_cache.dim() != 5:
        raise ValueError(f"key_cache must have the 5 dimensions of the classic layout, got {key_cache.dim()}")
    ops.reshape_and_cache(key, value, key_cache, value_cache, slot_mapping)


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
    _check_kv_cache_dtype(kv_cache_dtype)
    if key_cache.dim() != 4:
        raise ValueError(f"key_cache must have the 4 dimensions of the flash layout, got {key_cache.dim()}")
    ops.reshape_and_cache(key, value, key_cache, value_cache, slot_mapping)


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


def _check_kv_cache_dtype(kv_cache_dtype: str) -> None:
    if kv_cache_dtype != "auto":
        raise ValueError(
            f'kv_cache_dtype must be "auto" (the dtype of the cache tensors), got "{kv_cache_dtype}"'
        )


def _register_fakes() -> None:
    """The ops return nothing and allocate nothing, so tracing them is to do nothing."""
    for op in ("attend", "reshape_and_cache", "copy_blocks"):
        torch.library.register_fake(add_op_namespace_prefix(op))(lambda *args: None)


_register_fakes()
