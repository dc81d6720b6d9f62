"""A manager that is killed in the middle of a failover: its successor finds out what became of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from tests.servers import until
from tests.shell.supervised import hearing, quick
from tests.stack.killed import Ended, killed_afterwards
from tests.stack.postgres import WATCHER, Server

from selfheal import Supervisor
from selfheal_postgres.check import PostgresCheck

pytestmark = [pytest.mark.server, pytest.mark.real_time, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    """One host is enough: what is tested runs on asyncio in a thread of ours; the conformance kit has every host."""
    return "asyncio"


LINES = """
from selfheal_postgres.check import PostgresCheck
from tests.stack.killed import Ended
"""


@contextmanager
def slow_to_become_primary(standby: Server) -> Iterator[None]:
    """Freeze the process of a standby that would promote it; what is told to promote has the order, and waits."""
    children = Path(f"/proc/{standby.pid}/task/{standby.pid}/children").read_text().split()
    (startup,) = (int(one) for one in children if b"startup" in Path(f"/proc/{one}/cmdline").read_bytes())
    os.kill(startup, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(startup, signal.SIGCONT)


async def test_a_promotion_that_goes_on_without_its_manager_is_settled_as_done_and_not_done_again(
    primary: Server, standby: Server, tmp_path: Path
) -> None:
    primary.ask(f"GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO {WATCHER}")
    granted = "SELECT has_function_privilege('watcher', 'pg_promote(boolean, integer)', 'EXECUTE')"
    until(lambda: standby.ask(granted) == "t", "the grant has reached the standby")
    step = {"action": "failover", "standby": f"127.0.0.1:{standby.port}", "fence": "inspect", "timeout": 30.0}
    journal = tmp_path / "selfheal.db"
    promoting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_promote%' AND state = 'active'"
    primary.kill()
    with slow_to_become_primary(standby):
        with killed_afterwards(journal, step, f"check=PostgresCheck(url={primary.url()!r}), workload=Ended()", LINES):
            await anyio.to_thread.run_sync(until, lambda: standby.ask(promoting) == "1", "it is promoting", 30.0)
        options: dict[str, Any] = {"workload": Ended(), "recovery_actions": [step], "start_grace": 0.0}
        service = quick("service", check=PostgresCheck(url=primary.url()), **options)
        async with Supervisor([service], journal=journal) as supervisor, hearing(supervisor) as heard:
            await anyio.sleep(1.0)
            assert not heard.of("ended"), "it cannot be told yet"
    async with Supervisor([service], journal=journal) as supervisor, hearing(supervisor) as heard:
        ended = await heard.first("ended", within=20.0)
        assert ended.settled.value == "done", ended
        assert len(heard.of("intended")) == 1
    assert standby.ask("SELECT pg_is_in_recovery()") == "f"
