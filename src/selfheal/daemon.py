"""`selfheal run`: a supervisor of its own under systemd, a container or a terminal.

Owns what a library must not: the signals, the logging, the watchdog, and the frontends of the file.

    SIGTERM, SIGINT  stop in order; once more: at once
    SIGHUP           read the file again; a file with an error changes nothing
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from selfheal.config import Configuration, at_start_only
from selfheal.errors import ConfigurationError, RequestRefused, SelfhealError
from selfheal.ladder import resolve_all
from selfheal.shell.homes import settled
from selfheal.supervisor import Supervisor
from selfheal.words import clean

log = logging.getLogger("selfheal.daemon")

PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Levels as the system's journal knows them."""


def run(path: Path, *, state_dir: Path | None = None, http: str | None = None, log_format: str = "text") -> None:
    """Run the fleet of a file until told to stop. Blocks; call it on the main thread of a process that is ours.

    Raises `ConfigurationError`, and `JournalHeld` when another process heals this fleet.
    """
    added = {"http": {"listen": http}} if http is not None else {}

    def load() -> Configuration:
        configuration = settled(path, state_dir=state_dir, added=added)
        # Before a journal is made for it: what cannot run must leave nothing behind.
        resolve_all(configuration.services, {}, configuration.tables.actions)
        return configuration

    configuration = load()
    set_up_logging(configuration.log_level, log_format)
    try:
        anyio.run(_live, configuration, load)
    except BaseExceptionGroup as group:
        alone: BaseException = group
        while isinstance(alone, BaseExceptionGroup) and len(alone.exceptions) == 1:
            alone = alone.exceptions[0]
        raise alone from None  # what a task group of ours has wrapped


async def _live(configuration: Configuration, load: Any) -> None:
    for warning in configuration.warnings:
        log.warning("%s", warning)
    supervisor = Supervisor.of(configuration, share=False)
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as tasks:
            over = anyio.Event()
            tasks.start_soon(_listen, signals, supervisor, configuration, load, over)
            async with supervisor, anyio.create_task_group() as doors:
                for name, frontend in configuration.frontends.items():
                    doors.start_soon(_serve, name, frontend, supervisor)
                doors.start_soon(_keep_watchdog, supervisor)
                notify("READY=1")
                log.info("watching a fleet of %d; state in %s", len(configuration.services), configuration.state_dir)
                await over.wait()
                notify("STOPPING=1")
                log.info("stopping")
                doors.cancel_scope.cancel()
            tasks.cancel_scope.cancel()
    log.info("stopped")


async def _listen(
    signals: AsyncIterator[signal.Signals],
    supervisor: Supervisor,
    begun_with: Configuration,
    load: Any,
    over: anyio.Event,
) -> None:
    async for number in signals:
        if number is signal.SIGHUP:
            await _reload(supervisor, begun_with, load)
        elif over.is_set():
            log.warning("asked to stop once more: leaving at once")
            logging.shutdown()
            os._exit(1)
        else:
            over.set()


async def _reload(supervisor: Supervisor, begun_with: Configuration, load: Any) -> None:
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        configuration = await anyio.to_thread.run_sync(load)
        await supervisor.reload(configuration, actor="the file, read again")
    except ConfigurationError as refused:
        for problem in refused.problems:
            log.error("the file was not taken over: %s", problem)
    except RequestRefused as refused:
        log.error("the file was not taken over: %s", refused)
        log.error("to confirm it, restart selfheal with this file, then say `selfheal release fleet`")
    except SelfhealError as refused:
        log.error("the file was not taken over: %s", refused)
    else:
        logging.getLogger("selfheal").setLevel(configuration.log_level.upper())
        log.info("the file was read again")
        for warning in configuration.warnings:
            log.warning("%s", warning)
        for key in at_start_only(begun_with, configuration):
            log.warning("%s: what has changed there is taken over at the next start only", key)
    notify("READY=1")


async def _serve(name: str, frontend: Any, supervisor: Supervisor) -> None:
    """Serve a frontend. One that ends or fails is reported; watching goes on."""
    try:
        await frontend.serve(supervisor)
    except SelfhealError as problem:  # it says itself what is wrong, and what to do
        log.error("the frontend [%s] is not served; everything else goes on: %s", name, problem)
    except Exception:  # whatever it raises is its own end only
        log.exception("the frontend [%s] failed; everything else goes on", name)
    else:
        log.warning("the frontend [%s] has ended; everything else goes on", name)


# -- systemd ----------------------------------------------------------------------------------------------------------


def notify(said: str) -> None:
    """Tell the service manager, if there is one that listens (`sd_notify`)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
        try:
            out.sendto(said.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as problem:
            log.debug("the service manager was not told: %s", problem)


async def _keep_watchdog(supervisor: Supervisor) -> None:
    """Answer the service manager's watchdog for as long as the engine turns, and not only this loop."""
    period = os.environ.get("WATCHDOG_USEC", "")
    if not period.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while (await supervisor.ask("health"))["running"]:
        notify("WATCHDOG=1")
        await anyio.sleep(int(period) / 1e6 / 2)
    log.critical("the engine does not turn any more: the service manager is left to restart this process")


# -- logging ----------------------------------------------------------------------------------------------------------


class _Lines(logging.Formatter):
    """One printable line for each entry: with the time, with a priority for the system's journal, or as JSON."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback, which has several, is part of JSON and follows otherwise."""
        message = clean(record.getMessage())
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._kind == "json":
            entry = {
                "time": round(record.created, 3),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": message,
            }
            return json.dumps({**entry, "traceback": trace} if trace else entry)
        if self._kind == "journal":
            head = f"<{PRIORITIES.get(record.levelno, 5)}>"
            return "\n".join(f"{head}{line}" for line in [message, *trace.splitlines()])
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return "\n".join([f"{stamp} {record.levelname.lower():<8} {message}", *trace.splitlines()])


def set_up_logging(level: str, kind: str) -> None:
    """Let everything of ours be written to standard error, and warnings of everybody else."""
    if kind == "text" and os.environ.get("JOURNAL_STREAM"):
        kind = "journal"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(kind))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("selfheal").setLevel(level.upper())
    logging.captureWarnings(True)


__all__ = ["notify", "run", "set_up_logging"]
