"""GET /metrics: those of all replicas in one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.responses import Response

from .asked import Asked
from .replica import ReplicaFailed

SECONDS = 10.0  # for a replica to answer; one that does not is left out


async def scrape(handle: Any, replicas: Iterable[str]) -> Response:
    """Ask each replica; `khub_engine_replicas` says how many answered."""
    names = list(replicas)
    texts = await asyncio.gather(*(_ask(handle, name) for name in names))
    found = {name: text for name, text in zip(names, texts, strict=True) if text is not None}
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(found))
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _ask(handle: Any, replica: str) -> str | None:
    responses = handle.answer.remote(Asked("GET", "/metrics", client=("127.0.0.1", 0), only=replica))
    try:
        return await asyncio.wait_for(_text(responses), SECONDS)
    except (asyncio.TimeoutError, RayError, RayServeException, ReplicaFailed):  # it has ended, or is about to
        return None
    finally:
        with suppress(Exception):  # it is over, or its replica is
            responses.cancel()


async def _text(responses: AsyncIterator[Any]) -> str | None:
    messages = [message async for item in responses if isinstance(item, list) for message in item]
    if not messages or messages[0]["status"] != 200:
        return None
    return b"".join(message.get("body", b"") for message in messages).decode()


class _Merged(Collector):
    """The same families of several sources, told apart by the label `replica`."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    merged.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        count = Metric("khub_engine_replicas", "Replicas that answered", "gauge")
        count.add_sample("khub_engine_replicas", {}, len(self._texts))
        yield count
        yield from families.values()
