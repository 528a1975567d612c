"""Run by the load gates in every torch that a variant promises: the operator against its reference."""

import torch


def check(kernel):
    torch.manual_seed(0)
    x, weight = torch.randn(5, 70), torch.randn(29, 70)
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(kernel.linear(x, weight).double(), exact, rtol=1e-5, atol=1e-5)
