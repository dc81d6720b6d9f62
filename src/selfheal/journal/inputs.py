"""The codec of inputs: what happened, as it is stored so that it can be replayed (law 20b).

The shape is that of records: an object of the fields that differ from their defaults, under `kind` and `v`. A change
of a stored shape raises the version of that kind and adds a row to `UPCASTS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, cast

from selfheal.core.messages import (
    ActionFinished,
    CheckFinished,
    FleetProposed,
    JournalChanged,
    Requested,
    Started,
    WatchReported,
    WindowChanged,
    WokeLate,
)
from selfheal.core.records import RECORDS, VERSIONS, Record, Upcast, decode, decode_record, dumps, encode
from selfheal.core.routing import DeliveryFinished
from selfheal.errors import JournalDamaged, JournalTooNew
from selfheal.journal.store import Input

INPUTS: Final[Mapping[str, type[Any]]] = {
    "started": Started,
    "woke_late": WokeLate,
    "check_finished": CheckFinished,
    "action_finished": ActionFinished,
    "watch_reported": WatchReported,
    "requested": Requested,
    "fleet_proposed": FleetProposed,
    "window_changed": WindowChanged,
    "journal_changed": JournalChanged,
    "delivery_finished": DeliveryFinished,
}
"""Every kind of input by the name it is stored under. `TimePassed` carries nothing a replay needs and is not here."""

KINDS: Final[Mapping[type[Any], str]] = {cls: kind for kind, cls in INPUTS.items()}

INPUT_VERSIONS: Final[Mapping[str, int]] = dict.fromkeys(INPUTS, 1)
"""The version of each kind's stored shape that this release writes."""

INPUT_UPCASTS: Final[Mapping[tuple[str, int], Upcast]] = {}
"""(kind, version) -> what makes version + 1 of it. None is ever removed."""


def encode_input(event: Input) -> dict[str, Any]:
    """Return an input as JSON data. Raises `TypeError` for what has no stored form, `TimePassed` among it."""
    kind = KINDS.get(event.__class__)
    if kind is None:
        raise TypeError(f"{event.__class__.__name__} is not stored")
    return {"kind": kind, "v": INPUT_VERSIONS[kind], **encode(event)}


def decode_input(data: Mapping[str, Any]) -> Input:
    """Return the input stored as `data`, lifting older shapes. Raises `ValueError` for one that is not ours."""
    body = dict(data)
    kind, version = body.pop("kind", None), body.pop("v", None)
    cls = INPUTS.get(kind)
    if cls is None or not isinstance(version, int):
        raise ValueError(f"unknown kind of input {kind!r}")
    while version < INPUT_VERSIONS[kind]:
        body = INPUT_UPCASTS[kind, version](body)
        version += 1
    return cast(Input, decode(cls, body))


def to_bytes(data: Any) -> bytes:
    """Return JSON data as bytes. A lone surrogate, as undecodable output of a command leaves it, is escaped."""
    try:
        return dumps(data)
    except UnicodeEncodeError:
        return json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()


def stored_record(body: bytes, where: str) -> Record:
    """Return the record in a row. Raises `JournalTooNew` or `JournalDamaged`, naming the row."""
    data = _loaded(body, where)
    _refuse_newer(data, RECORDS, VERSIONS, where)
    try:
        return decode_record(data)
    except ValueError as problem:
        raise JournalDamaged(f"{where}: {problem}; run `selfheal audit verify`") from problem


def stored_input(body: bytes, where: str) -> Input:
    """Return the input in a row. Raises `JournalTooNew` or `JournalDamaged`, naming the row."""
    data = _loaded(body, where)
    _refuse_newer(data, INPUTS, INPUT_VERSIONS, where)
    try:
        return decode_input(data)
    except ValueError as problem:
        raise JournalDamaged(f"{where}: {problem}; run `selfheal audit verify`") from problem


def _loaded(body: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError as problem:
        raise JournalDamaged(f"{where} cannot be read: {problem}; run `selfheal audit verify`") from problem
    if not isinstance(data, dict):
        raise JournalDamaged(f"{where} is not an object; run `selfheal audit verify`")
    return data


def _refuse_newer(data: Mapping[str, Any], known: Mapping[str, Any], versions: Mapping[str, int], where: str) -> None:
    kind, version = data.get("kind"), data.get("v")
    if isinstance(kind, str) and (kind not in known or (isinstance(version, int) and version > versions[kind])):
        raise JournalTooNew(f"{where} ({kind}, version {version}) was written by a newer release; install that one")
