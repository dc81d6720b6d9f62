"""What is in a cache is removed, and nothing else: not through links, not what is mounted, not the folder itself."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from selfheal import ConfigurationError, Service, Supervisor
from selfheal.builtin import cache_directory
from selfheal.builtin.cache_directory import CacheDirectory
from selfheal.builtin.wire_checks import TcpCheck
from selfheal.config import configure
from selfheal.core.model import Effect
from selfheal.errors import ActionFailed
from selfheal.ladder import resolve
from selfheal.shell.contexts import Act, Contexts


def run(action: CacheDirectory, timeout: float = 20.0) -> str:
    async def body() -> str:
        return await action.run(Contexts().for_action("thumbs", action, timeout, Act(key="1/thumbs/1/0")))

    return anyio.run(body, backend="asyncio")


def ailing(action: CacheDirectory) -> list[str]:
    async def body() -> list[str]:
        context = Contexts().for_action("thumbs", action, 20.0, Act(key="doctor/thumbs"))
        return [f"{problem.message}; {problem.hint}" for problem in await action.doctor(context)]

    return anyio.run(body, backend="asyncio")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a cache in it, and things beside the cache that are nobody's to touch."""
    cache = tmp_path / "caches" / "thumbs"
    (cache / "a" / "b").mkdir(parents=True)
    for name in ("one.jpg", "two.png", "a/three.jpg", "a/b/four.jpg"):
        (cache / name).write_text(name)
    (tmp_path / "caches" / "beside.jpg").write_text("stays")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "ledger.jpg").write_text("stays")
    return tmp_path / "caches"


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def untouched(root: Path) -> bool:
    return (root / "beside.jpg").exists() and (root.parent / "precious" / "ledger.jpg").read_text() == "stays"


# -- what is removed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [True, False])
def test_everything_in_the_folder_is_removed_and_the_folder_stays(root: Path, absolute: bool) -> None:
    cache = root / "thumbs"
    os.mkfifo(cache / "pipe")
    os.mknod(cache / "socket", stat.S_IFSOCK | 0o600)  # a bound one may have no path as long as this
    before = cache.stat().st_ino
    run(CacheDirectory(path=str(cache) if absolute else "thumbs", root=root))
    assert left_in(cache) == []
    assert cache.stat().st_ino == before
    assert untouched(root)


def test_it_says_what_it_removed(root: Path) -> None:
    assert "thumbs: removed 6 (" in run(CacheDirectory(path="thumbs", root=root))


def test_with_a_pattern_only_files_that_match_go_and_no_folder(root: Path) -> None:
    run(CacheDirectory(path="thumbs", root=root, pattern="*.jpg"))
    assert left_in(root / "thumbs") == ["a", "a/b", "two.png"]
    assert untouched(root)


def test_with_an_age_only_files_that_are_older_go(root: Path) -> None:
    hour = time.time() - 3600.0
    os.utime(root / "thumbs" / "a" / "three.jpg", (hour, hour))
    os.utime(root / "thumbs" / "two.png", (hour, hour))
    run(CacheDirectory(path="thumbs", root=root, older_than=1800.0))
    assert left_in(root / "thumbs") == ["a", "a/b", "a/b/four.jpg", "one.jpg"]


def test_a_second_call_finds_nothing_and_is_well(root: Path) -> None:
    action = CacheDirectory(path="thumbs", root=root)
    run(action)
    run(action)
    assert left_in(root / "thumbs") == []


# -- links -----------------------------------------------------------------------------------------------------------


def test_links_are_removed_and_never_followed(root: Path) -> None:
    cache, precious = root / "thumbs", root.parent / "precious"
    (cache / "out").symlink_to(precious)
    (cache / "a" / "up").symlink_to("../../..")
    (cache / "file").symlink_to(precious / "ledger.jpg")
    (cache / "nowhere").symlink_to("/nonexistent/thing")
    run(CacheDirectory(path="thumbs", root=root))
    assert left_in(cache) == []
    assert untouched(root)


