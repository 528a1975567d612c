"""The stable ABI's values and functions against torch's own, in whatever torch this runs in."""

import torch


def check(kernel):
    ops = kernel.ops
    device = torch.device("meta", 5)
    said = ops.scalars(7, 0.5, True, "", device, torch.float16)
    assert said[:5] == (-7, -0.5, False, "!", device), said
    assert said[5] in (torch.float16, 5), said  # a ScalarType of a result is an int in older releases
    assert ops.scalars(-(2**62), -1e300, False, "ü\0x", torch.device("cpu"), torch.int8)[:4] == (
        2**62,
        1e300,
        True,
        "ü\0x!",
    )

    x = torch.randn(4, 6)
    ints, floats, tensors, strings = ops.lists([1, -2], [], [x, x[0]], ["a", ""])
    assert (ints, floats, strings) == ([1, -2, 2], [0.0], ["a", "", "2"])
    assert torch.equal(tensors[0], x) and tensors[0].data_ptr() == x.data_ptr()
    assert torch.equal(tensors[2], x) and tensors[2].data_ptr() != x.data_ptr()

    assert ops.optionals(None, None, None, None) == (None, None, None, None)
    i, s, t, items = ops.optionals(-3, "s", x, [4, 5])
    assert (i, s, items) == (-3, "s", [4, 5]) and t.data_ptr() == x.data_ptr()

    expected = [
        x,
        x[:, 1:3],
        torch.nn.functional.pad(x, (1, 2), value=3.5),
        x.amax(1, True),
        x.amax((0, 1)),
        x.T,
        x.T,
        x.flatten(),
        x[None],
        x,
        x[1],
        x @ x.T,
        x.flatten(),
        x.view(6, 4),
        x.double(),
        x.sum(1, True),
        x.sum(),
        x - 0.5 * x,
        torch.full((2, 3), 7.5, dtype=torch.half),
        torch.empty(4, 0, dtype=torch.int),
        torch.zeros(2, 2),
        torch.tensor([[0.0, 2.0], [1.0, 3.0]]),
        torch.zeros(3, 1, dtype=torch.long),
        x.flatten()[:2],
    ]
    results = ops.functions(x)
    assert len(results) == len(expected)
    for number, result in enumerate(results):
        wanted = expected[number]
        assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape), number
        torch.testing.assert_close(result, wanted, msg=lambda text, n=number: f"function {n}: {text}")

    del results, result
    assert ops.facts(x, 100_000) == (True, False, 4, 100_000, torch.device("cuda", 3), 1)
    try:
        ops.facts(torch.tensor(1.0), 1)
    except RuntimeError as error:
        assert "x has no dimension" in str(error)
    else:
        raise AssertionError("a failed check did not raise")
