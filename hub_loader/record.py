"""Frozen records: what dataclass(frozen=True) makes, without compiling six functions for each class.

Fifty dataclasses are most of what this package costs to import, in every process that loads a kernel. A record's
functions are written once, for all classes. The functions of `dataclasses` (replace, fields, asdict) work on records.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

if TYPE_CHECKING:
    from typing import dataclass_transform  # of Python 3.11, for type checkers alone
else:

    def dataclass_transform(**_: bool):
        return lambda cls: cls


NOTHING: Mapping[str, Any] = MappingProxyType({})  # as a default: an empty dict, of its own for each record


class _Fields:
    """Makes the dataclass that a record stands for, when somebody first asks for its fields; `replace` does."""

    def __get__(self, _: object, cls: type[Record]) -> Mapping[str, Any]:
        found: Mapping[str, Any] | None = vars(cls).get("_fields")
        if found is None:
            found = cls._fields = self._make(cls)
        return found

    def _make(self, cls: type[Record]) -> Mapping[str, Any]:
        from dataclasses import field, make_dataclass

        def described(name: str) -> Any:
            shown, counts = name not in cls._unsaid, name in cls._compared
            if cls._defaults.get(name) is NOTHING:
                return field(default_factory=dict, repr=shown, compare=counts)
            if name in cls._defaults:
                return field(default=cls._defaults[name], repr=shown, compare=counts)
            return field(repr=shown, compare=counts)

        made: Any = make_dataclass(
            cls.__name__,
            [(name, Any, described(name)) for name in cls._names],
            namespace={"__doc__": cls.__name__},  # else it is compiled from the signature
            init=False,
            repr=False,
            eq=False,
        )
        found: Mapping[str, Any] = made.__dataclass_fields__
        return found


@dataclass_transform(frozen_default=True)
class Record:
    """A base class: the annotations of a subclass are its fields in order, their values in the class the defaults.

    Records of one class with equal fields are equal. A default is shared by all records, so it must not be one that
    can be changed; NOTHING is for mappings. `_unsaid` names fields that repr does not show, `_uncompared` those that do
    not count for equality.
    """

    _names: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[Mapping[str, Any]] = {}
    _unsaid: ClassVar[tuple[str, ...]] = ()
    _uncompared: ClassVar[tuple[str, ...]] = ()
    _compared: ClassVar[tuple[str, ...]] = ()
    _fields: ClassVar[Mapping[str, Any]]
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]
    else:
        __dataclass_fields__ = _Fields()

    def __init_subclass__(cls) -> None:
        own = [name for name in cls.__annotations__ if not name.startswith("_")]
        cls._names = (*cls._names, *(name for name in own if name not in cls._names))
        cls._defaults = {**cls._defaults, **{name: vars(cls)[name] for name in own if name in vars(cls)}}
        cls._compared = tuple(name for name in cls._names if name not in cls._uncompared)

    def __init__(self, *values: Any, **named: Any) -> None:
        names = self._names
        state = dict(zip(names, values, strict=False))
        if len(values) > len(names) or not state.keys().isdisjoint(named) or not named.keys() <= set(names):
            given = f"{len(values)} values and {', '.join(named) or 'no names'}"  # a value may be a secret
            raise TypeError(f"{type(self).__name__}({', '.join(names)}) was given {given}")
        state.update(named)
        if len(state) < len(names):
            for name, value in self._defaults.items():
                if name not in state:
                    state[name] = {} if value is NOTHING else value
            if missing := [name for name in names if name not in state]:
                raise TypeError(f"{type(self).__name__} lacks {', '.join(missing)}")
        self.__dict__.update((name, state[name]) for name in names)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} stays")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} stays")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Record) and type(other) is type(self):
            return self._key() == other._key()
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self._names if name not in self._unsaid)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _key(self) -> tuple[Any, ...]:
        state = self.__dict__
        return tuple([state[name] for name in self._compared])
