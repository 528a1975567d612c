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
#include <emulated_hopper.h>

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

// The first warp copies a tile of 8 x 128 bytes, the second reads row 1 from where its swizzled pieces are.
__global__ void landing_kernel(const cuda_emulator::TileMap map, uint8_t* out, bool announce, bool wait) {
  __shared__ cuda_emulator::Landing full;
  uint8_t* const shared = cuda_emulator::dynamic_shared();
  uint8_t* const tile = shared + (1024 - reinterpret_cast<uintptr_t>(shared) % 1024) % 1024;
  if (threadIdx.x == 0) full.init(1);
  __syncthreads();
  if (threadIdx.x == 0) {
    cuda_emulator::copy_tile(tile, map, 64, 2, full);
    if (announce) full.expect(8 * 128);
  }
  if (threadIdx.x != 32) return;
  if (wait) full.wait(0);
  for (int byte = 0; byte < 128; ++byte) out[byte] = tile[128 + (byte / 16 ^ 1) * 16 + byte % 16];
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
int landing(const uint8_t* in, uint8_t* out, int announce, int wait, int allowed) {
  auto c = config(dim3(1), dim3(64));
  c.dynamicSmemBytes = 60 << 10;
  cuda_emulator::TileMap map;
  const cuda_emulator::TileMap tiling = {in, 2, {160, 4}, {1, 160}, {128, 8}};
  if (cuda_emulator::make_tile_map(tiling, &map)) return -1;
  if (cuda_emulator::allow_shared(landing_kernel, (allowed ? 64 : 48) << 10)) return -2;
  return cudaLaunchKernelEx(&c, landing_kernel, map, out, announce != 0, wait != 0);
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


def landed(emulated, announce=True, wait=True, allowed=True):
    """The matrix is 4 rows of 160 bytes, the tile begins at byte 64 of row 2: row 3 is its row 1."""
    place = (ctypes.c_uint8 * (4 * 160 + 16))()
    start = -ctypes.addressof(place) % 16
    place[start : start + 640] = [byte % 251 for byte in range(640)]
    out = (ctypes.c_uint8 * 128)()
    matrix = ctypes.c_void_p(ctypes.addressof(place) + start)
    return emulated.landing(matrix, out, announce, wait, allowed), list(out)


TILE_ROW = [byte % 251 for byte in range(3 * 160 + 64, 4 * 160)] + 32 * [0]


def test_more_shared_memory_than_was_asked_for_fails_the_launch(emulated):
    assert landed(emulated, allowed=False)[0] == 1


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_a_tile_that_is_waited_for_lands_swizzled_with_zeros_past_its_ends(emulated, monkeypatch, order):
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    assert landed(emulated) == (0, TILE_ROW)


def test_a_tile_that_is_not_waited_for_has_not_landed(emulated, monkeypatch):
    monkeypatch.delenv("CUDA_EMULATOR_ORDER", raising=False)
    status, row = landed(emulated, wait=False)
    assert status == 0
    assert row != TILE_ROW


def test_a_landing_that_lacks_its_arrival_fails_the_launch(emulated):
    assert landed(emulated, announce=False)[0] == 719


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
