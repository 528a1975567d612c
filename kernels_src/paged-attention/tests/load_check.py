"""Run by the load gates in every torch that a variant promises: one operator against its reference."""

import torch


def check(kernel):
    """Two new tokens after three in the cache: causal attention over blocks 2, 0, 1 of two tokens each."""
    torch.manual_seed(0)
    keys, values = torch.randn(2, 3, 2, 1, 8)
    query = torch.randn(2, 2, 8)
    out = kernel.attend(
        query,
        keys,
        values,
        block_tables=torch.tensor([[2, 0, 1]], dtype=torch.int32),
        seq_lens=torch.tensor([5], dtype=torch.int32),
        query_start_loc=torch.tensor([0, 2], dtype=torch.int32),
        scale=0.5,
    )
    key, value = (cache[[2, 0, 1]].reshape(6, 8)[:5].double() for cache in (keys, values))
    logits = query.double() @ key.T * 0.5
    logits[0, :, 4] = -torch.inf
    torch.testing.assert_close(out.double(), torch.softmax(logits, -1) @ value, rtol=1e-5, atol=1e-6)
