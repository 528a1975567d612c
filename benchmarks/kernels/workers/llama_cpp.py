"""ggml's product with Q4_0 weights, from the library inside xllamacpp, as llama.cpp runs it on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import xllamacpp
from xllamacpp import xllamacpp as extension

_F32, _Q4_0 = 0, 2  # of ggml's types
_library = ctypes.CDLL(extension.__file__)


class _Init(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("buffer", c_void_p), ("no_alloc", c_bool))


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_library, name)
    function.restype, function.argtypes = result, arguments
    return function


_init = _function("ggml_init", c_void_p, _Init)
_free = _function("ggml_free", None, c_void_p)
_new_2d = _function("ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
_mul_mat = _function("ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
_new_graph = _function("ggml_new_graph", c_void_p, c_void_p)
_expand = _function("ggml_build_forward_expand", None, c_void_p, c_void_p)
_nbytes = _function("ggml_nbytes", c_size_t, c_void_p)
_set = _function("ggml_backend_tensor_set", None, c_void_p, c_char_p, c_size_t, c_size_t)
_get = _function("ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t)
_allocate = _function("ggml_backend_alloc_ctx_tensors", c_void_p, c_void_p, c_void_p)
_allocate_as = _function("ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p)
_free_buffer = _function("ggml_backend_buffer_free", None, c_void_p)
_compute = _function("ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
_cpu = _function("ggml_backend_cpu_init", c_void_p)


class _Product:
    """A graph of x times each of several weights; what it allocated in the library goes with it."""

    def __init__(self, blocks: bytes, x: bytes, rows: int, columns: int, tokens: int, copies: int) -> None:
        self._held: list[tuple[Callable[[Any], None], Any]] = []
        weights_in, rest_in = self._context(), self._context()
        weights = [_new_2d(weights_in, _Q4_0, columns, rows) for _ in range(copies)]
        buffer = _allocate_as(weights_in, _repacking()) if _repacking() else _allocate(weights_in, _backend)
        self._hold(_free_buffer, buffer)
        if _nbytes(weights[0]) != len(blocks):
            raise ValueError(f"ggml has {_nbytes(weights[0])} bytes for a weight of {len(blocks)}")
        for weight in weights:
            _set(weight, blocks, 0, len(blocks))
        given = _new_2d(rest_in, _F32, columns, tokens)
        products = [_mul_mat(rest_in, weight, given) for weight in weights]
        self.graph = _new_graph(rest_in)
        for product in products:
            _expand(self.graph, product)
        self._hold(_free_buffer, _allocate(rest_in, _backend))
        _set(given, x, 0, len(x))
        self.last = products[-1]

    def run(self) -> None:
        status = _compute(_backend, self.graph)
        if status:
            raise RuntimeError(f"ggml_backend_graph_compute answered {status}")

    def result(self) -> bytes:
        data = ctypes.create_string_buffer(_nbytes(self.last))
        _get(self.last, data, 0, len(data))
        return data.raw

    def __del__(self) -> None:
        for free, what in reversed(self._held):
            free(what)

    def _context(self) -> Any:
        return self._hold(_free, _init(_Init(1 << 22, None, True)))

    def _hold(self, free: Callable[[Any], None], what: Any) -> Any:
        if not what:
            raise MemoryError("ggml could not allocate")
        self._held.append((free, what))
        return what


def _repacking() -> Any:
    """The kind of memory in which llama.cpp keeps weights on this processor: repacked, where it has a way to."""
    registry = _function("ggml_backend_cpu_reg", c_void_p)()
    device = _function("ggml_backend_reg_dev_get", c_void_p, c_void_p, c_size_t)(registry, 0)
    find = _function("ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)
    address = find(registry, b"ggml_backend_dev_get_extra_bufts")
    kinds = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device) if address else None
    return kinds[0] if kinds else None


def start(threads: int) -> str:
    _function("ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)(_backend, threads)
    return str(xllamacpp.__version__)


def wake() -> None:
    _small.run()


_backend = _cpu()
_small = _Product(bytes(18 * 32 * 8), bytes(4 * 256), 32, 256, 1, 1)


def make(case: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], bytes]]:
    blocks, x = case["tensors"]["blocks"], case["tensors"]["x"]
    rows, groups, _ = blocks["shape"]
    stored, given = (Path(tensor["file"]).read_bytes() for tensor in (blocks, x))
    product = _Product(stored, given, rows, 32 * groups, x["shape"][0], case["numbers"]["copies"])
    return product.run, product.result
