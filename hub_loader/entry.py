"""`get_kernel`, by itself: a program that imports it pays for loading when it first loads a kernel.

Names, arguments and results are those of the Hub's own client, so that a program changes its import and
nothing else. What was loaded once in a process is answered from a table, without a request. Neither version
nor revision means the newest version, chosen at the first call and kept for the life of the process.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # what type checkers take for true; importing typing costs more than all of this
if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from types import ModuleType
    from typing import Any, Literal

    from .choose import Workload
    from .policy import Trust

_modules: dict[Hashable, ModuleType] = {}


def get_kernel(
    repo_id: str,
    *,
    revision: str | None = None,
    version: int | None = None,
    backend: str | None = None,
    user_agent: str | Mapping[str, object] | None = None,
    trust_remote_code: Trust = None,
    check_arch: bool = True,
    allow_cpu: bool = False,
    allow_build: bool = False,
    choose: Literal["best", "fastest"] = "best",
    workload: Workload | None = None,
    references: Mapping[str, Any] | None = None,
) -> ModuleType:
    """Load the variant of a kernel that fits this environment, and what it depends on; return its module.

    Args:
        repo_id: org/name on the hub that HF_ENDPOINT names. LOCAL_KERNELS can name a folder to load instead.
        revision: a branch, tag or commit hash; not together with `version`.
        version: the kernel's version N, its branch v<N>. Neither: the newest version, or main without one.
        backend: "cuda" or "cpu"; None takes cuda if torch is built for it, else cpu.
        user_agent: text, or names with values, that the User-Agent header says beside this library's name.
        trust_remote_code: whose code may run beside what a key that you trust has signed (docs/trust.md). True:
            everybody's. A list: these repositories'. False or None: nobody's; on the public hub also that of publishers
            that it vouches for. Holds for what the kernel depends on too, and is checked on the repository that
            answers, before any of its code is fetched. A wrong signature is refused whatever is said here.
        check_arch: False takes a CUDA variant even if no code in it is compiled for the GPU here.
        allow_cpu: where no variant fits the GPU that torch is built for, take one for the CPU. Said as a warning.
        allow_build: where no variant fits at all, compile the source that the repository publishes, with `khub build`,
            which must be installed. Said as a warning; kept for the next time. `get_choices` lists what was taken.
        choose: "best" takes the variant that fits best. "fastest" times those that fit for `workload`, once on a
            device, and takes the fastest; what was measured is in `get_choices` and the log.
        workload: the call to time, for "fastest" alone.
        references: implementations of the caller's own to compare with, by name: modules, or anything that has the
            workload's function. One that is the fastest is what is returned.

    Raises:
        NoMatchingVariantError: no variant fits; the message says why for each.
        IntegrityError: a file in the cache is not what the publisher uploaded.
        PolicyError: nobody who is trusted here has signed it, and `trust_remote_code` does not allow it.
        SignatureError: its signature is wrong, revoked, for something else, older than what was seen, or takes it back.
        KernelHubError: one of the other classes of `hub_loader.errors`, for what its docstring says.
    """
    options = (repo_id, version, revision, backend, trust_remote_code, check_arch, allow_cpu, allow_build)
    wanted: tuple[object, ...] = options
    question = None
    if choose != "best" or workload is not None or references is not None:
        from .choose import load_fastest, make_question

        question = make_question(choose, workload, references)
        wanted = (*options, question.key())
    key = (os.environ.get("HF_ENDPOINT"), os.environ.get("LOCAL_KERNELS"), repr(wanted))
    found = _modules.get(key)  # without the lock: a module is put there when it is whole
    if found is not None:
        return found
    from .uncollected import uncollected

    with uncollected():
        from .config import load_config
        from .pinned import ask_ahead, drop, make_request

        config, request = load_config(user_agent=user_agent), make_request(repo_id, version, revision)
        asked = not os.environ.get("LOCAL_KERNELS") and ask_ahead(config, request)
        # What follows is imported while the hub's answer is under way.
        from .loaded import lock
        from .source import hub_source, load_tree

        if asked:
            from .trust.keys import import_library

            import_library()
    try:
        with lock:
            if key not in _modules:
                source = hub_source(
                    config,
                    backend,
                    trust_remote_code,
                    check_arch=check_arch,
                    allow_cpu=allow_cpu,
                    allow_build=allow_build,
                )
                _modules[key] = (
                    load_fastest(source, request, question) if question else load_tree(source, request)
                )
            return _modules[key]
    finally:
        if asked:
            drop(config, request)
