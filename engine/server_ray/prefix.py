"""Which replica has the beginning of a prompt in its cache, as far as whoever sent it there can know. Pure.

A prompt's beginning is cut into chunks, each named by a digest of everything up to its end. A replica that was
sent a name has computed all of it, so of two prompts that begin alike the second goes where the longest name of
its own was sent before, unless that replica has too much to do already.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

CHUNK = 64  # characters; of English about a block of 16 tokens
MOST_CHUNKS = 256  # beyond them prompts that begin alike are not told apart
SLACK = 4  # requests that a replica may have more than the least busy one and still be sent what it knows
CAPACITY = 1 << 16  # names that are remembered
_HOLDERS = 4  # replicas for each name

Keys = tuple[bytes, ...]


def keys_of(body: bytes) -> Keys:
    """The names of the beginning of what a request asks to continue, short to long; none if it is no such request."""
    try:
        text = _text(json.loads(body))
    except (ValueError, RecursionError):  # the replica says what is wrong with it
        return ()
    keys, last = [], b""
    for start in range(0, min(len(text), CHUNK * MOST_CHUNKS) - CHUNK + 1, CHUNK):
        chunk = text[start : start + CHUNK].encode("utf-8", "surrogatepass")
        last = blake2b(last + chunk, digest_size=8).digest()
        keys.append(last)
    return tuple(keys)


def _text(body: Any) -> str:
    """What two requests whose prompts begin alike begin alike with."""
    if not isinstance(body, dict):
        return ""
    if "messages" in body:
        said = [body.get("tools"), body.get("system"), body["messages"]]
        return json.dumps(said, ensure_ascii=False)
    prompt = body.get("prompt", "")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


class Affinity:
    """Remembers what was sent where, the newest `capacity` names."""

    def __init__(self, slack: int = SLACK, capacity: int = CAPACITY) -> None:
        self._slack = slack
        self._capacity = capacity
        self._holders: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        self._turns: dict[str, int] = {}
        self._turn = 0

    def order(self, keys: Sequence[bytes], loads: Mapping[str, int]) -> list[str]:
        """The replicas of `loads` (requests that each is at), the one to ask first.

        That is the one with the longest beginning of those that are not too busy, else the least busy.
        """
        rest = sorted(loads, key=lambda replica: (loads[replica], self._turns.get(replica, 0)))
        if not rest:
            return []
        most = loads[rest[0]] + self._slack
        for key in reversed(keys):
            holders = self._holders.get(key, ())
            known = [replica for replica in rest if replica in holders and loads[replica] <= most]
            if known:
                return [known[0], *(replica for replica in rest if replica != known[0])]
        return rest

    def sent(self, keys: Sequence[bytes], replica: str) -> None:
        """A prompt went to `replica`."""
        self._turn += 1
        self._turns[replica] = self._turn
        for key in keys:
            others = (each for each in self._holders.pop(key, ()) if each != replica)
            self._holders[key] = (replica, *others)[:_HOLDERS]
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)

    def forget(self, replica: str) -> None:
        """It is gone; the names that only it had age away."""
        self._turns.pop(replica, None)
