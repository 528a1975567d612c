from ._ops import ops


def triple(x):
    return ops.triple(x)


__all__ = ["triple"]