@pytest.mark.parametrize("where", ["the folder", "one above it", "the root"])
def test_a_folder_that_is_reached_by_a_link_is_refused(root: Path, where: str) -> None:
    precious = root.parent / "precious"
    if where == "the folder":
        shutil.rmtree(root / "thumbs")
        (root / "thumbs").symlink_to(precious)
        action = CacheDirectory(path="thumbs", root=root)
    elif where == "one above it":
        (root.parent / "elsewhere").mkdir()
        (root.parent / "elsewhere" / "thumbs").mkdir()
        (root.parent / "elsewhere" / "thumbs" / "x").write_text("stays")
        (root / "link").symlink_to(root.parent / "elsewhere")
        action = CacheDirectory(path="link/thumbs", root=root)
    else:
        (root.parent / "roots").symlink_to(root)
        action = CacheDirectory(path="thumbs", root=root.parent / "roots")
    with pytest.raises(ActionFailed, match="cannot be opened"):
        run(action)
    assert ailing(action)
    assert untouched(root)
    if where == "one above it":
        assert (root.parent / "elsewhere" / "thumbs" / "x").exists()


class Swapper(threading.Thread):
    """Puts a link to what is precious in the place of a folder and back again, as fast as it can."""

    def __init__(self, folder: Path, target: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.target = folder, target
        self.over = threading.Event()
        self.swaps = 0

    def run(self) -> None:
        aside = self.folder.with_name(self.folder.name + "-aside")
        link = self.folder.with_name(self.folder.name + "-link")
        while not self.over.is_set():
            with suppress(OSError):
                link.symlink_to(self.target)
            with suppress(OSError):
                self.folder.rename(aside)
            with suppress(OSError):
                link.rename(self.folder)
                self.swaps += 1
            with suppress(OSError):
                self.folder.unlink()
            with suppress(OSError):
                aside.rename(self.folder)
            if not self.folder.exists():
                with suppress(OSError):
                    self.folder.mkdir()


@pytest.fixture
def swapping(root: Path) -> Iterator[Swapper]:
    swapper = Swapper(root / "thumbs" / "a", root.parent / "precious")
    yield swapper
    swapper.over.set()
    swapper.join(5.0)


@pytest.mark.real_time
def test_whatever_is_swapped_for_a_link_meanwhile_nothing_outside_is_reached(root: Path, swapping: Swapper) -> None:
    precious = root.parent / "precious"
    for number in range(50):
        (precious / f"{number}.jpg").write_text("stays")
    before = left_in(precious)
    swapping.start()
    end = time.monotonic() + 3.0
    rounds = 0
    while time.monotonic() < end:
        rounds += 1
        with suppress(OSError):
            for number in range(10):
                (root / "thumbs" / f"{number}").mkdir()
        with suppress(ActionFailed):
            run(CacheDirectory(path="thumbs", root=root))
        assert left_in(precious) == before
    assert rounds > 10
    assert swapping.swaps > 100
    assert untouched(root)


def test_a_folder_that_becomes_a_link_between_the_look_and_the_opening_is_not_entered(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment, every time: it is seen as a folder, and is a link when it is opened."""
    precious, real = root.parent / "precious", os.open

    def late(name: Any, flags: int, *more: Any, **options: Any) -> int:
        if name == "a" and not (root / "thumbs" / "a").is_symlink():
            shutil.rmtree(root / "thumbs" / "a")
            (root / "thumbs" / "a").symlink_to(precious)
        return real(name, flags, *more, **options)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(ActionFailed, match="'a'"):
        run(CacheDirectory(path="thumbs", root=root))
    assert untouched(root)


# -- mounts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(root: Path) -> Iterator[Path]:
    """What is precious, mounted in the cache: the same file system, so that its device tells nothing."""
    place = root / "thumbs" / "mounted"
    place.mkdir()
    if subprocess.run(["mount", "--bind", root.parent / "precious", place], check=False).returncode != 0:
        pytest.skip("this user may not mount")
    yield place
    subprocess.run(["umount", place], check=True)


def test_what_is_mounted_in_it_is_left_as_it_is_and_named(root: Path, mounted: Path) -> None:
    assert mounted.stat().st_dev == root.stat().st_dev
    with pytest.raises(ActionFailed, match="'mounted' is another file system, mounted there"):
        run(CacheDirectory(path="thumbs", root=root))
    assert left_in(root / "thumbs") == ["mounted", "mounted/ledger.jpg"]
    assert untouched(root)


def test_a_folder_that_is_itself_mounted_below_its_root_is_refused(root: Path, mounted: Path) -> None:
    with pytest.raises(ActionFailed, match="mounted there"):
        run(CacheDirectory(path=mounted, root=root))
    assert untouched(root)


# -- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "root", "words"),
    [
        ("/", "/", "root of the file system"),
        ("/var/cache/app", "/", "root of the file system"),
        ("x", "/etc", "of the system"),
        ("x", "/etc/app", "of the system"),
        ("x", "/usr/share", "of the system"),
        ("x", "/home", "above"),
        ("caches", "~", "a home"),
        ("/srv/caches", "/srv/caches", "never emptied"),
        (".", "/srv/caches", "never emptied"),
        ("", "/srv/caches", "never emptied"),
        ("/srv/other", "/srv/caches", "not below"),
        ("../other", "/srv/caches", "upwards"),
        ("a/../../other", "/srv/caches", "upwards"),
        ("a", "caches", "absolute"),
    ],
)
def test_what_no_cache_can_be_is_refused_when_it_is_read(
    path: str, root: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    with pytest.raises(ValueError, match=words):
        CacheDirectory(path=path, root=os.path.expanduser(root))  # as a person writes it


@pytest.mark.parametrize("path", ["state", "state/cache", "."])
def test_where_the_journal_lies_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match=r"journal|never emptied"):
        CacheDirectory(path=path, root=tmp_path, state_directory=tmp_path / "state")


def test_a_folder_that_holds_the_journal_by_another_name_is_not_entered(root: Path) -> None:
    """The same folder, named by a way that its name does not show: what counts is which folder it is."""
    state = root / "thumbs" / "state"
    state.mkdir()
    (state / "selfheal.db").write_text("stays")
    (root.parent / "named").symlink_to(root)
    action = CacheDirectory(path="thumbs", root=root, state_directory=root.parent / "named" / "thumbs" / "state")
    with pytest.raises(ActionFailed, match="journal"):
        run(action)
    assert left_in(root / "thumbs") == ["state", "state/selfheal.db"]


def test_what_cannot_be_removed_is_named_and_the_rest_is_removed(root: Path) -> None:
    if subprocess.run(["chattr", "+i", root / "thumbs" / "a" / "three.jpg"], check=False).returncode != 0:
        pytest.skip("this file system has no immutable files, or this user may not make one")
    try:
        with pytest.raises(ActionFailed, match=r"removed .*'a/three.jpg' \(Operation not permitted\)"):
            run(CacheDirectory(path="thumbs", root=root))
        assert left_in(root / "thumbs") == ["a", "a/three.jpg"]
    finally:
        subprocess.run(["chattr", "-i", root / "thumbs" / "a" / "three.jpg"], check=True)


def test_folders_within_folders_without_end_end_somewhere(root: Path) -> None:
    deep = root / "thumbs"
    for _ in range(cache_directory.DEPTH + 3):
        deep = deep / "d"
        deep.mkdir()
    with pytest.raises(ActionFailed, match="within one another"):
        run(CacheDirectory(path="thumbs", root=root))


@pytest.fixture
def slow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred more files, of which each takes 20 ms to be removed."""
    for number in range(200):
        (root / "thumbs" / f"{number}.tmp").write_text("x")
    real = os.unlink

    def slowly(*names: Any, **options: Any) -> None:
        time.sleep(0.02)
        real(*names, **options)

    monkeypatch.setattr(os, "unlink", slowly)


@pytest.mark.usefixtures("slow")
def test_it_ends_with_its_time_and_says_how_far_it_came(root: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ActionFailed, match=r"removed \d+ .*time of this step was over"):
        run(CacheDirectory(path="thumbs", root=root), timeout=0.5)
    assert time.monotonic() - began < 1.0
    assert 100 < len(left_in(root / "thumbs")) < 204


@pytest.mark.usefixtures("slow")
def test_one_that_is_cancelled_removes_nothing_more(root: Path) -> None:
    action = CacheDirectory(path="thumbs", root=root)

    async def body() -> int:
        with anyio.move_on_after(0.2):
            await action.run(Contexts().for_action("thumbs", action, 20.0, Act(key="1/thumbs/1/0")))
        left = len(left_in(root / "thumbs"))
        await anyio.sleep(0.2)
        assert len(left_in(root / "thumbs")) == left
        return left

    assert anyio.run(body, backend="asyncio") > 100


def test_doctor_proves_without_removing(root: Path) -> None:
    assert ailing(CacheDirectory(path="thumbs", root=root)) == []
    assert len(left_in(root / "thumbs")) == 6
    assert "cannot be opened" in ailing(CacheDirectory(path="absent", root=root))[0]


# -- in a ladder -----------------------------------------------------------------------------------------------------


def written(root: Path, step: dict[str, Any]) -> dict[str, Any]:
    check = {"kind": "tcp", "address": "127.0.0.1:9"}
    state = {"state_dir": str(root.parent / "state"), "name": "here"}
    return {"fleet": state, "services": {"thumbs": {"check": check, "recovery_actions": [step]}}}


@pytest.mark.parametrize("form", ["a table", "keys of the step"])
def test_a_step_of_the_file_names_it_and_it_is_destructive(root: Path, form: str) -> None:
    step: dict[str, Any] = {"action": "reset_cache", "directory": "thumbs", "root": str(root), "older_than": "1d"}
    if form == "a table":
        step = {"action": "reset_cache", "directory": {"path": "thumbs", "root": str(root), "older_than": "1d"}}
    found = configure(written(root, step))
    (resolved,) = resolve(found.services[0], {}, {})
    assert resolved.how == "plugin"
    assert resolved.step.effect is Effect.DESTRUCTIVE
    assert resolved.target == CacheDirectory(
        path="thumbs", root=root, older_than=86400.0, state_directory=root.parent / "state"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"root": None}, '"root" is missing'),
        ({"action": "restart"}, 'write action = "reset_cache"'),
        ({"effect": "gentle"}, "is destructive"),
        ({"rot": "x"}, "unknown key"),
        ({"directory": "state", "root": "PARENT"}, "journal"),
        ({"http": {"url": "http://127.0.0.1:1/"}}, "a step has one action"),
    ],
)
def test_a_step_that_cannot_be_meant_is_refused_when_it_is_read(
    root: Path, changes: dict[str, Any], words: str
) -> None:
    step = {"action": "reset_cache", "directory": "thumbs", "root": str(root), **changes}
    if step["root"] == "PARENT":
        step["root"] = str(root.parent)
    step = {key: value for key, value in step.items() if value is not None}
    with pytest.raises(ConfigurationError) as refused:
        resolve(configure(written(root, step)).services[0], {}, {})
    assert words in str(refused.value)


