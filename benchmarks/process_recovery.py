"""How long after SIGKILL a death is heard, and how long until a new process runs; and what running a command costs.

    python benchmarks/process_recovery.py [kills] [--no-systemd]

Run it alone. Times are milliseconds: median, least, most. First the whole supervisor keeps a small server alive
(c/server.c; needs gcc): from SIGKILL to its next good check, the check being a PING of a prober in a process of its own
that asks without pause; budgets and backoff are lifted, because here the same thing dies twenty times in a minute.
Beside it, the same server and the same prober under systemd with `Restart=always` and `RestartSec=0`, booted in a
container over this machine's own files; that needs root, systemd-nspawn and overlayfs, and is left out, saying why,
where one of them is missing. Supervisor and systemd take turns, a quarter of the kills each time.

Then the parts: when a death is heard, of a child of ours and of a process that an earlier manager had started and ours
has adopted, and until a new process runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import anyio
import attrs
from yardstick import build

from selfheal import Service, Supervisor
from selfheal.builtin import proc
from selfheal.builtin.command import CommandCheck
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.spawn import run
from selfheal.builtin.wire_checks import RedisPing
from selfheal.core.messages import CheckFinished
from selfheal.core.model import Backoff, Limits, State, Verdict

STARTER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from process_recovery import given, workload
asyncio.run(workload(sys.argv[2]).start(given()))
"""


TURNS = 4
"""Turns that the supervisor and systemd take, so that both share whatever else the machine does."""


@attrs.define(kw_only=True)
class _Given:
    """As much of a context as these plugins read."""

    service: str = "sleeper"
    remaining: float = 30.0
    key: str = "benchmark"
    expected: None = None
    arguments: dict[str, Any] = attrs.field(factory=dict)


def given() -> Any:
    """Return it as whatever kind of context is asked for."""
    return _Given()


def workload(folder: str) -> ProcessWorkload:
    """A program that is there as soon as it is started, so that what is measured is ours."""
    return ProcessWorkload(command=["sleep", "600"], state_directory=Path(folder), output=Path(os.devnull))


def told(what: str, seconds: list[float]) -> None:
    milliseconds = sorted(each * 1000 for each in seconds)
    print(f"{what:<58} {statistics.median(milliseconds):8.2f} [{milliseconds[0]:.2f}-{milliseconds[-1]:.2f}]")


def alone(instance_id: str) -> proc.Identity:
    pid, start = instance_id.split(":")
    return proc.Identity(int(pid), int(start))


async def deaths(kills: int, *, adopted: bool) -> None:
    heard, restarted = [], []
    with tempfile.TemporaryDirectory() as folder:
        process = workload(folder)
        for _ in range(kills):
            if adopted:
                here = str(Path(__file__).parent)
                await asyncio.to_thread(
                    subprocess.run, [sys.executable, "-c", STARTER, here, folder], check=True, timeout=30
                )
            else:
                await process.start(given())
            victim = alone((await process.inspect(given())).id)
            watch = process.watch(given())
            dying = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.1)
            killed = time.perf_counter()
            if not proc.deliver(victim, signal.SIGKILL):
                raise RuntimeError("it was gone before it was killed")
            instance = await dying
            heard.append(time.perf_counter() - killed)
            await process.restart(given())
            restarted.append(time.perf_counter() - killed)
            if (await process.inspect(given())).id == instance.id:
                raise RuntimeError("it was not restarted")
            await watch.aclose()  # type: ignore[attr-defined]
            await process.release(given(), stopping=True)
    who = "adopted process" if adopted else "own child"
    told(f"SIGKILL to watch event, {who}", heard)
    told(f"SIGKILL to restarted and written down, {who}", restarted)


