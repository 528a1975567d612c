"""Ray Serve's choice of a replica for a request: by the beginning of its prompt, bounded by load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from . import roster
from .asked import Asked
from .prefix import SLACK, Affinity


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Lives in the process that asks; `slack` as in `prefix.py`."""

    def initialize_state(self, slack: int = SLACK, **_: Any) -> None:
        self._affinity = Affinity(slack)
        self._where: dict[str, str] = {}  # the replica of each request under way, by their ids

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
            self._goes(pending_request, asked, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._where.pop(internal_request_id, None)

    def _goes(self, pending: PendingRequest, asked: Asked, replica: str) -> None:
        request = pending.metadata.internal_request_id
        if request not in self._where:  # given up before a replica had it, it is not completed
            pending.future.add_done_callback(lambda done: done.cancelled() and self._where.pop(request, None))
        self._where[request] = replica
        self._affinity.sent(asked.keys, replica)

    def _loads(self, names: Collection[str]) -> dict[str, int]:
        counted = Counter(self._where.values())
        return {name: counted[name] for name in names}

    def _note(self) -> None:
        now = {replica_id.unique_id for replica_id in self.curr_replicas}
        for gone in roster.running(self.app_name) - now:
            self._affinity.forget(gone)
        roster.note(self.app_name, now)
