"""What baseline.h puts in place of a newer libstdc++'s exports behaves as they do, and needs none of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from build_matrix.toolchain.host import find_compiler
from build_matrix.units import INCLUDE

PROGRAM = r"""
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <vector>

static int alive = 0;
struct Counted {
  Counted() { ++alive; }
  Counted(const Counted&) { ++alive; }
  ~Counted() { --alive; }
};

int main() {
  {
    std::exception_ptr first = std::make_exception_ptr(Counted());
    std::vector<std::exception_ptr> copies(100, first);
    first = nullptr;
    if (alive != 1) return 1;
    try {
      std::rethrow_exception(copies.back());
    } catch (const Counted&) {
    }
    if (alive != 1) return 2;
  }
  if (alive != 0) return 3;
  volatile std::size_t huge = std::size_t(-1) / sizeof(int) + 1;
  try {
    std::allocator<int>().allocate(huge);
    return 4;
  } catch (const std::bad_array_new_length&) {
  }
  std::puts("equal");
}
"""


def test_exception_pointers_and_array_lengths_work_without_symbols_of_a_newer_library(tmp_path: Path) -> None:
    compiler = find_compiler()
    source, program = tmp_path / "program.cpp", tmp_path / "program"
    source.write_text(PROGRAM)
    command = [compiler.path, "-std=c++17", "-O1", "-include", INCLUDE / "baseline.h", source, "-o", program]
    subprocess.run(command, check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "equal\n"
    symbols = subprocess.run(["nm", "-D", program], capture_output=True, text=True, check=True).stdout
    assert "CXXABI_1.3.3" in symbols
    assert "CXXABI_1.3.13" not in symbols
    assert "GLIBCXX_3.4.29" not in symbols