async def commands(count: int) -> None:
    plain, checks, spent = [], [], time.process_time()
    for _ in range(count):
        began = time.perf_counter()
        await run(["true"], timeout=10, environment={"PATH": os.defpath})
        plain.append(time.perf_counter() - began)
    spent = time.process_time() - spent
    check = CommandCheck(command=["true"])
    for _ in range(count):
        began = time.perf_counter()
        await check.check(given())
        checks.append(time.perf_counter() - began)
    told("run `true`", plain)
    told("CommandCheck of `true`", checks)
    print(f"{'processor of ours for each run of `true`, ms':<58} {spent / count * 1000:8.2f}")


async def looks(count: int) -> None:
    everybody, one = [], []
    for _ in range(count):
        began = time.perf_counter()
        seen = sum(1 for _ in proc.everyone())
        everybody.append(time.perf_counter() - began)
        began = time.perf_counter()
        proc.look(os.getpid())
        one.append(time.perf_counter() - began)
    told("look at one process", one)
    told(f"look at all {seen} processes", everybody)


# -- the whole supervisor, and systemd -------------------------------------------------------------------------------

PROBER = """
import os, signal, socket, sys, time
port = int(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    os.kill(int(line), signal.SIGKILL)
    killed = time.monotonic()
    while time.monotonic() < killed + 30.0:
        try:
            with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
                connection.sendall(b"*1\\r\\n$4\\r\\nPING\\r\\n")
                if connection.recv(64) == b"+PONG\\r\\n":
                    break
        except OSError:
            time.sleep(0.0002)
    print(killed, time.monotonic(), flush=True)
"""

UNIT = """
[Unit]
DefaultDependencies=no
StartLimitIntervalSec=0
[Service]
ExecStart={program} {port}
Restart=always
RestartSec=0
"""


class Prober:
    """Kills a process and asks its port without pause until something answers again."""

    def __init__(self, port: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROBER, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self, pid: int) -> tuple[float, float]:
        """Kill it; return when, and when there was an answer, in `time.monotonic` seconds."""
        assert self.process.stdin is not None
        print(pid, file=self.process.stdin, flush=True)
        killed, answered = self.line().split()
        return float(killed), float(answered)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def serving(program: Path, port: int) -> int:
    """Return the pid, as this machine knows it, of the one process that runs the server; 0 while there is none."""
    wanted = f"{program}\0{port}\0".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes() == wanted:
                return int(folder.name)
        except OSError:
            continue
    return 0


async def supervised(program: Path, kills: int, settle: float | None) -> tuple[list[float], list[float]]:
    """Kill what a supervisor runs, each time it has become well again.

    Return the seconds until there was an answer, and until the supervisor's own next good check ended.
    """
    answered, checked = [], []
    port = free_port()
    step: dict[str, Any] = {"action": "restart"} if settle is None else {"action": "restart", "settle": settle}
    with tempfile.TemporaryDirectory() as folder:
        service = Service(
            "server",
            check=RedisPing(url=f"redis://127.0.0.1:{port}", keep=False),
            workload=ProcessWorkload(command=[str(program), str(port)], output=Path(os.devnull)),
            recovery_actions=[step],
            budgets=(),
            flapping=(),
            backoff=Backoff(initial=0.0),
            probation=0.0,
            success_threshold=1,
        )
        prober = Prober(port)
        try:
            limits, journal = Limits(budget_floor=1_000_000), Path(folder) / "journal.db"
            async with Supervisor([service], journal=journal, limits=limits) as supervisor:
                running: Any = supervisor._running
                for _ in range(kills):
                    await well(running)
                    killed, again = await asyncio.to_thread(prober.kill, serving(program, port))
                    answered.append(again - killed)
                    checked.append(await good_check(running, running.loop.at(killed)) - running.loop.at(killed))
        finally:
            prober.close()
    return answered, checked


async def well(running: Any) -> None:
    """Wait until the service is healthy, and a moment more."""
    async with running.stream.subscribe() as records:
        while running.engine.ledger.conditions["server"].state is not State.HEALTHY:
            await records.receive()
    await asyncio.sleep(0.2)


