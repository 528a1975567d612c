"""Run by the load gates in every torch that a variant promises: one operator against its reference."""

import torch


def check(kernel):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 65), torch.randn(65)
    out = torch.empty_like(x)
    kernel.rms_norm(out, x, weight, 1e-6)
    exact = x.double()
    exact = exact / torch.sqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-6) * weight.double()
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)
