"""Records behave as the frozen dataclasses that they stand for."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from unittest.mock import ANY

import pytest

from hub_loader.record import NOTHING, Record


class Point(Record):
    """A record with defaults."""

    x: int
    name: str = "p"
    tags: Mapping[str, int] = NOTHING
    secret: str = "s"
    _unsaid = ("secret",)
    _uncompared = ("secret",)

    @property
    def double(self) -> int:
        """No field."""
        return 2 * self.x


class Farther(Point):
    """A record with a field more."""

    z: int = 0


@dataclass(frozen=True)
class Twin:
    """What Point would be as a dataclass."""

    x: int
    name: str = "p"
    tags: Mapping[str, int] = field(default_factory=dict)
    secret: str = field(default="s", repr=False, compare=False)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        ((1,), {}),
        ((1, "a"), {"tags": {"t": 2}}),
        ((), {"x": 3, "secret": "q"}),
        ((1, "a", {}, "s", 5), {}),
        ((1,), {"x": 2}),
        ((1,), {"y": 2}),
    ],
)
def test_a_record_is_made_and_shown_as_a_dataclass_would_be(
    values: tuple[object, ...], named: dict[str, object]
):
    try:
        twin = Twin(*values, **named)  # type: ignore[arg-type]
    except TypeError:
        with pytest.raises(TypeError):
            Point(*values, **named)
        return
    point = Point(*values, **named)
    assert repr(point).replace("Point", "Twin") == repr(twin)
    assert vars(point) == vars(twin)
    assert dataclasses.asdict(point) == dataclasses.asdict(twin)  # type: ignore[call-overload]


def test_records_are_equal_by_class_and_compared_fields():
    assert Point(1, secret="a") == Point(1, secret="b")
    assert Point(1) != Point(2)
    assert Point(1) != Farther(1)
    assert Point(1) != Twin(1)
    assert Farther(1, z=2) == Farther(1, z=2) != Farther(1, z=3)


def test_records_hash_by_their_compared_fields():
    assert hash(Point(1, tags=())) == hash(Point(1, tags=(), secret="b"))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        hash(Point(1))  # of a dict, as with a dataclass


def test_a_record_is_frozen():
    point = Point(1)
    with pytest.raises(AttributeError, match="x stays"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="x stays"):
        del point.x
    assert point.x == 1


def test_each_record_has_an_empty_mapping_of_its_own():
    assert Point(1).tags == {}
    assert Point(1).tags is not Point(1).tags


def test_the_functions_of_dataclasses_take_records():
    assert dataclasses.replace(Farther(1, "n"), z=4) == Farther(1, "n", z=4)
    assert [one.name for one in dataclasses.fields(Farther)] == ["x", "name", "tags", "secret", "z"]
    assert dataclasses.is_dataclass(Point)
    with pytest.raises(TypeError):
        dataclasses.replace(Point(1), y=2)


def test_fields_of_a_record_are_made_once_for_each_class():
    assert dataclasses.fields(Point)[0] is dataclasses.fields(Point(1))[0]  # type: ignore[arg-type]
    assert len(dataclasses.fields(Farther)) == len(dataclasses.fields(Point)) + 1  # type: ignore[arg-type]


def test_what_equals_a_record_in_its_own_words_is_asked():
    assert Point(1) == ANY
    assert Point(1).__eq__(1) is NotImplemented


def test_records_are_copied_and_pickled():
    point = Farther(1, "n", {"t": 1}, z=2)
    assert copy.deepcopy(point) == pickle.loads(pickle.dumps(point)) == point


def test_a_record_that_is_made_wrongly_does_not_say_its_values():
    with pytest.raises(TypeError, match="x, name, tags, secret") as refused:
        Point(1, secret="hf_private", nothing="hf_other")
    assert "hf_" not in str(refused.value)
