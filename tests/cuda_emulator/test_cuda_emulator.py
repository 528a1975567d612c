"""The emulator itself: it computes what a GPU would, and it notices kernels that a GPU would not forgive."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

__global__ void indices_kernel(int* out) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

__global__ void reverse_kernel(const int* in, int* out, bool synchronise) {
  __shared__ int items[64];
  items[threadIdx.x] = in[threadIdx.x];
  if (synchronise) __syncthreads();
  out[threadIdx.x] = items[63 - threadIdx.x];
}

__global__ void shuffle_kernel(int* out) {
  const int lane = threadIdx.x % 32, value = threadIdx.x;
  int sum = value;
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  const int down = __shfl_down_sync(0xffffffffu, value, 3), first = __shfl_sync(0xffffffffu, value, 0);
  __syncwarp();
  out[threadIdx.x] = sum * 10000 + down * 100 + first + lane * 0;
}

__global__ void stuck_kernel() {
  if (threadIdx.x != 5) __syncthreads();
}

static cudaLaunchConfig_t config(dim3 grid, dim3 block) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  return config;
}

extern "C" {
int indices(int* out) {
  const auto c = config(dim3(2, 3, 2), dim3(4, 2, 3));
  return cudaLaunchKernelEx(&c, indices_kernel, out);
}
int reverse(const int* in, int* out, int synchronise) {
  const auto c = config(dim3(1), dim3(64));
  return cudaLaunchKernelEx(&c, reverse_kernel, in, out, synchronise != 0);
}
int shuffle(int* out) {
  const auto c = config(dim3(1), dim3(64));
  return cudaLaunchKernelEx(&c, shuffle_kernel, out);
}
int stuck() {
  const auto c = config(dim3(1), dim3(64));
  return cudaLaunchKernelEx(&c, stuck_kernel);
}
int too_large() {
  const auto c = config(dim3(1), dim3(2048));
  return cudaLaunchKernelEx(&c, stuck_kernel);
}
float through_half(float value) { return __half2float(__float2half_rn(value)); }
float through_bfloat16(float value) { return __bfloat162float(__float2bfloat16_rn(value)); }
}
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated")
    (folder / "kernels.cu").write_text(SOURCE)
    subprocess.run(
        [
            "g++",
            "-std=c++17",
            "-O1",
            "-shared",
            "-fPIC",
            "-I",
            HERE,
            "-x",
            "c++",
            "kernels.cu",
            "-o",
            "kernels.so",
        ],
        cwd=folder,
        check=True,
    )
    library = ctypes.CDLL(str(folder / "kernels.so"))
    for function in (library.through_half, library.through_bfloat16):
        function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    return library


def test_a_grid_of_three_dimensions_runs_every_thread_once(emulated):
    out = (ctypes.c_int * (12 * 24))()
    assert emulated.indices(out) == 0
    assert list(out) == [block * 1000 + thread for block in range(12) for thread in range(24)]


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_shared_memory_with_a_barrier_is_seen_by_all_threads(emulated, monkeypatch, order):
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    values, out = (ctypes.c_int * 64)(*range(64)), (ctypes.c_int * 64)()
    assert emulated.reverse(values, out, 1) == 0
    assert list(out) == list(range(63, -1, -1))


def test_shared_memory_without_a_barrier_depends_on_the_order_of_the_threads(emulated, monkeypatch):
    results = []
    for order, start in (("forward", 0), ("reverse", 100)):
        monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
        values, out = (ctypes.c_int * 64)(*range(start, start + 64)), (ctypes.c_int * 64)()
        assert emulated.reverse(values, out, 0) == 0
        results.append([value - start for value in out])
    assert results[0] != results[1]


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_shuffles_exchange_values_within_a_warp(emulated, monkeypatch, order):
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    out = (ctypes.c_int * 64)()
    assert emulated.shuffle(out) == 0
    for thread in range(64):
        warp, lane = divmod(thread, 32)
        total = sum(range(32 * warp, 32 * warp + 32))
        down = thread + 3 if lane + 3 < 32 else thread
        assert out[thread] == total * 10000 + down * 100 + 32 * warp


def test_a_barrier_that_a_thread_never_reaches_fails_the_launch(emulated):
    assert emulated.stuck() == 719


def test_a_block_of_too_many_threads_fails_the_launch(emulated):
    assert emulated.too_large() == 9


@pytest.mark.parametrize(
    "value,half,bfloat16",
    [
        (1.0, 1.0, 1.0),
        (1 + 2**-11, 1.0, 1.0),  # half way: to even
        (1 + 3 * 2**-11, 1 + 2**-9, 1.0),
        (1 + 2**-8, 1 + 2**-8, 1.0),
        (1 + 3 * 2**-8, 1 + 3 * 2**-8, 1 + 2**-6),
        (65520.0, float("inf"), 65536.0),
        (2.0**-25, 0.0, 2.0**-25),
        (3 * 2.0**-25, 2 * 2.0**-24, 3 * 2.0**-25),
        (float("-inf"), float("-inf"), float("-inf")),
    ],
)
def test_conversions_round_to_nearest_even(emulated, value, half, bfloat16):
    assert emulated.through_half(value) == half
    assert emulated.through_bfloat16(value) == bfloat16
