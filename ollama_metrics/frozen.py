"""`@dataclass(frozen=True)` in a third of the memory and of the time that it takes to make one.

The standard library's writes, compiles and keeps six functions for each class, of which only
`__init__` differs in more than a name. Here that one is the library's, and the others are shared by
all classes: for the forty of the daemon that is 0.35 MB. Everything else that the library promises
holds (fields, replace, equality, hash, repr, FrozenInstanceError); to a type checker it is the library's.
"""

from __future__ import annotations

import dataclasses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from typing import Any
else:

    def dataclass(*, frozen: bool):
        """Make a class a dataclass whose instances cannot be changed; `frozen` is there to say so where it is used."""
        assert frozen
        return _made


def _made(cls: type) -> type:
    made: type = dataclasses.dataclass(repr=False, eq=False)(cls)
    for method in (_eq, _hash, _repr, _setattr, _delattr):
        name = f"__{method.__name__[1:]}__"
        if name not in cls.__dict__:
            setattr(made, name, method)
    return made


def _eq(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self.__dict__ == other.__dict__


def _hash(self: Any) -> int:
    return hash(tuple(self.__dict__.values()))


def _repr(self: Any) -> str:
    values = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
    return f"{self.__class__.__qualname__}({values})"


def _setattr(self: Any, name: str, value: object) -> None:
    """`__init__` gives each field its value, once."""
    values = self.__dict__
    if name in values or name not in self.__dataclass_fields__:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
    values[name] = value


def _delattr(_self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
