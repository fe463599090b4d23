"""Wrong versions of bytes and of JSON."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: list[Any] = [None, True, False, -1, 0, 1, 2, 10**9, 2**31, 2**62, 2**64, 10**400, 0.5, -0.0, 1e308]
ODD += [float("nan"), float("inf"), "", "x", "\0", "\ud800", "$x$^", "../../x", "é" * 300, [], {}, [[]], {"x": 1}]
DEEP = "deeply nested"
"""Stands for 5,000 brackets, which Python cannot write as JSON either."""


def of_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to three changes: bits flipped, bytes overwritten, cut off, cut out, put in or repeated."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(changed) + 1)
        to = min(len(changed), at + rng.choice((1, 2, 4, 8, 64)))
        way = rng.randrange(7)
        if way <= 1 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            changed[at:to] = rng.randbytes(to - at)
        elif way == 3:
            changed[at:to] = bytes([rng.choice((0, 0xFF, 0x7F, 0x80))]) * (to - at)
        elif way == 4:
            del changed[at : rng.choice((to, len(changed)))]
        elif way == 5:
            changed[at:at] = rng.randbytes(rng.choice((1, 8)))
        else:
            changed[at:at] = changed[at:to] * rng.choice((1, 50))
    return bytes(changed)


def of_json(rng: random.Random, value: Any) -> Any:
    """A copy with one to three values replaced, left out or put elsewhere."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        changed = _with_one(rng, changed)
    return changed


def _with_one(rng: random.Random, value: Any) -> Any:
    if not value or not isinstance(value, dict | list) or rng.random() < 0.15:
        return _odd(rng, value)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    way = rng.random()
    if way < 0.1:
        del value[key]
    elif way < 0.15 and isinstance(value, dict):
        value[rng.choice(("", "x", "module.x", "\ud800", key + "x"))] = value.pop(key)
    elif way < 0.2 and isinstance(value, list):
        value.insert(key, value[key])
    else:
        value[key] = _with_one(rng, value[key])
    return value


def _odd(rng: random.Random, value: Any) -> Any:
    if isinstance(value, int | float) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 10**9))
    return DEEP if rng.random() < 0.03 else copy.deepcopy(rng.choice(ODD))


def dumped(value: Any) -> bytes:
    """As JSON, or what goes for it."""
    text = json.dumps(value)
    return text.replace(json.dumps(DEEP), "[" * 5000 + "]" * 5000).encode()
