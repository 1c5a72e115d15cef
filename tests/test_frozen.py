"""The project's frozen dataclasses against the standard library's: the same promises, kept by other means."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any, Callable

import pytest

from ollama_metrics import frozen

BOTH = pytest.mark.parametrize("dataclass", [dataclasses.dataclass, frozen.dataclass])
Decorator = Callable[..., Any]


def made(dataclass: Decorator) -> Any:
    """A class with a field without a default, one with a default and one with a default factory."""

    @dataclass(frozen=True)
    class Point:
        """A point."""

        KIND = "flat"

        x: int
        y: float = 2.0
        tags: tuple[str, ...] = dataclasses.field(default_factory=tuple)

        @property
        def sum(self) -> float:
            return self.x + self.y

    return Point


@BOTH
def test_a_field_is_set_once_and_never_again(dataclass: Decorator) -> None:
    """Neither a field nor any other attribute can be set, changed or deleted; FrozenInstanceError names it."""
    point = made(dataclass)(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'x'"):
        point.x = 3
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'z'"):
        point.z = 3
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'x'"):
        del point.x
    assert vars(point) == {"x": 1, "y": 2.0, "tags": ()}
    assert point.sum == 3.0


@BOTH
def test_equal_fields_of_one_class_are_equal(dataclass: Decorator) -> None:
    """Equality and hash are those of the fields; another class with the same fields is never equal."""
    point, other = made(dataclass), made(dataclass)
    assert point(1) == point(1, 2.0)
    assert hash(point(1)) == hash(point(1, 2.0))
    assert point(1) != point(2)
    assert point(1) != other(1)
    assert point(1) != (1, 2.0, ())
    assert len({point(1), point(1), point(1, 3.0)}) == 2


@BOTH
def test_what_the_library_offers_for_dataclasses_works(dataclass: Decorator) -> None:
    """fields, replace, asdict and repr treat it as any dataclass."""
    point = made(dataclass)
    assert [field.name for field in dataclasses.fields(point)] == ["x", "y", "tags"]
    assert dataclasses.replace(point(1), y=5.0) == point(1, 5.0)
    assert dataclasses.asdict(point(1)) == {"x": 1, "y": 2.0, "tags": ()}
    assert repr(point(1)) == "made.<locals>.Point(x=1, y=2.0, tags=())"
    with pytest.raises(TypeError):
        point()
    with pytest.raises(TypeError):
        dataclasses.replace(point(1), z=1)


@BOTH
def test_a_class_keeps_the_methods_of_its_own(dataclass: Decorator) -> None:
    """A repr or an equality that the class has itself is the one that counts."""

    @dataclass(frozen=True)
    class Secret:
        text: str

        def __repr__(self) -> str:
            return "Secret(...)"

    assert repr(Secret("prompt")) == "Secret(...)"


@BOTH
def test_a_subclass_adds_fields(dataclass: Decorator) -> None:
    """Fields of a base class come first, and all of them are frozen."""

    @dataclass(frozen=True)
    class Solid(made(dataclass)):  # type: ignore[misc]
        z: int = 9

    solid = Solid(1, 2.0, ("a",), 4)
    assert vars(solid) == {"x": 1, "y": 2.0, "tags": ("a",), "z": 4}
    with pytest.raises(dataclasses.FrozenInstanceError):
        solid.x = 2


def test_values_of_the_project_can_be_pickled() -> None:
    """A program that hands a reading to another process gets it there whole."""
    from ollama_metrics.window import Span

    span = Span(1.0, 2.0, {"": (0.1, 0.2)})
    assert pickle.loads(pickle.dumps(span)) == span
