"""The application on a Ray cluster: started, and ended when the command ends."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from hub_loader.errors import ClusterError

from ..kernel_table import Binding
from .arguments import ClusterOptions
from .policy import ByQueuedTokens
from .replica import Replica, Spec
from .router import PrefixRouter

log = logging.getLogger(__name__)
END_SECONDS = 20.0  # for replicas to end once nobody waits for them any more
HEALTH_SECONDS = 2.0  # between two health checks; three in a row fail before a replica is replaced
METRICS_SECONDS = 2.0
CONNECT_SECONDS = 10.0
_SETTINGS = re.compile(
    r"(HF|KHUB|OTEL|KERNELS|LOCAL_KERNELS|HTTPS?_PROXY|NO_PROXY|SSL_CERT)(_.*)?", re.IGNORECASE
)
# Not what says where a secret is or whether to use it: that is read before secrets are there.
_SECRET = re.compile(r"(?!.*(_PATH|_DISABLE_)).*(TOKEN|KEY|PASSWORD|HEADERS).*", re.IGNORECASE)
_PROXY = re.compile(r".*_PROXY", re.IGNORECASE)
_FRONTS = frozenset({"KHUB_API_KEYS", "KHUB_METRICS_TOKEN"})  # nothing that replicas need to know


@dataclass(frozen=True)
class Application:
    """Replicas that answer: `handle` is Ray Serve's."""

    name: str
    handle: Any
    kernels: Sequence[Binding]


@contextmanager
def application(
    spec: Spec, options: ClusterOptions, replica: type[Replica] = Replica
) -> Iterator[Application]:
    """Replicas of `spec` while the block runs.

    Raises:
        ClusterError: there is no cluster, or no replica starts on it.
    """
    name = f"khub-{re.sub(r'[^A-Za-z0-9_.-]+', '-', spec.options.name)}-{secrets.token_hex(4)}"
    with redirect_stdout(sys.stderr):  # stdout is the caller's
        _connect()
        try:
            try:
                serve.start(proxy_location="Disabled", logging_config=_logging())
                handle = serve.run(deployment(spec, options, replica), name=name, route_prefix=None)
                kernels = handle.kernels.remote().result(timeout_s=60)
            except (RuntimeError, ray.exceptions.RayError) as error:
                raise ClusterError(f"no replica of {spec.model} starts: {_reason(name, error)}") from None
            yield Application(name, handle, kernels)
        finally:
            _end(name)


def deployment(spec: Spec, options: ClusterOptions, replica: type[Replica] = Replica) -> Any:
    """What Ray Serve is to run."""
    settings, hidden = settings_for_replicas(os.environ)
    fewest, most = options.replicas
    return (
        serve.deployment(replica)
        .options(
            name="engine",
            max_ongoing_requests=4
            * spec.options.queue,  # the server's own limit comes first, with a Retry-After
            max_constructor_retry_count=2,
            health_check_period_s=HEALTH_SECONDS,
            health_check_timeout_s=30.0,
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=spec.options.grace,
            ray_actor_options={
                "num_cpus": options.cpus,
                "num_gpus": options.gpus,
                "runtime_env": {"env_vars": settings},
            },
            request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
            logging_config=_logging(),
            **(
                {"num_replicas": fewest}
                if fewest == most
                else {"autoscaling_config": _autoscaling(fewest, most, options)}
            ),
        )
        .bind(spec, hidden)
    )


def settings_for_replicas(environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What of `environ` holds for replicas, on whichever machine: for all to see, and secrets.

    Ray shows the environment of an actor on its pages; secrets are handed over as arguments instead.
    """
    found = {
        name: value for name, value in environ.items() if _SETTINGS.fullmatch(name) and name not in _FRONTS
    }
    secret = {
        name
        for name, value in found.items()
        if _SECRET.fullmatch(name) or (_PROXY.fullmatch(name) and "@" in value)
    }
    return (
        {name: value for name, value in found.items() if name not in secret},
        {name: found[name] for name in secret},
    )


def _autoscaling(fewest: int, most: int, options: ClusterOptions) -> Any:
    return AutoscalingConfig(
        min_replicas=fewest,
        max_replicas=most,
        policy=AutoscalingPolicy(
            policy_function=ByQueuedTokens, policy_kwargs={"per_replica": options.queued_tokens}
        ),
        metrics_interval_s=METRICS_SECONDS,
        look_back_period_s=max(2 * METRICS_SECONDS, options.up),
        upscale_delay_s=options.up,
        downscale_delay_s=options.down,
    )


def _logging() -> Any:
    return LoggingConfig(log_level="WARNING", enable_access_log=False)


def _connect() -> None:
    # Ray gives way to every other process with what it runs; where it is started for serving, serving is not less.
    os.environ.setdefault("RAY_worker_niceness", "0")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    where = os.environ.get("RAY_ADDRESS", "")
    try:
        _reach(where)
        ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        cure = "check RAY_ADDRESS, and set RAY_AUTH_MODE=token if the cluster asks for a token"
        raise ClusterError(f"no Ray cluster at {where or 'this machine'}: {error}; {cure}") from None


def _reach(address: str) -> None:
    """Whether somebody listens there: Ray would try for minutes. Raises OSError or ValueError."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), CONNECT_SECONDS).close()


def _end(name: str) -> None:
    """The replicas end, and Ray with them if it was started for them; a cluster that is gone is not waited for."""
    ending = threading.Thread(target=_delete, args=(name,), daemon=True)
    ending.start()
    ending.join(END_SECONDS)
    ray.shutdown()


def _delete(name: str) -> None:
    try:
        serve.delete(name)
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        log.warning("The replicas of %s could not be ended: %s", name, error)


def _reason(name: str, error: Exception) -> str:
    """The line that says what is wrong, in the traceback of a replica of the application `name` if there is one."""
    try:
        told = serve.status().applications.get(name)
    except ray.exceptions.RayError:  # Ray Serve itself has ended, and `error` says so
        told = None
    texts: list[str] = [each.message for each in told.deployments.values()] if told is not None else []
    lines = [line.strip() for text in (*texts, str(error)) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+\.)*[A-Z]\w*Error: ", line)]
    ours = [line for line in errors if line.startswith("hub_loader.errors.")]
    return (ours or errors or lines or [type(error).__name__])[0].removeprefix("hub_loader.errors.")
