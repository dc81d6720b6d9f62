"""A systemd of one's own: booted in a container over this machine's files, and spoken to by a `systemctl` on PATH.

The container has its own processes, mounts and host name, and shares the network. Everything it writes goes to memory
and is gone with it. `systemctl` and `busctl` of `programs(...)` are small scripts that enter the container; what one
shows as MainPID is told as the pid that this machine knows, so that what holds it by that number can be tested too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.servers import program_of, until

HIERARCHIES = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")

TARGET = """
[Unit]
Requires=basic.target dbus.socket
Wants=systemd-logind.service
After=basic.target dbus.socket
AllowIsolate=yes
"""

ENTER = """#!/bin/sh
exec nsenter -t {init} -a -- {identity}{program} "$@"
"""

SHOW = """#!/bin/sh
case " $* " in
*" show "*) ;;
*) exec nsenter -t {init} -a -- {identity}systemctl "$@" ;;
esac
nsenter -t {init} -a -- {identity}systemctl "$@" | while IFS= read -r line; do
    case "$line" in
    MainPID=*) pid=${{line#MainPID=}}; continue ;;
    ControlGroup=*) group=${{line#ControlGroup=}} ;;
    esac
    printf '%s\\n' "$line"
    if [ -n "$group" ] && [ "${{pid:-0}}" != 0 ]; then
        while read -r outer; do
            while IFS= read -r fact; do
                case "$fact" in
                NSpid:*"	$pid") printf 'MainPID=%s\\n' "$outer"; pid=0 ;;
                esac
            done 2>/dev/null < "/proc/$outer/status"
        done 2>/dev/null < "{groups}$group/cgroup.procs"
        group=
    fi
done
"""
"""`MainPID` comes before `ControlGroup` in what systemctl shows."""


SLOW = """#!/bin/sh
case " $* " in
*" restart "*)
    touch {folder}/asking
    until test -e {folder}/go -o -e {folder}/drop; do sleep 0.02; done
    test ! -e {folder}/drop || exit 1 ;;
esac
exec {real} "$@"
"""

TIDY = """
for unit; do
    test "$(systemctl show --property=FreezerState --value "$unit")" = running || systemctl thaw "$unit"
    systemctl kill --signal=KILL "$unit"
done
systemctl stop "$@"
systemctl reset-failed "$@"
for unit; do
    rm -rf "/run/systemd/system/$unit" "/run/systemd/system.control/$unit.d" "/etc/systemd/system.control/$unit.d"
    rm -f "/etc/systemd/system/$unit" "/etc/systemd/system/selfheal-stack.target.wants/$unit"
done
systemctl daemon-reload
"""


class Systemd:
    """One booted systemd; `folder` holds its files."""

    def __init__(self, folder: Path, *, binds: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.binds = binds
        """Places of this machine that are the same ones in it: what is written there stays."""
        self.root = folder / "root"
        self.init = 0
        self._stack = ExitStack()
        self.made: list[str] = []
        self._groups: list[Path] = []
        self._container: subprocess.Popen[bytes] | None = None

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot it, and wait until it has come up."""
        program_of("systemd", "systemd-nspawn")
        _require_root()
        self._mount(self.folder, "-t", "tmpfs", "tmpfs")
        for name in ("upper", "work", "root", "programs"):
            (self.folder / name).mkdir()
        options = f"lowerdir=/,upperdir={self.folder}/upper,workdir={self.folder}/work"
        self._mount(self.root, "-t", "overlay", "-o", options, "overlay")
        (self.root / "etc/systemd/system/selfheal-stack.target").write_text(TARGET)
        for name in ("docker.service", "docker.socket"):
            masked = self.root / "etc/systemd/system" / name
            masked.unlink(missing_ok=True)
            masked.symlink_to("/dev/null")
        group = self._own_group()
        command = [
            # It ends with whoever has started it, whatever becomes of that.
            *("setpriv", "--pdeathsig=KILL"),
            *("systemd-nspawn", "--quiet", "-D", str(self.root), "--register=no", "--keep-unit"),
            *("--drop-capability=CAP_SYS_RESOURCE", "--console=pipe"),
            *(f"--bind={place}" for place in self.binds),
            *("-b", "--"),
            "--unit=selfheal-stack.target",
        ]
        self._container = subprocess.Popen(
            ["/bin/sh", "-c", f'{group}exec "$@"', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.init = until(self._child, "the container's init", 30.0)
        until(lambda: self.ask("is-active", "selfheal-stack.target", check=False) == "active", "systemd booted", 60.0)

    def _child(self) -> int:
        assert self._container is not None
        assert self._container.poll() is None, "systemd-nspawn did not start"
        pid = self._container.pid
        # The first child only prepares the second: process 1 of a namespace of processes of its own.
        with contextlib.suppress(OSError, IndexError):
            child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
            if re.search(r"^NSpid:.*\t1$", Path(f"/proc/{child}/status").read_text(), re.MULTILINE):
                return int(child)
        return 0

    def _own_group(self) -> str:
        """Make control groups of its own, so that two containers do not share one; return the words that enter it."""
        enter = ""
        for hierarchy in map(Path, HIERARCHIES):
            if (hierarchy / "cgroup.procs").exists():
                group = hierarchy / self.folder.name
                group.mkdir()
                self._groups.append(group)
                enter += f"echo $$ > {group}/cgroup.procs; "
        return enter

    def remove(self) -> None:
        """End it and everything in it; nothing of it stays."""
        if self._container is not None:
            if self.init and self._container.poll() is None:
                os.kill(self.init, signal.SIGKILL)  # and with it everything in its namespace
            try:
                self._container.wait(5.0)
            except subprocess.TimeoutExpired:
                self._container.kill()
                self._container.wait()
        self._stack.close()
        for group in self._groups:
            for path, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mount(self, where: Path, *arguments: str) -> None:
        done = subprocess.run(["mount", *arguments, str(where)], capture_output=True, text=True, check=False)
        if done.returncode:
            _cannot(f"mount {where}: {done.stderr.strip()}")
        self._stack.callback(subprocess.run, ["umount", "-l", str(where)], check=False)

    # -- speaking to it ----------------------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True, timeout: float = 60.0, user: str = "") -> str:
        """Run a program in it and return what it has said, on both outputs."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.init), "-a", "--", *self._identity(user).split(), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout.strip()

    def ask(self, *arguments: str, check: bool = True) -> str:
        """Return what `systemctl` says in it."""
        return self.run("systemctl", "--no-pager", *arguments, check=check)

    def shows(self, unit: str, key: str) -> str:
        """Return one property of a unit."""
        return self.ask("show", f"--property={key}", "--value", unit)

    def main_pid(self, unit: str) -> int:
        """Return the main process of a unit as this machine knows it; 0 for none."""
        inner = self.shows(unit, "MainPID")
        for path in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                text = path.read_text()
                if (
                    inner != "0"
                    and f"\t{inner}\n" in text.partition("NSpid:")[2].partition("NStgid")[0][:80]
                    and (self._is_inside(int(path.parent.name)))
                ):
                    return int(path.parent.name)
        return 0

    def _is_inside(self, pid: int) -> bool:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.init}/ns/pid")

    def kill(self, unit: str, number: int = signal.SIGKILL) -> float:
        """Send a signal to the main process of a unit from outside; return when, monotonic."""
        pid = until(lambda: self.main_pid(unit), f"{unit} has a main process")
        os.kill(pid, number)
        return time.monotonic()

    def freeze(self) -> None:
        """Stop process 1: systemd answers nobody."""
        os.kill(self.init, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let process 1 go on."""
        os.kill(self.init, signal.SIGCONT)

    # -- what is in it -----------------------------------------------------------------------------------------------

    def unit(
        self, name: str, start: str, *, unit: Mapping[str, str] | None = None, wanted: bool = False, **service: str
    ) -> None:
        """Write a unit that runs `start`; wanted by the target that is up, if asked for, as an enabled one is."""
        lines = ["[Unit]", *(f"{key}={value}" for key, value in (unit or {}).items()), "[Service]"]
        lines += [f"ExecStart={start}", *(f"{key}={value}" for key, value in service.items())]
        if wanted:
            lines += ["[Install]", "WantedBy=selfheal-stack.target"]
        (self.root / "etc/systemd/system" / name).write_text("\n".join(lines) + "\n")
        self.made.append(name)
        if wanted:
            wants = self.root / "etc/systemd/system/selfheal-stack.target.wants"
            wants.mkdir(exist_ok=True)
            (wants / name).unlink(missing_ok=True)
            (wants / name).symlink_to(f"/etc/systemd/system/{name}")
        self.ask("daemon-reload")

    def tidy(self) -> None:
        """End every unit that was written and take its file away."""
        names = sorted(set(self.made))
        self.made.clear()
        if not names:
            return
        self.run("/bin/sh", "-c", TIDY, "sh", *names, check=False)

    def programs(self, user: str = "") -> Path:
        """Return a folder with `systemctl` and `busctl` that speak to it, as this user of it."""
        folder = self.folder / "programs" / (user or "root")
        if not folder.exists():
            folder.mkdir()
            group = Path("/proc", str(self.init), "cgroup").read_text()
            chosen = next((one for one in HIERARCHIES if self._systemd_of(group, one) is not None), None)
            assert chosen is not None, f"the container has no control group: {group}"
            values = {
                "init": str(self.init),
                "identity": self._identity(user),
                "groups": f"{chosen}{self._systemd_of(group, chosen)}",
            }
            for name, text in (("systemctl", SHOW), ("busctl", ENTER)):
                path = folder / name
                path.write_text(text.format(program=name, **values))
                path.chmod(0o755)
        return folder

    @staticmethod
    def _systemd_of(groups: str, hierarchy: str) -> str | None:
        """Return the control group above init.scope in one hierarchy."""
        mark = "name=systemd:" if hierarchy.endswith("/systemd") else "0::"
        for line in groups.splitlines():
            path = line.partition(mark)[2]
            if path.endswith("/init.scope") and Path(f"{hierarchy}{path}").exists():
                return path.removesuffix("/init.scope")
        return None

    @staticmethod
    def _identity(user: str) -> str:
        return f"setpriv --reuid={user} --regid={user} --clear-groups " if user else ""

    def person(self, name: str) -> int:
        """Have a user without rights, and return the uid."""
        if not self.run("id", "-u", name, check=False).isdecimal():
            self.run("useradd", "--create-home", name)
        return int(self.run("id", "-u", name))


@contextmanager
def booted(*binds: Path) -> Iterator[Systemd]:
    """Have a systemd of one's own; skipped where it cannot be, with the reason, or failed if it is required."""
    one = Systemd(Path(tempfile.mkdtemp(prefix="selfheal-systemd-")), binds=binds)
    try:
        one.start()
        yield one
    finally:
        one.remove()


def on_the_way(systemd: Systemd, folder: Path) -> Path:
    """Write a `systemctl` whose orders to restart take their time, as on a crowded bus; return its folder.

    `asking` is there once it has been told to, `go` lets it ask systemd, and `drop` ends it before it does.
    """
    program = folder / "systemctl"
    program.write_text(SLOW.format(folder=folder, real=systemd.programs() / "systemctl"))
    program.chmod(0o755)
    return folder


def _require_root() -> None:
    if os.geteuid() != 0:
        _cannot("only root may boot one of its own")


def _cannot(why: str) -> None:
    if "systemd" in os.environ.get("SELFHEAL_REQUIRE", "").split(","):
        pytest.fail(f"systemd is required (SELFHEAL_REQUIRE): {why}")
    pytest.skip(f"systemd: {why}")
