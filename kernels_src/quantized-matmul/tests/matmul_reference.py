"""The product with a packed weight in plain torch and float64, element by element from the definition."""

from __future__ import annotations

import torch


def weights(packed) -> torch.Tensor:
    rows, columns = packed.shape
    out = torch.empty(rows, columns, dtype=torch.float64)
    for n in range(rows):
        for k in range(columns):
            if packed.format == "int8":
                out[n, k] = packed.weight[n, k].item() * packed.scales[n].item()
            else:
                byte, group = packed.weight[n, k // 2].item(), k // packed.group_size
                value = byte >> 4 if k % 2 else byte & 15
                zero = 8 if packed.zeros is None else packed.zeros[n, group].item()
                out[n, k] = (value - zero) * packed.scales[n, group].item()
    return out


def matmul(x, weight, bias=None):
    out = x.double() @ weight.T
    return out if bias is None else out + bias.double()
