"""What crosses torch's stable ABI: values there and back, and its functions."""

from ._ops import ops

__all__ = ["ops"]