def test_in_python_it_is_a_step_as_it_is(root: Path) -> None:
    action = CacheDirectory(path="thumbs", root=root)
    service = Service("thumbs", check=TcpCheck(address="127.0.0.1:9"), recovery_actions=[action])
    (resolved,) = resolve(service, {}, {})
    assert (resolved.target, resolved.step.effect) == (action, Effect.DESTRUCTIVE)


@pytest.mark.real_time
@pytest.mark.parametrize("allowed", [False, True])
def test_in_a_supervisor_it_waits_for_a_person_unless_it_may(root: Path, allowed: bool, anyio_backend: str) -> None:
    action = CacheDirectory(path="thumbs", root=root)
    service = Service(
        "thumbs",
        check=TcpCheck(address="127.0.0.1:9"),
        recovery_actions=[{"action": "reset_cache", "directory": action, "allow_destructive": allowed}],
        interval=1.0,
        timeout=0.5,
        failure_threshold=1,
        min_failing_span=0.0,
    )

    async def body() -> None:
        supervisor = Supervisor([service], journal=None)
        async with supervisor:
            with anyio.fail_after(20.0):
                while True:
                    status = await supervisor.ask("service", service="thumbs")
                    held = status.get("reason") or ""
                    if (not left_in(root / "thumbs")) if allowed else ("approval" in str(held)):
                        break
                    await anyio.sleep(0.05)

    anyio.run(body, backend=anyio_backend)
    assert (left_in(root / "thumbs") == []) is allowed
