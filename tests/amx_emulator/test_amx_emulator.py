"""The emulator itself: it computes what a processor with AMX-INT8 would, and ends a process that would fault there."""

from __future__ import annotations

import platform
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86_64 only")

HERE = Path(__file__).resolve().parent

# Tiles 0 (the sums) and 1 have 3 rows, 2 is what 8 bytes of a row meet. A case changes one thing.
SOURCE = r"""
#include <immintrin.h>
#include <emulated_amx.h>
#include <string>
#include <thread>

int main(int, char** arguments) {
  const std::string wrong = arguments[1];
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {16, 8, 16};
    uint8_t rows[16] = {3, 3, 2};
  } config;
  if (wrong == "rows") config.rows[0] = 17;
  if (wrong == "bytes") config.row_bytes[0] = 65;
  if (wrong == "no bytes") config.row_bytes[1] = 0;
  if (wrong == "tiles") config.rows[8] = config.row_bytes[8] = 4;
  if (wrong == "palette") config.palette = 2;
  if (wrong == "reserved") config.reserved[3] = 1;
  if (wrong == "sizes") config.rows[1] = 2;
  if (wrong != "nothing") _tile_loadconfig(&config);
  if (wrong == "twice") _tile_loadconfig(&config);
  if (wrong == "released") _tile_release();
  if (wrong == "thread") std::thread([] { _tile_zero(0); }).join();
  if (wrong == "tile") _tile_zero(3);
  uint8_t x[3][8], weights[2][16];
  int32_t sums[3][4];
  for (int i = 0; i < 24; ++i) x[i / 8][i % 8] = uint8_t(251 * i);
  for (int i = 0; i < 32; ++i) weights[i / 16][i % 16] = uint8_t(77 * i);
  _tile_zero(0);
  _tile_loadd(1, x, 8);
  _tile_loadd(2, weights, 16);
  if (wrong == "same") _tile_dpbssd(0, 1, 1);
  _tile_dpbssd(0, 1, 2);
  _tile_dpbusd(0, 1, 2);
  _tile_stored(0, sums, 16);
  _tile_release();
  for (int i = 0; i < 12; ++i) std::printf("%d ", sums[i / 4][i % 4]);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated")
    (folder / "tiles.cpp").write_text(SOURCE)
    command = ["g++", "-std=c++17", "-pthread", "-I", HERE, "tiles.cpp", "-o", "tiles"]
    subprocess.run(command, cwd=folder, check=True)

    def run(wrong):
        return subprocess.run([folder / "tiles", wrong], capture_output=True, text=True)

    return run


def signed(byte):
    return (byte + 128) % 256 - 128


def test_products_of_tiles_are_those_of_their_bytes(program):
    x = [251 * i % 256 for i in range(24)]
    weights = [signed(77 * i % 256) for i in range(32)]
    expected = [
        sum(
            (signed(x[row * 8 + k]) + x[row * 8 + k]) * weights[k // 4 * 16 + column * 4 + k % 4]
            for k in range(8)
        )
        for row in range(3)
        for column in range(4)
    ]
    done = program("")
    assert done.returncode == 0
    assert [int(word) for word in done.stdout.split()] == expected


@pytest.mark.parametrize(
    "wrong,words",
    [
        ("nothing", "before tiles are configured on this thread"),
        ("thread", "before tiles are configured on this thread"),
        ("released", "before tiles are configured on this thread"),
        ("twice", "the first configuration was not released"),
        ("rows", "a tile of more than 16 rows"),
        ("bytes", "a tile whose rows have more than 64 bytes"),
        ("no bytes", "rows without bytes"),
        ("tiles", "more than 8 tiles"),
        ("palette", "another palette than 1"),
        ("reserved", "reserved bytes are not 0"),
        ("tile", "that the configuration does not have"),
        ("same", "fewer than three tiles"),
        ("sizes", "tiles whose sizes do not fit"),
    ],
)
def test_tiles_that_are_misused_end_the_process(program, wrong, words):
    done = program(wrong)
    assert done.returncode == -signal.SIGABRT
    assert done.stdout == ""
    assert words in done.stderr
