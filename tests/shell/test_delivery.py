"""The outbox under virtual time, on both loops: order, patience, bounds, and a clean end."""

from __future__ import annotations

import asyncio
import logging
import selectors
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import anyio
import attrs
import pytest
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfheal.core.model import Notification, Phase, Severity
from selfheal.errors import NotificationFailed, PluginError
from selfheal.plugins import Context
from selfheal.plugins import Notifier as NotifierProtocol
from selfheal.shell.blocking import StillStuck
from selfheal.shell.delivery import Outbox, Patience, Send, Undelivered, waits

T = TypeVar("T")
Scenario: TypeAlias = Callable[[], Awaitable[T]]
FIRING, UPDATED, RESOLVED = Phase.FIRING, Phase.UPDATED, Phase.RESOLVED
CANARY = "canary-d15ea5e"


# -- virtual time -----------------------------------------------------------------------------------------------------


class Jumping(selectors.SelectSelector):
    """Where a loop would sleep, time jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits, and nothing will come"
            self.now += max(0.0, timeout)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario[T]], T]:
    """Run a scenario in virtual time."""
    return lambda scenario: run_on(request.param, scenario)


def run_on(backend: str, scenario: Scenario[T]) -> T:
    if backend == "trio":
        # Not `anyio.run`: up to anyio 4.7 it hands no options to trio, and all would live in real time.
        return trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
    return anyio.run(scenario, backend=backend, backend_options={"loop_factory": JumpingLoop})


# -- the actors -------------------------------------------------------------------------------------------------------


class Nothing:
    """A context; no notifier here looks into it."""

    service = "here"
    remaining = 1.0
    kept: ClassVar[MutableMapping[str, Any]] = {}

    async def blocking(self, function: Callable[..., T], /, *args: Any) -> T:
        return function(*args)


@attrs.define(eq=False)
class Phone:
    """A notifier that does with each message what `does` says, and remembers every attempt."""

    kind: ClassVar[str] = "phone"

    does: Callable[[Notification, int], float | Exception] = lambda notification, attempt: 0.0
    refresh: float | None = None
    attempts: list[tuple[float, str]] = attrs.field(factory=list)
    heard: list[str] = attrs.field(factory=list)
    busy: int = 0

    async def send(self, notification: Notification, context: Context) -> str | None:
        assert self.busy == 0, "one at a time"
        self.busy += 1
        try:
            self.attempts.append((anyio.current_time(), notification.id))
            deed = self.does(notification, sum(one == notification.id for _, one in self.attempts))
            if isinstance(deed, Exception):
                raise deed
            await anyio.sleep(deed)
            self.heard.append(notification.id)
            return f"receipt of {notification.id}"
        finally:
            self.busy -= 1


def at(phone: Phone, identity: str) -> list[float]:
    return [when for when, one in phone.attempts if one == identity]


class House:
    """An outbox with its host, which notes every end."""

    def __init__(self, phones: dict[str, Phone], **options: Any) -> None:
        self.ends: list[tuple[str, str, str | None, str, bool]] = []
        self.outbox = Outbox(
            dict[str, NotifierProtocol](phones),
            call=options.pop("call", call),
            finished=lambda *end: self.ends.append(end),
            **options,
        )

    def ids(self, notifier: str = "phone") -> list[str]:
        return [end[0] for end in self.ends if end[1] == notifier]

    def end_of(self, identity: str, notifier: str = "phone") -> tuple[str | None, str, bool]:
        (end,) = [end for end in self.ends if end[:2] == (identity, notifier)]
        return end[2:]

    async def __aenter__(self) -> Self:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self.outbox.run)
        return self

    async def __aexit__(self, *problem: object) -> None:
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)


async def call(name: str, send: Send, timeout: float) -> str | None:
    with anyio.fail_after(timeout):
        return await send(Nothing())


def message(identity: str, incident: int | None = 1, phase: Phase = FIRING, **changes: Any) -> Notification:
    return Notification(
        id=identity,
        incident=incident,
        service=changes.pop("service", "redis"),
        phase=phase,
        severity=changes.pop("severity", Severity.HIGH),
        title=identity,
        **changes,
    )


def temporary(*, retry_after: float | None = None) -> NotificationFailed:
    return NotificationFailed("busy", retry_after=retry_after)


# -- order ------------------------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_one_at_a_time_with_a_receipt(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: 1.0)
        async with House({"phone": phone}) as house:
            for number in range(20):
                house.outbox.offer("phone", message(f"m{number}", incident=number % 3))
            await anyio.sleep(30)
            assert phone.heard == house.ids() == [f"m{number}" for number in range(20)]
            assert house.end_of("m7") == ("receipt of m7", "", False)
            (standing,) = house.outbox.standing()
            assert (standing.waiting, standing.delivered, standing.failed) == (0, 20, 0)

    run(story)


def test_a_short_outage_does_not_change_the_order(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: temporary() if anyio.current_time() < 100 else 0.0)
        async with House({"phone": phone}) as house:
            for number in range(10):
                house.outbox.offer("phone", message(f"m{number}", incident=number))
            await anyio.sleep(400)
            assert phone.heard == [f"m{number}" for number in range(10)]
            assert {identity for _, identity in phone.attempts[:-10]} <= {"m0"}, "the others wait behind it"

    run(story)


def test_one_that_hangs_or_fails_delays_no_other(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        hung = Phone(does=lambda n, attempt: 1e6)
        broken = Phone(does=lambda n, attempt: ZeroDivisionError())
        well = Phone()
        async with House({"hung": hung, "broken": broken, "phone": well}) as house:
            for number in range(5):
                for name in ("hung", "broken", "phone"):
                    house.outbox.offer(name, message(f"m{number}"))
            await anyio.sleep(0.1)
            assert well.heard == ["m0", "m1", "m2", "m3", "m4"]
            assert hung.heard == []

    run(story)


def test_an_id_that_waits_is_not_taken_twice(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: 1.0)
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("m1"))
            await anyio.sleep(0.5)
            house.outbox.offer("phone", message("m1"))  # fed again while it is being sent
            await anyio.sleep(5)
            assert phone.heard == house.ids() == ["m1"]

    run(story)


def test_what_is_offered_before_the_start_is_delivered(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone()
        house = House({"phone": phone})
        house.outbox.offer("phone", message("m1"))
        house.outbox.offer("fax", message("m2"))
        assert house.end_of("m2", "fax") == (None, "there is no notifier called 'fax'", True)
        async with house:
            await anyio.sleep(0.1)
            assert phone.heard == ["m1"]

    run(story)


# -- patience ---------------------------------------------------------------------------------------------------------


def test_the_waits_double_up_to_the_cap_and_are_half_jittered() -> None:
    patience = Patience(wait=waits(first=1.0, cap=120.0))
    for attempt, full in enumerate([1, 2, 4, 8, 16, 32, 64, 120, 120, 120], 1):
        drawn = [patience.pause(attempt, temporary()) for _ in range(50)]
        assert full / 2 <= min(drawn) <= max(drawn) <= full
        assert max(drawn) > min(drawn)
    assert patience.pause(5000, temporary()) <= 120.0


def test_the_receiver_may_ask_for_more_but_not_for_a_year() -> None:
    patience = Patience()
    assert patience.pause(1, temporary(retry_after=42.0)) == 42.0
    assert patience.pause(1, temporary(retry_after=31e6)) == 900.0
    assert 0.5 <= patience.pause(1, temporary(retry_after=0.0)) <= 1.0
    assert 0.5 <= patience.pause(1, temporary(retry_after=-5.0)) <= 1.0


def test_a_message_is_tried_again_until_it_arrives(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: temporary(retry_after=50) if attempt <= 2 else 0.0)
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("m1"))
            await anyio.sleep(10)
            (standing,) = house.outbox.standing()
            assert (standing.waiting, standing.failing_since, standing.last_error) == (1, 0.0, "busy")
            await anyio.sleep(200)
            assert at(phone, "m1") == pytest.approx([0.0, 50.0, 100.0])
            assert house.end_of("m1") == ("receipt of m1", "", False)
            assert house.outbox.standing()[0].failing_since is None

    run(story)


@pytest.mark.parametrize(("phase", "hours"), [(FIRING, 1), (UPDATED, 1), (RESOLVED, 24)])
def test_patience_ends_later_for_a_resolution(phase: Phase, hours: int, run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: temporary())
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("m1", phase=phase))
            await anyio.sleep(hours * 3600 - 1)
            assert house.ends == []
            await anyio.sleep(2)
            receipt, error, permanent = house.end_of("m1")
            assert (receipt, permanent) == (None, False)
            assert error.startswith("busy (given up after ")
            assert at(phone, "m1")[-1] == pytest.approx(hours * 3600)

    run(story)


def test_a_refusal_for_good_is_not_repeated(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        problems = {"m1": NotificationFailed("unknown channel", permanent=True), "m2": PluginError("pip install it")}
        phone = Phone(does=lambda n, attempt: problems.get(n.id, 0.0))
        async with House({"phone": phone}) as house:
            for identity in ("m1", "m2", "m3"):
                house.outbox.offer("phone", message(identity))
            await anyio.sleep(0.1)
            assert house.end_of("m1") == (None, "unknown channel (refused)", True)
            assert house.end_of("m2")[2]
            assert house.end_of("m2")[1].startswith("pip install it")
            assert phone.heard == ["m3"]
            assert len(phone.attempts) == 3

    run(story)


def test_a_refusal_after_an_attempt_that_may_have_got_through_is_not_called_untold(
    run: Callable[[Scenario[None]], None],
) -> None:
    async def story() -> None:
        refused = NotificationFailed("gone", permanent=True)
        phone = Phone(does=lambda n, attempt: temporary() if attempt == 1 else refused)
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("m1"))
            await anyio.sleep(10)
            assert house.end_of("m1") == (None, "gone (refused)", False)

    run(story)


def test_a_bug_in_a_notifier_is_named_but_not_quoted_and_not_tried_for_an_hour(
    run: Callable[[Scenario[None]], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: KeyError(CANARY) if n.id == "m1" else 0.0)
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("m1"))
            house.outbox.offer("phone", message("m2"))
            await anyio.sleep(20)
            assert house.end_of("m1") == (None, "raised KeyError (a bug in the notifier? 3 attempts)", False)
            assert phone.heard == ["m2"]

    caplog.set_level(logging.DEBUG)
    run(story)
    assert CANARY not in caplog.text


def test_error_texts_are_scrubbed_and_stay_on_one_line(
    run: Callable[[Scenario[None]], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: NotificationFailed(f"no {CANARY}\nhere", permanent=True))
        async with House({"phone": phone}, scrub=lambda text: text.replace(CANARY, "***")) as house:
            house.outbox.offer("phone", message("m1"))
            await anyio.sleep(1)
            assert house.end_of("m1")[1] == "no ***\\u000ahere (refused)"

    caplog.set_level(logging.DEBUG)
    run(story)
    assert CANARY not in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("keeps_time", [True, False])
def test_a_call_that_hangs_is_ended_and_tried_again(keeps_time: bool, run: Callable[[Scenario[None]], None]) -> None:
    async def careless(name: str, send: Send, timeout: float) -> str | None:
        return await send(Nothing())

    async def story() -> None:
        phone = Phone(does=lambda n, attempt: 1e6 if attempt == 1 else 0.0)
        async with House({"phone": phone}, timeout=10.0, call=call if keeps_time else careless) as house:
            house.outbox.offer("phone", message("m1"))
            await anyio.sleep(20)
            assert phone.heard == ["m1"]
            assert house.outbox.standing()[0].last_error == "did not end within 10 s"

    run(story)


def test_a_plugin_still_stuck_is_no_bug(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: StillStuck("the previous call has not come back") if attempt < 6 else 0.0)
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("m1"))
            await anyio.sleep(100)
            assert house.end_of("m1")[0] == "receipt of m1"

    run(story)


# -- a message that nobody takes --------------------------------------------------------------------------------------


def test_a_message_a_receiver_chokes_on_does_not_silence_the_channel(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: temporary() if n.id.startswith("poison") else 0.0)
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("poison", incident=1, phase=RESOLVED))
            house.outbox.offer("phone", message("behind", incident=1))
            house.outbox.offer("phone", message("a", incident=2))
            house.outbox.offer("phone", message("b", incident=2))
            await anyio.sleep(290)
            assert phone.heard == [], "for five minutes the order is kept"
            await anyio.sleep(300)
            assert phone.heard == ["a", "b"]
            house.outbox.offer("phone", message("c", incident=3))
            await anyio.sleep(1)
            assert phone.heard == ["a", "b", "c"], "a new one passes at once"
            await anyio.sleep(3600)
            assert phone.heard == ["a", "b", "c", "behind"], "its own matter waited, but not for a day"
            assert "given up" in house.end_of("poison")[1]

    run(story)


def test_a_receiver_that_is_down_is_not_hammered_however_much_waits(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: temporary() if anyio.current_time() < 3000 else 0.0)
        async with House({"phone": phone}) as house:
            for number in range(200):
                house.outbox.offer("phone", message(f"m{number}", incident=number))
            await anyio.sleep(3000)
            assert len(phone.attempts) < 60
            await anyio.sleep(300)
            assert len(phone.heard) == 200
            assert not [end for end in house.ends if end[3]]

    run(story)


def test_what_waits_behind_a_dead_receiver_is_given_up_in_time(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: temporary())
        async with House({"phone": phone}) as house:
            for number in range(200):
                house.outbox.offer("phone", message(f"m{number}", incident=number))
            await anyio.sleep(1800)
            house.outbox.offer("phone", message("late", incident=999))
            await anyio.sleep(1801 + 120)
            assert len(house.ids()) == 200
            assert "late" not in house.ids()
            assert all(error.startswith("busy (given up after") for _, _, _, error, _ in house.ends)
            assert len(phone.attempts) < 80

    run(story)


# -- what may be left out ---------------------------------------------------------------------------------------------


def test_a_newer_message_takes_the_place_of_an_undelivered_update(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: 10.0)
        async with House({"phone": phone}) as house:
            offer = house.outbox.offer
            offer("phone", message("first", incident=9))
            await anyio.sleep(1)
            offer("phone", message("f1"))
            offer("phone", message("u1", phase=UPDATED))
            offer("phone", message("other", incident=2))
            offer("phone", message("u2", phase=UPDATED))
            offer("phone", message("u3", phase=UPDATED))
            offer("phone", message("r1", phase=RESOLVED))
            offer("phone", message("f2"))
            await anyio.sleep(100)
            assert phone.heard == ["first", "f1", "r1", "other", "f2"]
            assert house.end_of("u1") == (None, "replaced by the newer u2", True)
            assert house.end_of("u3") == (None, "replaced by the newer r1", True)
            assert house.outbox.standing()[0].replaced == 3

    run(story)


def test_an_update_being_sent_is_not_replaced(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: 10.0)
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("u1", phase=UPDATED))
            await anyio.sleep(1)
            house.outbox.offer("phone", message("u2", phase=UPDATED))
            await anyio.sleep(100)
            assert phone.heard == house.ids() == ["u1", "u2"]
            assert house.end_of("u1") == ("receipt of u1", "", False)

    run(story)


def test_overflow_drops_the_least_worth_knowing_and_says_so(
    run: Callable[[Scenario[None]], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        phone = Phone(does=lambda n, attempt: 1000.0)
        async with House({"phone": phone}, limit=4, timeout=2000.0) as house:
            offer = house.outbox.offer
            offer("phone", message("sending", incident=1, severity=Severity.LOW))
            await anyio.sleep(1)
            offer("phone", message("critical", incident=2, severity=Severity.CRITICAL))
            offer("phone", message("update", incident=3, phase=UPDATED, severity=Severity.CRITICAL))
            offer("phone", message("low", incident=4, severity=Severity.LOW))
            offer("phone", message("high", incident=5))  # the fifth: over the limit
            offer("phone", message("well", incident=6, phase=RESOLVED))
            offer("phone", message("least", incident=7, severity=Severity.LOW))
            assert house.ids() == ["update", "low", "least"]
            assert house.end_of("low") == (None, "dropped: more than 4 messages wait", True)
            for number in range(8, 20):
                offer("phone", message(f"well{number}", incident=number, phase=RESOLVED))
            assert house.ids()[3:] == ["high", "critical"], "a resolution is never dropped, the bound gives way"
            offer("phone", message("again", incident=6))
            offer("phone", message("well again", incident=6, phase=RESOLVED))
            assert house.ids()[5:] == ["again", "well"], "one that a later one of its matter makes needless is"
            (standing,) = house.outbox.standing()
            assert (standing.overflowed, standing.waiting) == (7, 14)

    run(story)
    assert len([record for record in caplog.records if "messages wait" in record.getMessage()]) == 1


OFFERS = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, None]), st.sampled_from(list(Phase)), st.sampled_from(list(Severity))),
    max_size=40,
)
DEEDS = st.lists(st.sampled_from(["ok", "slow", "busy", "refused", "bug", "hang"]), min_size=1, max_size=20)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    offers=OFFERS, deeds=DEEDS, pauses=st.lists(st.sampled_from([0.0, 0.0, 3.0, 60.0]), min_size=1), close=st.booleans()
)
def test_every_message_has_one_end_and_no_resolution_is_lost(
    backend: str, offers: list[Any], deeds: list[str], pauses: list[float], close: bool
) -> None:
    ends: dict[str, Any] = {
        "ok": 0.0,
        "slow": 5.0,
        "busy": temporary(),
        "refused": NotificationFailed("no", permanent=True),
        "bug": ValueError("x"),
        "hang": 1e6,
    }

    async def story() -> None:
        tried = iter(range(10**6))
        phone = Phone(does=lambda n, attempt: ends[deeds[next(tried) % len(deeds)]])
        async with House({"phone": phone}, limit=5) as house:
            offered = []
            for number, (incident, phase, severity) in enumerate(offers):
                one = message(f"m{number}", incident=incident, phase=phase, severity=severity)
                offered.append(one)
                house.outbox.offer("phone", one)
                await anyio.sleep(pauses[number % len(pauses)])
            await anyio.sleep(0.0 if close else 10 * 86400)
            left = await house.outbox.close(10.0)
            told = house.ids() + [one.notification.id for one in left]
            assert sorted(told) == sorted(one.id for one in offered)
            if not close:
                assert left == ()
            dropped = {end[0] for end in house.ends if end[3].startswith(("dropped", "replaced"))}
            for place, one in enumerate(offered):
                if one.id in dropped and one.phase is RESOLVED:
                    assert any(n.phase is RESOLVED and n.incident == one.incident for n in offered[place + 1 :])
            for incident in (1, 2, 3, None):
                mine = [one.id for one in offered if one.incident == incident]
                heard = [identity for identity in phone.heard if identity in mine]
                assert heard == sorted(heard, key=mine.index), "in order within a matter"

    run_on(backend, story)


# -- told again -------------------------------------------------------------------------------------------------------


def test_what_is_open_is_sent_again_and_what_was_resolved_for_a_while(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(refresh=60.0)
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("f1"))
            house.outbox.offer("phone", message("other", incident=2))
            await anyio.sleep(301)
            assert at(phone, "f1") == [0.0, 60.0, 120.0, 180.0, 240.0, 300.0]
            assert len(at(phone, "other")) == 6
            house.outbox.offer("phone", message("u1", phase=UPDATED))
            await anyio.sleep(60)
            assert (len(at(phone, "f1")), len(at(phone, "u1"))) == (6, 2)
            house.outbox.offer("phone", message("r1", phase=RESOLVED))
            await anyio.sleep(7200)
            assert len(at(phone, "u1")) == 2
            assert 15 <= len(at(phone, "r1")) <= 16
            assert len(at(phone, "other")) > 100
            assert house.ids() == ["f1", "other", "u1", "r1"], "a refresh is no news"

    run(story)


def test_without_refresh_nothing_is_sent_twice(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone()
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("f1"))
            await anyio.sleep(86400)
            assert len(phone.attempts) == 1

    run(story)


def test_news_goes_before_a_refresh_and_a_failing_round_is_left(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        down = [False]
        phone = Phone(refresh=60.0, does=lambda n, attempt: temporary() if down[0] else 1.0)
        async with House({"phone": phone}) as house:
            for number in range(30):
                house.outbox.offer("phone", message(f"m{number}", incident=number))
            await anyio.sleep(75.5)  # in the middle of a round
            before = len(phone.attempts)
            house.outbox.offer("phone", message("news", incident=99))
            await anyio.sleep(2)
            assert phone.attempts[before][1] == "news"
            await anyio.sleep(600)
            down[0] = True
            before = len(phone.attempts)
            await anyio.sleep(600)
            assert 9 <= len(phone.attempts) - before <= 12, "one attempt a round"
            assert house.outbox.standing()[0].failing_since is not None
            down[0] = False
            await anyio.sleep(120)
            assert house.outbox.standing()[0].failing_since is None
            assert len(house.ends) == 31

    run(story)


def test_after_a_restart_what_is_open_is_refreshed(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(refresh=60.0)
        house = House({"phone": phone})
        house.outbox.resume("phone", [message("f1")])
        house.outbox.resume("fax", [message("f1")])
        async with house:
            await anyio.sleep(61)
            assert at(phone, "f1") == [0.0, 60.0]
            house.outbox.offer("phone", message("r1", phase=RESOLVED))
            await anyio.sleep(1)
            house.outbox.resume("phone", [message("f1")])
            await anyio.sleep(60)
            assert at(phone, "f1") == [0.0, 60.0], "what is newer is not overwritten"
            assert house.ids() == ["r1"]

    run(story)


# -- the end, and a new configuration ---------------------------------------------------------------------------------


def test_closing_tries_once_more_and_reports_what_is_left(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        slow = Phone(does=lambda n, attempt: 3.0)
        busy = Phone(does=lambda n, attempt: temporary() if n.id != "b3" else 0.0)
        hung = Phone(does=lambda n, attempt: 1e6)
        async with House({"slow": slow, "busy": busy, "hung": hung}) as house:
            for number in range(4):
                house.outbox.offer("slow", message(f"s{number}", incident=number))
            for number, incident in enumerate([1, 1, 2, 3]):
                house.outbox.offer("busy", message(f"b{number}", incident=incident))
            house.outbox.offer("hung", message("h0"))
            house.outbox.offer("hung", message("h1"))
            await anyio.sleep(0.25)
            before = anyio.current_time()
            left = await house.outbox.close(10.0)
            assert anyio.current_time() - before == pytest.approx(10.0)
            assert slow.heard == ["s0", "s1", "s2"]
            assert busy.heard == ["b3"]
            assert [(one.notifier, one.notification.id, one.error) for one in left] == [
                ("slow", "s3", ""),
                ("busy", "b0", "busy"),
                ("busy", "b1", ""),
                ("busy", "b2", "busy"),
                ("hung", "h0", ""),
                ("hung", "h1", ""),
            ]
            assert sorted(end[0] for end in house.ends) == ["b3", "s0", "s1", "s2"]
            assert hung.busy == 0

    run(story)


def test_closing_with_nothing_to_do_takes_no_time(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        phone = Phone(refresh=60.0)
        async with House({"phone": phone}) as house:
            house.outbox.offer("phone", message("m1"))
            await anyio.sleep(1)
            assert await house.outbox.close(10.0) == ()
            assert anyio.current_time() == pytest.approx(1.0)
            assert len(phone.attempts) == 1

    run(story)


def test_closing_what_never_ran_returns_everything(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        house = House({"phone": Phone()})
        house.outbox.offer("phone", message("m1"))
        assert await house.outbox.close(10.0) == (Undelivered(notifier="phone", notification=message("m1"), error=""),)
        assert anyio.current_time() == 0.0

    run(story)


def test_a_new_configuration_takes_over_without_losing_anything(run: Callable[[Scenario[None]], None]) -> None:
    async def story() -> None:
        old = Phone(does=lambda n, attempt: temporary())
        gone = Phone(does=lambda n, attempt: 1e6)
        mended, new = Phone(), Phone()
        async with House({"phone": old, "gone": gone}) as house:
            house.outbox.offer("phone", message("m1"))
            house.outbox.offer("gone", message("m2"))
            house.outbox.offer("gone", message("m3"))
            await anyio.sleep(60)
            changed: dict[str, NotifierProtocol] = {"phone": mended, "new": new}
            house.outbox.replace(changed)
            house.outbox.offer("new", message("m4"))
            await anyio.sleep(0.1)
            assert (mended.heard, new.heard) == (["m1"], ["m4"])
            assert house.end_of("m2", "gone") == (None, "its notifier is no longer configured", False), "on its way"
            assert house.end_of("m3", "gone") == (None, "its notifier is no longer configured", True)
            assert gone.busy == 0
            assert [standing.notifier for standing in house.outbox.standing()] == ["phone", "new"]
            assert await house.outbox.close(1.0) == ()

    run(story)
