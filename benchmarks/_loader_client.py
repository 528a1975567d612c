"""One measurement in a fresh interpreter; run as `python -c <this text> CLIENT CASE JSON`, prints JSON.

CLIENT is the package that is imported, `hub_loader` or `kernels`: the calls are the same. Only the standard library's
`sys` and `time` are imported before the clock starts, and torch where a kernel is bound.
"""

import sys
import time

client, case = sys.argv[1:3]


def import_client():
    """The client's get_kernel, as a program imports it, and the seconds it took to import."""
    start = time.perf_counter()
    if client == "hub_loader":
        from hub_loader import get_kernel
    else:
        from kernels import get_kernel
    return get_kernel, time.perf_counter() - start


def package():
    """Seconds of `import CLIENT`."""
    start = time.perf_counter()
    __import__(client)
    return {"import_s": time.perf_counter() - start}


def function():
    """Seconds of `from CLIENT import get_kernel`."""
    get_kernel, seconds = import_client()
    assert callable(get_kernel)
    return {"import_s": seconds}


def load():
    """Seconds of the import beside torch, of the first call, and nanoseconds of each further call.

    `loaded_at` is the time by the clock that the hub's record has, too.
    """
    import json

    import torch

    asked = json.loads(sys.argv[3])
    get_kernel, import_s = import_client()
    start = time.perf_counter()
    module = get_kernel(**asked["arguments"])
    call_s = time.perf_counter() - start
    loaded_at = time.monotonic()
    again_ns = []
    for _ in range(asked["batches"]):
        start = time.perf_counter_ns()
        for _ in range(asked["calls"]):
            again = get_kernel(**asked["arguments"])
        again_ns.append((time.perf_counter_ns() - start) / asked["calls"])
        assert again is module
    (kernel,) = __import__(client).get_loaded_kernels()
    loaded = {"id": kernel.metadata.id, "torch": torch.__version__, "loaded_at": loaded_at}
    return {"import_s": import_s, "call_s": call_s, "again_ns": again_ns, **loaded}


def install():
    """Bring a variant into the cache; the greatest resident memory of this process, bytes."""
    import json

    install_kernel = __import__(client).install_kernel
    start = time.perf_counter()
    folder = install_kernel(**json.loads(sys.argv[3])["arguments"])
    seconds = time.perf_counter() - start
    metadata = json.loads((folder / "metadata.json").read_bytes())
    # Not getrusage, whose maximum starts with that of the process that started this one.
    with open("/proc/self/status") as status:
        peak = int(status.read().partition("VmHWM:")[2].split()[0]) * 1024
    return {"call_s": seconds, "peak_bytes": peak, "id": metadata["id"]}


result = {"package": package, "function": function, "load": load, "install": install}[case]()
import json  # noqa: E402  the clock has stopped

print(json.dumps(result))
