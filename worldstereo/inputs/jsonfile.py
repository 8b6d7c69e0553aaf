"""Strict JSON: no NaN, no infinity, no key twice, bounded size and nesting; typed access."""

import json
import math
from typing import Any

from worldstereo.errors import InputRefused
from worldstereo.inputs.limits import Limits, refusal, shown, size_text


class _Bad(ValueError):
    """A value that JSON text may hold and we do not accept."""


def parse(name: str, data: bytes, limits: Limits, lost: bool = False) -> Any:
    """The value of a JSON text.

    With `lost`, NaN and Infinity are let through, as Python writes them for a pose that was lost;
    then `Node.number` and `poses.pose` refuse them with their place.

    Raises:
        InputRefused: not UTF-8, not JSON, too large or too deep, NaN, infinity or a key twice.
    """
    if len(data) > limits.json_bytes:
        raise refusal(
            name,
            f"{size_text(len(data))} of JSON",
            f"At most {size_text(limits.json_bytes)} is accepted",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal(
            name, f"byte {error.start} is not UTF-8", "Save it as UTF-8 JSON text"
        ) from None
    try:
        value = json.loads(
            text,
            parse_constant=float if lost else _constant,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_pairs,
        )
    except _Bad as error:
        raise refusal(
            name, str(error), "Only finite numbers and unique keys are accepted"
        ) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise refusal(name, f"not valid JSON at {where}", "Export it again") from None
    except RecursionError:
        raise _too_deep(name, limits) from None
    except ValueError:
        raise refusal(name, "not valid JSON", "Export it again") from None
    if _deeper_than(value, limits.json_depth):
        raise _too_deep(name, limits)
    return value


def _constant(text: str) -> float:
    raise _Bad(f"holds {text}")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Bad(f"holds {shown(text, 16)}, which is too large")
    return value


def _int(text: str) -> int:
    if len(text) > 19:
        raise _Bad(f"holds a number of {len(text)} digits")
    return int(text)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _Bad(f'holds the key "{shown(key, 24)}" twice')
        out[key] = value
    return out


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = (
            [
                child
                for parent in level
                for child in (parent.values() if isinstance(parent, dict) else parent)
                if isinstance(child, dict | list)
            ]
            if level and isinstance(level[0], dict | list)
            else []
        )
        if not level:
            return False
    return True


def _too_deep(name: str, limits: Limits) -> InputRefused:
    return refusal(
        name,
        f"brackets are nested more than {limits.json_depth} levels deep",
        f"At most {limits.json_depth} levels are accepted",
    )


class Node:
    """A JSON value that knows its file and its place in it, for messages."""

    def __init__(self, value: Any, name: str, place: str = "") -> None:
        self.value, self.name, self.place = value, name, place

    def refuse(self, wrong: str, way_out: str) -> InputRefused:
        return refusal(self.name, f"{self.place}: {wrong}" if self.place else wrong, way_out)

    def has(self, key: str) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def at(self, key: str) -> "Node":
        """A member that must be there."""
        if not isinstance(self.value, dict):
            raise self.refuse(f"is not an object with {key}", f'An object with "{key}" is accepted')
        if self.value.get(key) is None:
            raise self.refuse(f'"{key}" is missing', f'Add "{key}" or export the file again')
        return Node(self.value[key], self.name, f"{self.place} {key}".strip())

    def items(self, most: int, what: str) -> "list[Node]":
        """The entries of a list with between one and `most` of them."""
        if not isinstance(self.value, list) or len(self.value) == 0:
            raise self.refuse(
                f"holds no list of {what}", f"A list with at least 1 of {what} is accepted"
            )
        if len(self.value) > most:
            raise self.refuse(f"{len(self.value)} {what}", f"At most {most} are accepted")
        one = what.removesuffix("s")
        return [Node(v, self.name, f"{one} {i}") for i, v in enumerate(self.value)]

    def text(self, longest: int = 512) -> str:
        if not isinstance(self.value, str) or not 0 < len(self.value) <= longest:
            raise self.refuse("is not a text", f"A text of 1 to {longest} characters is accepted")
        return self.value

    def number(self, low: float | int = -1e12, high: float | int = 1e12) -> float:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse("is not a number", "A finite number is accepted")
        if not low <= value <= high:
            raise self.refuse(
                f"is {value:.6g}", f"A number from {low:.6g} to {high:.6g} is accepted"
            )
        return float(value)

    def integer(self, low: int, high: int) -> int:
        value = self.number(low, high)
        if value != int(value):
            raise self.refuse(f"is {value:.6g}", f"A whole number from {low} to {high} is accepted")
        return int(value)

    def matrix(self) -> Any:
        """A pose: 4 x 4, 3 x 4, or its 16 or 12 numbers in one row."""
        flat = isinstance(self.value, list) and not any(isinstance(v, list) for v in self.value)
        rows = len(self.value) if isinstance(self.value, list) else 0
        if flat and rows in (12, 16):
            return self.array(rows).reshape(-1, 4)
        return self.array(3, 4) if rows == 3 else self.array(4, 4)

    def array(self, *shape: int) -> Any:
        """Numbers as a float64 array of this shape."""
        import numpy as np

        accepted = " x ".join(map(str, shape)) + " finite numbers are accepted"
        flat: list[float] = []

        def walk(value: Any, sizes: tuple[int, ...]) -> None:
            if not sizes:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise self.refuse("holds something that is not a number", accepted)
                flat.append(float(value))
                return
            if not isinstance(value, list) or len(value) != sizes[0]:
                got = f"{len(value)} entries" if isinstance(value, list) else "no list"
                raise self.refuse(f"holds {got} where {sizes[0]} belong", accepted)
            for entry in value:
                walk(entry, sizes[1:])

        walk(self.value, shape)
        return np.array(flat, dtype=np.float64).reshape(shape)