async def good_check(running: Any, since: float) -> float:
    """Return when the first passing check ended that began after `since`."""
    while True:
        for batch in running.journal.reader.batches():
            event = batch.input
            if isinstance(event, CheckFinished) and event.started > since and event.result.verdict is Verdict.PASSING:
                return event.ended
        await asyncio.sleep(0.1)


@contextmanager
def booted(program: Path, port: int) -> Iterator[None]:
    """Boot systemd over this machine's own files, with one unit and nothing else. Raises `OSError` where it cannot."""
    if os.geteuid() != 0 or shutil.which("systemd-nspawn") is None:
        raise OSError("it needs root and systemd-nspawn")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mounted(stack, folder, "-t", "tmpfs", "tmpfs")
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        options = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
        mounted(stack, folder / "root", "-t", "overlay", "-o", options, "overlay")
        (folder / "root/opt").mkdir(exist_ok=True)
        shutil.copy(program, folder / "root/opt/server")
        unit = folder / "root/etc/systemd/system/answering.service"
        unit.write_text(UNIT.format(program="/opt/server", port=port))
        container = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "-D", str(folder / "root"), "--register=no", "--keep-unit"),
                *("--drop-capability=CAP_SYS_RESOURCE", "--console=pipe", "-b", "--", "--unit=answering.service"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(stopped, container)
        until = time.monotonic() + 30.0
        while not serving(Path("/opt/server"), port):
            if time.monotonic() > until or container.poll() is not None:
                raise OSError("systemd did not boot in a container here")
            time.sleep(0.05)
        yield


def mounted(stack: ExitStack, where: Path, *arguments: str) -> None:
    done = subprocess.run(["mount", *arguments, str(where)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())
    stack.callback(subprocess.run, ["umount", str(where)], check=False)


def stopped(container: subprocess.Popen[bytes]) -> None:
    container.terminate()
    try:
        container.wait(10.0)
    except subprocess.TimeoutExpired:
        container.kill()
        container.wait()


def systemd(program: Path, kills: int) -> list[float]:
    """Kill what systemd runs; return the seconds until there was an answer."""
    port, answered = free_port(), []
    with booted(program, port):
        prober = Prober(port)
        try:
            for _ in range(kills):
                while not (pid := serving(Path("/opt/server"), port)):
                    time.sleep(0.05)
                time.sleep(0.2)
                killed, again = prober.kill(pid)
                answered.append(again - killed)
        finally:
            prober.close()
    return answered


async def side_by_side(program: Path, kills: int, *, with_systemd: bool) -> None:
    """Let the supervisor and systemd take turns."""
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    checked: list[float] = []
    for _ in range(TURNS):
        answered, good = await supervised(program, max(1, kills // TURNS), settle=0.0)
        ours.append(answered)
        checked += good
        if with_systemd:
            try:
                theirs.append(await asyncio.to_thread(systemd, program, max(1, kills // TURNS)))
            except OSError as problem:
                print(f"systemd is left out: {problem}")
                with_systemd = False
    told("SIGKILL to PONG, supervisor, a settling of 0 s", [*chain(*ours)])
    told("  ... to its own next good check", checked)
    if with_systemd:
        told("SIGKILL to PONG, systemd, RestartSec=0", [*chain(*theirs)])
        ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(ours, theirs, strict=True)]
        print(f"{'supervisor / systemd, by turns: median, least, most':<58} {statistics.median(ratios):8.2f}", end=" ")
        print(f"[{min(ratios):.2f}-{max(ratios):.2f}]")
    answered, good = await supervised(program, max(1, kills // 10), settle=None)
    told("SIGKILL to PONG, supervisor, a settling of 15 s (default)", answered)
    told("  ... to its own next good check", good)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--no-systemd", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = await asyncio.to_thread(build, "server", Path(folder))
        await side_by_side(program, options.kills, with_systemd=not options.no_systemd)
    await deaths(options.kills, adopted=False)
    await deaths(options.kills, adopted=True)
    await commands(options.kills * 10)
    await looks(options.kills)


if __name__ == "__main__":
    anyio.run(main)
