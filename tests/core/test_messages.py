"""Events in, commands out: values that can be compared, kept and sent."""

from __future__ import annotations

from typing import Any, get_args

import attrs
import pytest

from selfheal.core import messages
from selfheal.core.messages import NOTHING, Command, Event, Output, RunCheck, TimePassed
from selfheal.core.model import Purpose

EVENTS = get_args(Event)
COMMANDS = get_args(Command)


@pytest.mark.parametrize("cls", [*EVENTS, *COMMANDS, Output], ids=lambda cls: cls.__name__)
def test_a_message_is_a_frozen_value(cls: type[Any]) -> None:
    assert attrs.has(cls)
    assert cls.__setattr__ is not object.__setattr__
    assert "__eq__" in cls.__dict__
    assert "__hash__" in cls.__dict__


@pytest.mark.parametrize("cls", EVENTS, ids=lambda cls: cls.__name__)
def test_an_event_says_when_it_happened(cls: type[Any]) -> None:
    (at,) = (field for field in attrs.fields(cls) if field.name == "at")
    assert at.type in (float, "float")
    assert at.kw_only
    assert at.default is attrs.NOTHING


@pytest.mark.parametrize("cls", COMMANDS, ids=lambda cls: cls.__name__)
def test_a_command_does_not_say_when(cls: type[Any]) -> None:
    assert "at" not in attrs.fields_dict(cls)


def test_every_message_of_the_module_is_in_one_of_the_two_unions() -> None:
    classes = {cls for cls in vars(messages).values() if isinstance(cls, type) and cls.__module__ == messages.__name__}
    assert classes == {*EVENTS, *COMMANDS, Output}


def test_messages_are_equal_by_what_they_say() -> None:
    one = RunCheck(service="db", generation=1, purpose=Purpose.ROUTINE)
    assert one == RunCheck(service="db", generation=1, purpose=Purpose.ROUTINE)
    assert one != attrs.evolve(one, generation=2)
    assert TimePassed(at=1.0) != TimePassed(at=2.0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.service = "api"  # type: ignore[misc]  # that it is refused is the point


def test_most_events_cause_nothing() -> None:
    assert Output() == NOTHING
    assert not NOTHING.records
    assert not NOTHING.commands
