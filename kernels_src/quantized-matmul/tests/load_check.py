"""Run by the load gates in every torch that a variant promises: each operator against its reference."""

import torch


def check(kernel):
    torch.manual_seed(0)
    x = torch.randn(3, 64)
    blocks = torch.randint(0, 60, (5, 36), dtype=torch.uint8)  # of which no two bytes are a large float16
    for packed in (
        kernel.quantize(torch.randn(5, 64), "int8"),
        kernel.quantize(torch.randn(5, 64), "int4", 32),
        kernel.from_gguf(blocks, "Q4_0", (5, 64)),
        kernel.quantize(torch.randn(5, 64), "fp8"),
    ):
        exact = x.double() @ kernel.dequantize(packed).double().T
        torch.testing.assert_close(kernel.matmul(x, packed).double(), exact, rtol=1e-5, atol=1e-5)
