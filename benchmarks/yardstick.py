"""What the benchmarks share: the C programs they measure against, one address for each service, processor time.

Nothing here runs by itself. `paced.c` makes the same checks as an epoll loop in C; `server.c` is what is checked, by
everybody. Needs gcc.
"""

from __future__ import annotations

import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

GRID = 0.010
"""Seconds between two instants at which a check may begin, in C as here."""

HERE = Path(__file__).parent


@attrs.frozen(kw_only=True)
class Yardstick:
    """The C programs, built: `paced` with its arguments to come, and the port where the server answers."""

    paced: str
    port: str

    def measure(self, kind: str, rate: str, seconds: str) -> tuple[float, ...]:
        """Return the figures of a round in C: see `numbers`."""
        return numbers([self.paced, kind, self.port, rate, seconds])


def build(name: str, folder: Path) -> Path:
    """Compile one of the C programs into `folder`; return where it is."""
    program = folder / name
    subprocess.run(["gcc", "-O2", "-o", program, HERE / "c" / f"{name}.c"], check=True)
    return program


@contextmanager
def yardstick() -> Iterator[Yardstick]:
    """Build the programs and let the server answer until the end."""
    with tempfile.TemporaryDirectory() as folder:
        paced, server = (build(name, Path(folder)) for name in ("paced", "server"))
        with subprocess.Popen([server], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield Yardstick(paced=str(paced), port=process.stdout.readline().strip())
            finally:
                process.terminate()


def numbers(command: list[str]) -> tuple[float, ...]:
    """Run one round; return checks, failures, microseconds per check, lateness p50 and p99 in milliseconds."""
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(float(word) for word in out.split())


def figures(done: int, failed: int, used: float, late: list[float]) -> str:
    """Return what `numbers` reads, of the seconds of processor and of what each check was late, in seconds."""
    late.sort()
    p50, p99 = late[len(late) // 2] * 1e3, late[len(late) * 99 // 100] * 1e3
    return f"{done} {failed} {used / done * 1e6:.3f} {p50:.3f} {p99:.3f}"


def addresses(port: int, count: int) -> list[str]:
    """Return one address for each service, as in paced.c."""
    return [f"127.1.{i // 250}.{i % 250 + 1}:{port}" for i in range(count)]


def cpu() -> float:
    """Return the seconds of processor this process has used, its threads and the kernel's share included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def many_files() -> None:
    """Allow as many open files as the machine does: each service has a connection of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
