"""Weaviate under the whole of selfheal: a disk that was full is for people first, and for a restart afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import anyio
import attrs
import pytest
from tests.servers import until
from tests.shell.supervised import hearing, quick, state_of
from tests.stack.small_disk import fill, small_disk
from tests.stack.weaviate import KEY, Weaviate

from selfheal import Instance, Run, Secret, Supervisor
from selfheal.core.model import Cause
from selfheal.plugins import ActionContext, Context
from selfheal_weaviate.checks import WeaviateCheck

pytestmark = [pytest.mark.server, pytest.mark.real_time, pytest.mark.slow]

THING = {"class": "Thing", "properties": {"name": "one"}}


@attrs.frozen(kw_only=True)
class Process:
    """The process of a Weaviate of the stack, as a workload."""

    kind: ClassVar[str] = "stack"

    server: Weaviate

    async def inspect(self, context: Context) -> Instance:
        return Instance(id=str(self.server.pid), run=Run.RUNNING)

    async def restart(self, context: ActionContext) -> None:
        await context.blocking(self.server.kill)
        await context.blocking(self.server.start)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_while_the_disk_is_full_nothing_is_done_and_once_there_is_room_it_is_restarted(tmp_path: Path) -> None:
    with small_disk(tmp_path / "node1", 128 * 1024, "weaviate") as disk:
        one = Weaviate(tmp_path)
        try:
            await anyio.to_thread.run_sync(one.start)
            await anyio.to_thread.run_sync(one.ask, "/v1/schema", "POST", {"class": "Thing", "vectorizer": "none"})
            await _healed(one, disk)
        finally:
            one.kill()


async def _healed(one: Weaviate, disk: Path) -> None:
    def refused() -> bool:
        return one.ask("/v1/objects", "POST", THING)[0] >= 400

    service = quick(
        "weaviate",
        check=WeaviateCheck(url=one.url, api_key=Secret(KEY), write_probe=True, data_path=disk),
        workload=Process(server=one),
        recovery_actions=({"action": "restart", "settle": 0.5, "timeout": 30.0},),
        deep=True,
        interval=0.5,
        timeout=0.4,
    )
    async with Supervisor([service], journal=None, plugins=["weaviate"]) as supervisor, hearing(supervisor) as heard:
        await heard.state("weaviate", "healthy")
        pid = one.pid
        room = await anyio.to_thread.run_sync(fill, disk, 0.95)
        await heard.state("weaviate", "degraded")
        await anyio.sleep(3.0)  # six more checks: nothing is to be done however long it lasts
        answer = await state_of(supervisor, "weaviate")
        assert answer["evidence"]["cause"] == Cause.FULL
        assert "make room" in answer["detail"]
        assert not heard.of("intended")
        assert one.pid == pid
        assert await anyio.to_thread.run_sync(refused)

        room.unlink()
        await heard.state("weaviate", "healthy", within=30.0, nth=2)
        assert [record.action for record in heard.of("intended")] == ["restart"]
        assert one.pid != pid
        await anyio.to_thread.run_sync(until, lambda: not refused(), "it takes writes again")
