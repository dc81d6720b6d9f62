"""What an idle supervisor costs: five services, checked every 30 s, beside plain anyio and a C loop at the same time.

    python benchmarks/idle.py                  # two minutes
    python benchmarks/idle.py --seconds 60

All rows run side by side in the same window, each in a process of its own, against the same server: so they share
whatever else the machine does. CPU is that of the whole process in the window, memory its proportional set size (pages
shared with the other rows are split among them) at the end of it. Needs gcc.

    C          paced.c at its slowest (50 a second, less than one to a wake-up), for as many checks
    anyio      a task for each service: sleep, connect, close; nothing imported but anyio and attrs
    supervisor a supervisor of five, its journal a file (on asyncio; on trio)
    daemon     `selfheal run` with the same five in a file
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from yardstick import Yardstick, yardstick

INTERVAL = 30.0
SERVICES = 5
WARM = 8.0
"""Seconds before the window: imports, start, the first checks, the first flush."""

BARE = """
import sys, attrs, anyio
async def watch(host, port, phase):
    await anyio.sleep(phase)
    while True:
        with anyio.move_on_after(5.0):
            stream = await anyio.connect_tcp(host, port)
            await stream.aclose()
        await anyio.sleep({interval})
async def main():
    async with anyio.create_task_group() as tasks:
        for i in range({services}):
            tasks.start_soon(watch, "127.0.0.%d" % (i + 1), int(sys.argv[1]), i * {interval} / {services})
anyio.run(main)
"""

SUPERVISED = """
import sys, anyio
from selfheal import Service, Supervisor
from selfheal.builtin.wire_checks import TcpCheck
async def main():
    checks = [TcpCheck(address="127.0.0.%d:%s" % (i + 1, sys.argv[1])) for i in range({services})]
    services = [Service("s%d" % i, check=check, interval={interval}) for i, check in enumerate(checks)]
    async with Supervisor(services, journal=sys.argv[2]):
        await anyio.sleep_forever()
anyio.run(main, backend=sys.argv[3])
"""


def processor(pid: int) -> float:
    """Return the seconds of processor a process has used, in nanoseconds' resolution where the kernel tells it."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def memory(pid: int) -> float:
    """Return the proportional set size of a process in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not tell")


def write(folder: str, port: str) -> str:
    """Write the file of the daemon; return where."""
    lines = ["[fleet]", 'name = "idle"', f'state_dir = "{folder}/daemon"', f'interval = "{INTERVAL:g}s"']
    for i in range(SERVICES):
        lines += [f"[services.s{i}]", f'check = {{ kind = "tcp", address = "127.0.0.{i + 1}:{port}" }}']
    path = Path(folder) / "selfheal.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def commands(folder: str, port: str) -> dict[str, list[str]]:
    """Return what to run, by row."""
    numbers = {"interval": INTERVAL, "services": SERVICES}
    supervised = [sys.executable, "-c", SUPERVISED.format(**numbers), port]
    return {
        "anyio": [sys.executable, "-c", BARE.format(**numbers), port],
        "supervisor, asyncio": [*supervised, f"{folder}/asyncio/journal.db", "asyncio"],
        "supervisor, trio": [*supervised, f"{folder}/trio/journal.db", "trio"],
        "daemon": [sys.executable, "-m", "selfheal", "run", write(folder, port)],
    }


def paced(c: Yardstick, seconds: float) -> float:
    """Return the processor seconds that the checks of a window cost in C, each with a wake-up of its own."""
    each = c.measure("tcp", "50", "4")[2]
    return each / 1e6 * SERVICES * seconds / INTERVAL


def main() -> None:
    """Run the window and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    with yardstick() as c, tempfile.TemporaryDirectory() as folder:
        running = {
            row: subprocess.Popen(command, stderr=subprocess.DEVNULL)
            for row, command in commands(folder, c.port).items()
        }
        try:
            time.sleep(WARM)
            before = {row: processor(process.pid) for row, process in running.items()}
            until = time.monotonic() + options.seconds
            in_c = paced(c, options.seconds)
            time.sleep(max(0.0, until - time.monotonic()))
            for row, process in running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{row} ended with {process.returncode}")
            used = {row: processor(process.pid) - before[row] for row, process in running.items()}
            held = {row: memory(process.pid) for row, process in running.items()}
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait(15)
    print(f"{SERVICES} services every {INTERVAL:g} s, window of {options.seconds:g} s")
    print(f"{'row':22} {'CPU %':>8} {'x anyio':>8} {'x C':>8} {'PSS MiB':>8} {'over anyio':>11}")
    print(f"{'C':22} {in_c / options.seconds * 100:8.4f} {in_c / used['anyio']:8.2f} {1.0:8.2f}")
    for row, seconds in used.items():
        share = seconds / options.seconds * 100
        more = held[row] - held["anyio"]
        print(
            f"{row:22} {share:8.4f} {seconds / used['anyio']:8.2f} {seconds / in_c:8.1f} {held[row]:8.1f} {more:+11.1f}"
        )


if __name__ == "__main__":
    main()
