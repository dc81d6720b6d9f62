"""What an import must not do: the host's process belongs to the host."""

from __future__ import annotations

import subprocess
import sys

from tests.broken import fails_when

EVERYTHING = "selfheal, selfheal.supervisor, selfheal.control, selfheal.daemon, selfheal.cli, selfheal.cli.hosting"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@fails_when("an import takes the signals")
def test_s57_an_import_leaves_the_hosts_signal_handlers_alone() -> None:
    code = f"""
import os, signal
mine = lambda *_: os._exit(0)
signal.signal(signal.SIGTERM, mine)
before = [signal.getsignal(number) for number in signal.valid_signals()]
import {EVERYTHING}
assert [signal.getsignal(number) for number in signal.valid_signals()] == before
os.kill(os.getpid(), signal.SIGTERM)
raise SystemExit("the handler of the host did not run")
"""
    run(code)


@fails_when("who is entered takes the signals")
def test_s57_a_running_supervisor_leaves_them_alone_too() -> None:
    code = """
import anyio, logging, signal, threading
from selfheal import Supervisor

async def main():
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    handlers = list(logging.getLogger().handlers), list(logging.getLogger("selfheal").handlers)
    async with Supervisor([], journal=None):
        assert [signal.getsignal(number) for number in signal.valid_signals()] == before
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before
    assert (list(logging.getLogger().handlers), list(logging.getLogger("selfheal").handlers)) == handlers

anyio.run(main)
for thread in threading.enumerate():
    if thread is not threading.main_thread() and not thread.daemon:
        thread.join(10)
        assert not thread.is_alive(), thread
"""
    run(code)


@fails_when("an import takes the signals")
def test_s58_it_can_be_imported_in_a_worker_thread() -> None:
    code = f"""
import threading
failed = []

def work():
    try:
        import {EVERYTHING}
    except BaseException as problem:
        failed.append(problem)

thread = threading.Thread(target=work)
thread.start()
thread.join()
assert not failed, failed
"""
    run(code)


def test_an_import_starts_nothing() -> None:
    code = f"""
import os, threading
descriptors, umask = sorted(os.listdir("/proc/self/fd")), os.umask(0o22)
os.umask(umask)
import {EVERYTHING}
assert threading.active_count() == 1, threading.enumerate()
assert sorted(os.listdir("/proc/self/fd")) == descriptors
assert os.umask(umask) == umask
"""
    run(code)


def test_the_command_line_needs_no_rich_and_a_heartbeat_no_engine_of_its_own() -> None:
    code = """
import sys
sys.modules["rich"] = None
from click.testing import CliRunner
from selfheal.cli import main
assert CliRunner().invoke(main, ["--help"]).exit_code == 0
"""
    run(code)
