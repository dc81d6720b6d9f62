"""A store that is slow, full, read-only, hung or gone: checks go on, nothing acts, people are told (laws 9, 12)."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from selfheal import Supervisor
from selfheal.core.model import Limits, Settled
from selfheal.core.routing import Route
from selfheal.journal import Files
from selfheal.journal.audit import verify
from selfheal.testing.doubles import RecordingNotifier

if TYPE_CHECKING:
    from tests.shell.supervised import (
        MEND,
        QUICK,
        Switch,
        faulty,
        hearing,
        stored,
        until,
        until_reason,
        until_state,
    )
else:
    from supervised import (
        MEND,
        QUICK,
        Switch,
        faulty,
        hearing,
        stored,
        until,
        until_reason,
        until_state,
    )

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


class Patient:
    """A service that is ill until it is cured, and who cured it."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.check = Switch()
        self.cures: list[str] = []
        self.notifier = RecordingNotifier()
        self.supervisor = Supervisor(
            journal=path,
            notifiers={"people": self.notifier},
            routes=[Route(notifier="people", group_wait=0.0)],
            **options,
        )
        self.supervisor.service("api", recovery_actions=MEND, **QUICK)(self.check)
        self.supervisor.action("api", "mend")(self.cure)

    def cure(self, context: Any) -> None:
        self.cures.append(context.key)
        self.check.well = True


# -- the gate --------------------------------------------------------------------------------------------------------


async def test_an_action_never_starts_before_its_intent_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "selfheal.db"
    at_the_cure: list[list[str]] = []
    with faulty(monkeypatch) as store:
        patient = Patient(path)

        def cure(context: Any) -> None:
            at_the_cure.append(_kinds_on_disk(path))
            patient.check.well = True

        patient.supervisor.action("api", "mend")(cure)
        store.slow = 0.15
        async with patient.supervisor, hearing(patient.supervisor) as heard:
            await until_state(patient.supervisor, "api", "healthy")
            patient.check.well = False
            intended = await heard.first("intended")
            ended = await heard.first("ended")
            store.slow = 0.0
    assert "intended" in at_the_cure[0]
    assert ended.at - intended.at >= 0.15  # it waited for the disk


def _kinds_on_disk(path: Path) -> list[str]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [kind for (kind,) in connection.execute("SELECT kind FROM records")]
    finally:
        connection.close()


async def test_a_journal_that_goes_down_at_the_gate_holds_the_action_and_gives_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "selfheal.db"
    with faulty(monkeypatch) as store:
        patient = Patient(path)
        async with patient.supervisor, hearing(patient.supervisor) as heard:
            await until_state(patient.supervisor, "api", "healthy")
            store.failing = True
            patient.check.well = False
            held = await until_reason(patient.supervisor, "api", "held:journal")
            assert held["attempt"] == 0
            assert patient.cures == []
            calls = patient.check.calls
            await until(lambda: patient.check.calls > calls + 2, what="further checks")
            health = await patient.supervisor.ask("health")
            assert health["journal"]["well"] is False
            assert "no space" in health["journal"]["detail"]
            told = await _told(patient.notifier, "journal")
            assert told
            assert all(t.seq is None for t in heard.told if t.volatile)
            assert any(t.volatile for t in heard.told)
            store.failing = False
            await until_state(patient.supervisor, "api", "healthy")
            await heard.first("ended", settled=Settled.DONE)
            assert len(patient.cures) == 1
            assert (await patient.supervisor.ask("health"))["journal"]["well"] is True
            assert (await patient.supervisor.ask("status"))["holds"] == []
    records = stored(path)
    assert _no_doubt(path)
    ended = [record for record in records if record.kind == "ended"]
    assert [record.settled for record in ended][-1] is Settled.DONE
    assert all(record.refunded for record in ended[:-1])
    intents = [record.intent for record in records if record.kind == "intended"]
    assert len(intents) == len(set(intents)) == len(ended)


async def _told(notifier: RecordingNotifier, word: str) -> str:
    with anyio.move_on_after(5):
        while True:
            for message in notifier.sent:
                if word in f"{message.title} {message.text}".lower():
                    return message.title
            await anyio.sleep(0.01)
    raise AssertionError(f"nobody was told of {word}: {[m.title for m in notifier.sent]}")


def _no_doubt(path: Path) -> bool:
    return verify(Files(database=path)).well


