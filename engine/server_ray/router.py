"""Ray Serve's choice of a replica for a request: by the beginning of its prompt, bounded by load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from . import roster
from .asked import Asked
from .loads import Loads
from .prefix import SLACK, Affinity


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Lives in the process that asks; `slack` as in `prefix.py`."""

    def initialize_state(self, slack: int = SLACK, **_: Any) -> None:
        self._affinity = Affinity(slack)
        self._under_way = Loads()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._note()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._note()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each; none if those that may be asked are not there (yet)."""
        found = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if pending_request is None:
            return [[replica] for replica in candidate_replicas]
        pending_request.routing_context.should_backoff = True  # between rounds in which nobody could be had
        asked = pending_request.args[0] if pending_request.args else None
        if not isinstance(asked, Asked):
            return [[found[name]] for name in self._affinity.order((), self._loads(found))]
        if asked.only is not None:
            return [[found[asked.only]]] if asked.only in found else []
        loads = self._loads(found.keys() - asked.avoid)
        order = self._affinity.order(asked.keys, loads)
        if order:  # counted before it is there: requests that come together see each other
            self._goes(pending_request, asked, order[0])
        return [[found[name]] for name in order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        asked = pending_request.args[0] if pending_request.args else None
        if isinstance(asked, Asked) and asked.only is None:
            self._under_way.has(pending_request.metadata.internal_request_id, replica_id.unique_id)
            self._affinity.sent(asked.keys, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._under_way.over(internal_request_id)

    def _goes(self, pending: PendingRequest, asked: Asked, replica: str) -> None:
        request = pending.metadata.internal_request_id
        self._under_way.goes(request, replica, time.monotonic())

        def settled(done: asyncio.Future[RunningReplica]) -> None:
            if done.cancelled():  # given up before a replica had it, it is not completed
                self._under_way.over(request)

        pending.future.add_done_callback(settled)
        self._affinity.sent(asked.keys, replica)

    def _loads(self, names: Collection[str]) -> dict[str, int]:
        return self._under_way.of(names, time.monotonic())

    def _note(self) -> None:
        now = {replica_id.unique_id for replica_id in self.curr_replicas}
        for gone in roster.running(self.app_name) - now:
            self._affinity.forget(gone)
        roster.note(self.app_name, now)
