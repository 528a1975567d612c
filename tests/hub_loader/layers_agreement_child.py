"""Run where the Hub's own client is importable: the same random mappings through both, compared.

Usage: layers_agreement_child.py agree SEED SCENARIOS | cross MARKER KERNELIZER PACKAGE; prints JSON.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import kernels
import kernels.layer.repos
import torch
from torch import nn

import hub_loader
import hub_loader.layers.swap

MODES = ("INFERENCE", "TRAINING", "INFERENCE|TORCH_COMPILE", "TRAINING|TORCH_COMPILE")
NAMES = ("Norm", "Gate")


class Numbered:
    """A repository of a layer that answers its number."""

    def __init__(self, number: int, flags: dict[str, bool]) -> None:
        def forward(self: nn.Module, x: torch.Tensor) -> int:
            return number

        self.layer = type("Layer", (nn.Module,), {"forward": forward, **flags})

    def load(self) -> type[nn.Module]:
        return self.layer


class Norm(nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return -1


def random_scenario(random: Random) -> dict[str, Any]:
    """Nested registrations and a request, as plain data; capability ranges are of different widths."""
    numbers = itertools.count()
    widths = random.sample(range(1, 30), 12)

    def modes() -> Any:
        flags = {name: random.random() < 0.7 for name in ("can_torch_compile", "has_backward")}
        one = [next(numbers), {name: value for name, value in flags.items() if random.random() < 0.8}]
        if random.random() < 0.3:
            return one
        some = random.sample((*MODES, "FALLBACK"), random.randint(1, 3))
        return {mode: [next(numbers), one[1]] for mode in some}

    def devices() -> list[Any]:
        found = []
        for kind in random.sample(("cpu", "cuda", "rocm", "xpu"), random.randint(1, 3)):
            found.append([kind, None, modes()])
            if kind in ("cuda", "rocm"):
                lows = [random.randint(60, 100) for _ in range(random.randint(0, 2))]
                found[-1:] = [[kind, [low, low + widths.pop()], modes()] for low in lows if widths] or found[
                    -1:
                ]
        return found

    registrations = [
        {
            "mapping": {name: devices() for name in random.sample(NAMES, random.randint(0, 2))},
            "inherit": random.random() < 0.8,
            "scoped": random.random() < 0.6,
        }
        for _ in range(random.randint(1, 3))
    ]
    return {
        "registrations": registrations,
        "capability": random.randint(60, 110),
        "device": random.choice(("cpu", "cuda", "rocm", "xpu")),
        "mode": random.choice(MODES),
        "fallback": random.choice((True, False, 1, 2, 4, 8, 15, 31)),
    }


def run(library: ModuleType, scenario: dict[str, Any], repositories: dict[int, Numbered]) -> list[Any]:
    """What each layer answers after `kernelize`, or "refused", by this library's rules."""

    def mode(text: str) -> Any:
        members = [library.Mode[name] for name in text.split("|")]
        return members[0] | members[1] if len(members) == 2 else members[0]

    def repository(given: list[Any]) -> Numbered:
        return repositories.setdefault(given[0], Numbered(*given))

    def device(kind: str, bounds: list[int] | None) -> Any:
        if bounds is None:
            return kind
        properties = library.CUDAProperties if kind == "cuda" else library.ROCMProperties
        return library.Device(kind, properties(*bounds))

    def mapping(given: dict[str, Any]) -> Any:
        return {
            name: {
                device(kind, bounds): repository(modes)
                if isinstance(modes, list)
                else {mode(text): repository(one) for text, one in modes.items()}
                for kind, bounds, modes in devices
            }
            for name, devices in given.items()
        }

    fallback = scenario["fallback"]
    if not isinstance(fallback, bool):
        fallback = library.KernelizeFallback(fallback)
    answers: list[Any] = []
    with ExitStack() as stack:
        stack.enter_context(library.use_kernel_mapping({}, inherit_mapping=False))
        for given in scenario["registrations"]:
            if given["scoped"]:
                context = library.use_kernel_mapping(
                    mapping(given["mapping"]), inherit_mapping=given["inherit"]
                )
                stack.enter_context(context)
            else:  # the peer's forgets by leaving the scope, so only what extends is compared
                library.register_kernel_mapping(mapping(given["mapping"]))
        for name in NAMES:
            cls = type("Marked", (Norm,), {"forward": Norm.forward})
            library.replace_kernel_forward_from_hub(cls, name)
            try:
                model = library.kernelize(
                    cls(), mode=mode(scenario["mode"]), device=scenario["device"], use_fallback=fallback
                )
                answers.append(model(None))
            except ValueError:
                answers.append("refused")
    return answers


def cross(marker: ModuleType, kernelizer: ModuleType, package: Path) -> list[Any]:
    """What a model answers that one library has marked and the other kernelizes with a package's layers."""
    norm = type("Marked", (nn.Module,), {"forward": lambda self, hidden_states: None})
    marker.use_kernel_forward_from_hub("Norm")(norm)

    def rotate(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> None:
        return None

    function = marker.use_kernel_forward_from_hub("rotate")(rotate)
    caller = marker.use_kernelized_func(function)(type("Caller", (nn.Module,), {}))
    model = nn.ModuleList([norm(), caller()])
    model[0].weight, model[0].variance_epsilon = nn.Parameter(torch.ones(8)), 1e-6
    layers = {"Norm": "RMSNorm", "rotate": "apply_rotary_transformers"}
    mapping = {
        name: {"cpu": kernelizer.LocalLayerRepository(package, layer_name=layer)}
        for name, layer in layers.items()
    }
    with kernelizer.use_kernel_mapping(mapping):
        for mode in (kernelizer.Mode.TRAINING, kernelizer.Mode.INFERENCE | kernelizer.Mode.TORCH_COMPILE):
            kernelizer.kernelize(model, mode=mode, device="cpu", use_fallback=False)
    q = torch.randn(1, 2, 3, 8)
    rotated = function(q, q, torch.ones(1, 3, 8), torch.zeros(1, 3, 8))
    same = torch.equal(rotated[0], q) and torch.equal(rotated[1], q)
    return [round(model[0](torch.full((1, 8), 3.0)).sum().item(), 4), same]


def agreement(seed: int, scenarios: int) -> dict[str, Any]:
    """Scenarios in which the libraries differ, and how many layers the peer refused and swapped."""
    random = Random(seed)
    differing, refused, swapped = [], 0, 0
    for _ in range(scenarios):
        scenario = random_scenario(random)
        capability = scenario["capability"]
        kernels.layer.repos._find_capability = lambda here=capability: here
        hub_loader.layers.swap._capability = lambda index, here=capability: here
        repositories: dict[int, Numbered] = {}
        theirs, ours = (run(library, scenario, repositories) for library in (kernels, hub_loader))
        refused += theirs.count("refused")
        swapped += sum(isinstance(answer, int) and answer >= 0 for answer in theirs)
        if theirs != ours:
            differing.append({"scenario": scenario, "theirs": theirs, "ours": ours})
    return {"differing": differing[:3], "refused": refused, "swapped": swapped}


def main() -> None:
    logging.disable(logging.CRITICAL)
    if sys.argv[1] == "cross":
        libraries = {"kernels": kernels, "hub_loader": hub_loader}
        result: Any = cross(libraries[sys.argv[2]], libraries[sys.argv[3]], Path(sys.argv[4]))
    else:
        result = agreement(int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
