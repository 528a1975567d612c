"""Numbers of eight bits as integers: half of the GPUs have no instruction for them, and Triton no type there."""

import triton
import triton.language as tl

SAME = tl.constexpr(0)
E4M3 = tl.constexpr(1)
E5M2 = tl.constexpr(2)


@triton.jit
def decode(bits, CACHE: tl.constexpr):
    """float32 of uint8, by way of float16, which has all of these numbers."""
    wide = bits.to(tl.int32)
    if CACHE == E4M3:
        magnitude = wide & 0x7F
        magnitude = magnitude | ((magnitude + 1) & 0x80)  # the NaN, all ones, carries into the exponent
        half = (wide & 0x80) << 8 | magnitude << 7
        unit = 256.0  # the exponent is 8 too small
    else:  # the upper half of a float16
        half = wide << 8
        unit = 1.0
    return half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * unit


@triton.jit
def encode(values, CACHE: tl.constexpr):
    """uint8 of float32: to nearest, ties to even; beyond the largest number to it, infinity too; NaN stays."""
    MANTISSA: tl.constexpr = 3 if CACHE == E4M3 else 2
    LARGEST: tl.constexpr = 0x7E if CACHE == E4M3 else 0x7B
    BIAS: tl.constexpr = 7 if CACHE == E4M3 else 15
    SHIFT: tl.constexpr = 23 - MANTISSA
    REBIAS: tl.constexpr = (127 - BIAS) << 23
    UNIT: tl.constexpr = (
        127 + 24 - BIAS - MANTISSA
    ) << 23  # the bits of a number of which a unit is a subnormal's
    bits = values.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    finite = tl.minimum(magnitude, 0x7F000000)  # room for the sums below
    normal = (finite + ((1 << (SHIFT - 1)) - 1) + ((finite >> SHIFT) & 1) - REBIAS) >> SHIFT
    unit = tl.full(values.shape, UNIT, tl.int32)
    raised = finite.to(tl.float32, bitcast=True) + unit.to(tl.float32, bitcast=True)
    subnormal = raised.to(tl.int32, bitcast=True) - UNIT
    rounded = tl.minimum(tl.where(finite < REBIAS + (1 << 23), subnormal, normal), LARGEST)
    code = tl.where(magnitude > 0x7F800000, 0x7F, rounded)
    return (((bits >> 24) & 0x80) | code).to(tl.uint8)
