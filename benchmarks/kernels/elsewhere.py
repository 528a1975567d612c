"""Peers of another interpreter: a process of their own that takes turns with this one, over a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from hub_loader.errors import BenchmarkError

from .peers import Peer
from .torch_peers import nibbles

WORKERS = Path(__file__).parent / "workers"
# Seconds: the peer's threads spin for some milliseconds after their work, on the same cores.
_REST = 0.01
_VLLM = (
    "attend (decode)",
    "attend (prefill)",
    "rms_norm",
    "fused_add_rms_norm",
    "silu_and_mul",
    "gelu_tanh_and_mul",
    "rotary_embedding",
)


class Worker:
    """One of the programs in `workers`, with the processors and as many threads as this process has.

    Raises:
        BenchmarkError: it did not start, or lacks the peer; the message has its last line, and says where the
            others are.
    """

    def __init__(self, python: str, program: Path, threads: int) -> None:
        self._name = program.stem
        self._folder = tempfile.TemporaryDirectory(prefix="khub-peer-")
        with tempfile.NamedTemporaryFile(
            prefix=f"khub-{program.stem}-", suffix=".log", delete=False
        ) as self._log:
            try:
                self._process = subprocess.Popen(
                    [python, str(WORKERS / "__main__.py"), str(program), str(threads)],
                    env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    text=True,
                )
            except OSError as error:
                raise BenchmarkError(f"{self._name}: {python} cannot be run ({error})") from None
        try:
            self.version = str(self._answer()["version"])
        except BenchmarkError:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the program, which ends by itself when nothing more is asked."""
        self._process.communicate()
        self._folder.cleanup()
        Path(self._log.name).unlink(missing_ok=True)

    def call(
        self, name: str, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]
    ) -> There | None:
        """Its call for a case; None where it has no operator for it. What was made before is gone.

        Raises:
            BenchmarkError: it could not make the call.
        """
        about = {}
        for key, tensor in tensors.items():
            file = Path(self._folder.name, f"{key}.bin")
            tensor.contiguous().flatten().view(torch.uint8).numpy().tofile(file)
            dtype = str(tensor.dtype).removeprefix("torch.")
            about[key] = {"file": str(file), "dtype": dtype, "shape": list(tensor.shape)}
        made = self.ask(make={"name": name, "tensors": about, "numbers": dict(numbers)})["made"]
        for key in tensors:
            Path(self._folder.name, f"{key}.bin").unlink()
        return There(self, Path(self._folder.name, "result.bin")) if made else None

    def ask(self, **question: Any) -> dict[str, Any]:
        """Put a question to the program: `workers/__main__.py` says which it knows.

        Raises:
            BenchmarkError: it answered with an error, or ended.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        except OSError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self._name}: {answer['error']}")
        return answer

    def _ended(self) -> BenchmarkError:
        said = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        last = said[-1] if said else "it wrote nothing"
        return BenchmarkError(f"{self._name} ended (exit status {self._process.wait()}): {last}")


@dataclass(frozen=True)
class There:
    """A call in a worker: its result as float32 without a shape, or the microseconds it takes there."""

    worker: Worker
    file: Path

    def __call__(self) -> torch.Tensor:
        self.worker.ask(result=str(self.file))
        data = bytearray(self.file.read_bytes())
        self.file.unlink()
        return torch.frombuffer(data, dtype=torch.float32)

    def microseconds(self, hot: bool) -> float:
        taken = float(self.worker.ask(time=hot)["us"])
        time.sleep(_REST)
        return taken


def vllm(worker: Worker) -> Peer:
    """The operators of `workers/vllm.py`, which get the tensors of a case as they are."""

    def make(name: str, inputs: Mapping[str, Any]) -> There | None:
        tensors = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        return worker.call(name, tensors, {key: inputs[key] for key in inputs.keys() - tensors.keys()})

    return Peer("vllm", {name: partial(make, name) for name in _VLLM})


def llama_cpp(worker: Worker) -> Peer:
    """ggml's product of float32 rows with Q4_0 weights of the same values; it rounds x to 8 bits itself."""
    name = "matmul int4, x in 8 bits"

    def make(inputs: Mapping[str, Any]) -> There | None:
        if inputs["x"].dtype != torch.float32:
            return None
        tensors = {"x": inputs["x"], "blocks": q4_0(inputs["packed"])}
        return worker.call(name, tensors, {"copies": inputs["copies"]})

    return Peer("llama.cpp", {name: make})


def q4_0(packed: Any) -> torch.Tensor:
    """A symmetric int4 weight as ggml's blocks of 32, uint8 `[N, K / 32, 18]`; its scales become float16.

    A block is its scale, then 16 bytes: value j in the low four bits of byte j, value 16 + j in the high four.
    """
    halves = nibbles(packed).view(packed.shape[0], -1, 2, 16)
    scales = packed.scales.half().repeat_interleave(packed.group_size // 32, dim=1)[..., None]
    return torch.cat([scales.view(torch.uint8), halves[:, :, 0] | halves[:, :, 1] << 4], dim=2)
