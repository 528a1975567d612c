"""How many requests each replica is at."""

from __future__ import annotations

from engine.server_ray.loads import UNSURE, Loads


def test_request_counts_for_the_replica_it_went_to_last_until_it_is_over() -> None:
    loads = Loads()
    loads.goes("1", "a", 0.0)
    loads.goes("1", "b", 0.0)
    loads.has("2", "b")
    assert loads.of(["a", "b", "c"], 1.0) == {"a": 0, "b": 2, "c": 0}
    loads.over("1")
    loads.over("1")
    assert loads.of(["b"], 1.0) == {"b": 1}


def test_request_that_no_replica_took_stops_counting_and_one_that_was_taken_does_not() -> None:
    loads = Loads()
    loads.goes("1", "a", 0.0)
    loads.goes("2", "a", 0.0)
    loads.has("2", "a")
    assert loads.of(["a"], UNSURE - 1) == {"a": 2}
    assert loads.of(["a"], UNSURE + 1) == {"a": 1}
