"""Runs: many results that caused no record, packed into one row.

Most of what happens is that nothing happens. A run holds such results in the order of their batches, across services,
column by column. Stamps are kept bit for bit (law 20b): a float's bit pattern, read as an integer, is packed as the
difference from its neighbour, which is small where the floats are close. The columns are split into byte planes, so
that zlib finds the planes which are all alike. Only `wall` is rounded, to a millisecond.
"""

from __future__ import annotations

import json
import operator
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, starmap
from math import inf
from typing import Any, Final, cast

import attrs

from selfheal.core.messages import CheckFinished
from selfheal.core.model import CheckResult, Instance, Purpose
from selfheal.core.records import decode, encode
from selfheal.errors import JournalDamaged, JournalTooNew
from selfheal.journal.inputs import to_bytes
from selfheal.journal.store import Batch

VERSION: Final = 1
LONGEST: Final = 4096
"""Results in one run: long enough to share its header, short enough to be unpacked in a few milliseconds."""

_COLUMNS: Final = 8


@attrs.frozen(kw_only=True)
class Run:
    """A packed run: the numbers and the UNIX times of its first and last batch, and its bytes."""

    first: int
    last: int
    at: float
    since: float
    until: float
    count: int
    body: bytes


def fits(batch: Batch) -> bool:
    """Whether a batch can be one of a run: a result that caused no record, with ordinary stamps."""
    event = batch.input
    return (
        event.__class__ is CheckFinished
        and not batch.records
        and 0.0 <= event.started < inf
        and 0.0 <= event.ended < inf
        and event.at == batch.at
        and 0.0 <= event.at < inf
    )


def pack(batches: Sequence[Batch]) -> Run:
    """Return the run of some batches that fit, in order. Raises `TypeError` for a result with no stored form."""
    events = [cast(CheckFinished, batch.input) for batch in batches]
    services: dict[str, int] = {}
    shapes: dict[bytes, int] = {}
    known: dict[int, int] = {}
    generations: dict[str, int] = {}
    of_service, of_shape, steps = [], [], []
    for event in events:
        of_service.append(services.setdefault(event.service, len(services)))
        of_shape.append(_shape_index(event, shapes, known))
        steps.append(event.generation - generations.get(event.service, 0))
        generations[event.service] = event.generation
    at = _bits(event.at for event in events)
    ended = _bits(event.ended for event in events)
    started = _bits(event.started for event in events)
    offsets = [round((batch.wall - batch.at) * 1000.0) for batch in batches]
    columns = (
        _differences([batch.number for batch in batches]),
        _differences(at),
        list(map(operator.sub, at, ended)),
        list(map(operator.sub, ended, started)),
        _differences(offsets),
        of_service,
        of_shape,
        steps,
    )
    head = to_bytes({"v": VERSION, "services": list(services), "shapes": [json.loads(shape) for shape in shapes]})
    return Run(
        first=batches[0].number,
        last=batches[-1].number,
        at=batches[-1].at,
        since=min(batch.wall for batch in batches),
        until=max(batch.wall for batch in batches),
        count=len(batches),
        body=zlib.compress(len(head).to_bytes(4, "little") + head + b"".join(_planes(column) for column in columns), 6),
    )


def services_of(body: bytes) -> frozenset[str]:
    """Return the names of the services in a run, without unpacking the rest."""
    head, _ = _opened(body)
    return frozenset(head["services"])


def unpack(body: bytes, *, after: int = 0, service: str | None = None) -> Iterator[Batch]:
    """Yield the batches of a run with a number above `after`, in order; with `service` only its own.

    Raises `JournalDamaged` for other bytes.
    """
    head, data = _opened(body)
    count, rest = divmod(len(data), 8 * _COLUMNS)
    if rest:
        raise JournalDamaged("a run of results has the wrong length; run `selfheal audit verify`")
    columns = [_unplaned(data[8 * count * i : 8 * count * (i + 1)], count) for i in range(_COLUMNS)]
    number, at_bits, to_ended, to_started, offset, of_service, of_shape, steps = columns
    at_bits = array("q", accumulate(at_bits))
    ended_bits = array("q", map(operator.sub, at_bits, to_ended))
    started_bits = array("q", map(operator.sub, ended_bits, to_started))
    names: list[str] = head["services"]
    shapes = [_shape(shape) for shape in head["shapes"]]
    generations = [0] * len(names)
    wanted = None if service is None else (names.index(service) if service in names else -1)
    stamps = zip(accumulate(number), _floats(at_bits), _floats(ended_bits), _floats(started_bits), strict=True)
    for (place, at, ended, started), ahead, name, shape, step in zip(
        stamps, accumulate(offset), of_service, of_shape, steps, strict=True
    ):
        generations[name] += step
        if place <= after or (wanted is not None and name != wanted):
            continue
        purpose, result, instance = shapes[shape]
        yield Batch(
            number=place,
            at=at,
            wall=at + ahead / 1000.0,
            input=CheckFinished(
                at=at,
                service=names[name],
                generation=generations[name],
                purpose=purpose,
                started=started,
                ended=ended,
                result=result,
                instance=instance,
            ),
        )


def _shape_index(event: CheckFinished, shapes: dict[bytes, int], known: dict[int, int]) -> int:
    """Return the index of (purpose, result, instance). `known` spares encoding the objects that never change."""
    by_id = id(event.result) if event.instance is None and event.purpose is Purpose.ROUTINE else 0
    if by_id in known:
        return known[by_id]
    shape = to_bytes([event.purpose.value, encode(event.result), encode(event.instance)])
    index = shapes.setdefault(shape, len(shapes))
    if by_id:
        known[by_id] = index
    return index


def _shape(stored: list[Any]) -> tuple[Purpose, CheckResult, Instance | None]:
    purpose, result, instance = stored
    return (
        Purpose(purpose),
        decode(CheckResult, result),
        None if instance is None else decode(Instance, instance),
    )


def _opened(body: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        data = zlib.decompress(body)
        size = int.from_bytes(data[:4], "little")
        head: dict[str, Any] = json.loads(data[4 : 4 + size])
        version = head["v"]
    except (zlib.error, ValueError, KeyError, TypeError) as problem:
        raise JournalDamaged(f"a run of results cannot be read: {problem}; run `selfheal audit verify`") from problem
    if version > VERSION:
        raise JournalTooNew(f"a run of results (version {version}) was written by a newer release; install that one")
    return head, data[4 + size :]


def _bits(values: Iterable[float]) -> array[int]:
    """Return the bit patterns of floats that are not negative; adding 0.0 makes a negative zero a plain one."""
    bits = array("q")
    bits.frombytes(array("d", (value + 0.0 for value in values)).tobytes())
    return bits


def _floats(bits: array[int]) -> array[float]:
    values = array("d")
    values.frombytes(bits.tobytes())
    return values


def _differences(values: Sequence[int]) -> list[int]:
    return [values[0], *starmap(lambda before, after: after - before, pairwise(values))]


def _planes(column: Sequence[int]) -> bytes:
    """Return the bytes of a column of 64-bit integers, all lowest bytes first, then the next."""
    words = array("q", column)
    if sys.byteorder == "big":
        words.byteswap()
    data = words.tobytes()
    return b"".join(data[plane::8] for plane in range(8))


def _unplaned(data: bytes, count: int) -> array[int]:
    mixed = bytearray(len(data))
    for plane in range(8):
        mixed[plane::8] = data[plane * count : (plane + 1) * count]
    words = array("q")
    words.frombytes(bytes(mixed))
    if sys.byteorder == "big":
        words.byteswap()
    return words