async def test_a_store_that_hangs_at_the_gate_is_noticed_and_the_action_does_not_start_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hung, it says nothing. When it wakes, its old intent is stored, with the word that it was never begun."""
    path = tmp_path / "selfheal.db"
    with faulty(monkeypatch) as store:
        patient = Patient(path)
        async with patient.supervisor, hearing(patient.supervisor) as heard:
            await until_state(patient.supervisor, "api", "healthy")
            release = threading.Event()
            patient.check.well = False
            await heard.first("moved")
            store.hung = release
            await until_reason(patient.supervisor, "api", "held:journal")
            assert patient.cures == []
            store.hung = None
            release.set()
            await until_state(patient.supervisor, "api", "healthy")
            assert len(patient.cures) == 1
    assert _no_doubt(path)


async def test_with_act_without_journal_a_person_has_decided_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(monkeypatch) as store:
        patient = Patient(tmp_path / "selfheal.db", limits=Limits(act_without_journal=True))
        async with patient.supervisor:
            await until_state(patient.supervisor, "api", "healthy")
            store.failing = True
            patient.check.well = False
            await until(lambda: bool(patient.cures), what="the cure")
            await until_state(patient.supervisor, "api", "healthy")
            store.failing = False
    assert len(patient.cures) == 1


async def test_an_act_is_answered_while_the_store_is_down_and_marked_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "selfheal.db"
    with faulty(monkeypatch) as store:
        patient = Patient(path)
        async with patient.supervisor, hearing(patient.supervisor) as heard:
            await until_state(patient.supervisor, "api", "healthy")
            store.failing = True
            with anyio.fail_after(5):
                answer = await patient.supervisor.act("disable", service="api", actor="alice", reason="a test")
            assert answer["volatile"] is True
            assert answer["seq"] is None
            store.failing = False
            await heard.first("hold_changed", hold="journal", on=False)
            after = await patient.supervisor.act("enable", service="api", actor="alice", reason="a test")
            assert after["seq"] is not None
    records = stored(path)
    seqs = {record.id: n for n, record in enumerate(records, 1) if record.kind == "answered"}
    assert seqs[after["id"]] == after["seq"]  # numbers go on where the store's are
    assert answer["id"] in seqs


async def test_numbers_of_the_stream_are_those_of_the_store_after_any_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "selfheal.db"
    with faulty(monkeypatch) as store:
        patient = Patient(path)
        async with patient.supervisor, hearing(patient.supervisor) as heard:
            for _ in range(3):
                await until_state(patient.supervisor, "api", "healthy")
                store.failing = True
                patient.check.well = False
                await until_reason(patient.supervisor, "api", "held:journal")
                store.failing = False
                await until_state(patient.supervisor, "api", "healthy")
    records = stored(path)
    numbered = [told for told in heard.told if told.seq is not None]
    assert numbered
    for told in numbered:
        assert told.seq is not None
        assert records[told.seq - 1] == told.record
    assert [told.seq for told in numbered] == sorted({told.seq for told in numbered if told.seq is not None})


# -- real disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of one megabyte."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("SKIPPED LOUDLY: a small file system needs root and `mount`; the full disk is not tried here")
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"SKIPPED LOUDLY: mount says {made.stderr.decode().strip()}; the full disk is not tried here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, b"\0" * 4096)
    except OSError:
        pass
    finally:
        os.close(descriptor)


@contextmanager
def _fixed(folder: Path) -> Iterator[None]:
    """Let nobody, not even root, write into a folder."""
    if os.geteuid() != 0:
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
        return
    if shutil.which("mount") is None:
        pytest.skip("SKIPPED LOUDLY: root may write everywhere, and there is no `mount` for a read-only folder")
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_holds_fire_and_all_is_well_when_there_is_room_again(small_disk: Path) -> None:
    path = small_disk / "selfheal.db"
    patient = Patient(path)
    async with patient.supervisor, hearing(patient.supervisor) as heard:
        await until_state(patient.supervisor, "api", "healthy")
        filler = small_disk / "filler"
        _fill(filler)
        patient.check.well = False
        held = await until_reason(patient.supervisor, "api", "held:journal", within=10.0)
        assert held["attempt"] == 0
        assert patient.cures == []
        await _told(patient.notifier, "journal")
        calls = patient.check.calls
        await until(lambda: patient.check.calls > calls + 2, what="further checks")
        filler.unlink()
        await until_state(patient.supervisor, "api", "healthy", within=15.0)
        assert len(patient.cures) == 1
        assert not any(record.refunded for record in heard.of("ended", settled=Settled.DONE))
    assert _no_doubt(path)
    assert [record.settled for record in stored(path) if record.kind == "ended"][-1] is Settled.DONE


async def test_a_folder_that_may_not_be_written_starts_held_and_is_told(tmp_path: Path) -> None:
    """Store trouble never stops checking: without a journal it starts, acts on nothing, and says so."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    path = folder / "selfheal.db"
    async with Patient(path).supervisor:
        pass
    before = path.read_bytes()
    with _fixed(folder):
        patient = Patient(path)
        patient.check.well = False
        async with patient.supervisor:
            await until_reason(patient.supervisor, "api", "held:journal")
            await _told(patient.notifier, "journal")
    assert patient.cures == []
    assert path.read_bytes() == before


async def test_a_damaged_journal_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "selfheal.db"
    async with Patient(path).supervisor:
        pass
    path.write_bytes(b"")
    patient = Patient(path)
    patient.check.well = False
    async with patient.supervisor:
        await until_reason(patient.supervisor, "api", "held:journal")
        await _told(patient.notifier, "journal")
    assert patient.cures == []
    assert path.read_bytes() == b""
