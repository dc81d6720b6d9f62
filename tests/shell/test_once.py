"""One check by itself, from an application's own code."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import attrs
import pytest

import selfheal
from selfheal import Cause, CheckContext, CheckResult, Secret, Verdict, check_once
from selfheal.builtin.wire_checks import HttpCheck, TcpCheck
from selfheal.testing.servers import answer, hang

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@attrs.frozen(kw_only=True)
class Deep:
    kind: ClassVar[str] = "deep"

    async def check(self, context: CheckContext) -> CheckResult:
        return CheckResult(Verdict.WARNING, summary=f"deep is {context.deep}, {context.service}")


async def test_every_road_is_taken_and_nothing_is_left(tmp_path: Path) -> None:
    with answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as well:
        assert await check_once(HttpCheck(url=f"http://{well}/")) is selfheal.PASSING
        assert (await check_once(TcpCheck(address=well))).verdict is Verdict.PASSING
    assert (await check_once(Deep(), deep=True)).summary == "deep is True, once"
    assert (await check_once(lambda: False)).verdict is Verdict.FAILING

    async def own() -> bool:
        await anyio.lowlevel.checkpoint()
        return True

    assert (await check_once(own)).verdict is Verdict.PASSING
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("selfheal-checks")]


async def test_the_deadline_is_total() -> None:
    with hang() as address, anyio.fail_after(3.0):
        result = await check_once(HttpCheck(url=f"http://{address}/"), timeout=0.2)
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.TIMEOUT)


async def test_what_is_no_check_is_refused_and_what_it_quotes_is_scrubbed(tmp_path: Path) -> None:
    nothing: Any = object()
    with pytest.raises(TypeError):
        await check_once(nothing)
    with pytest.raises(ValueError, match="timeout"):
        await check_once(lambda: True, timeout=-1.0)

    @attrs.frozen(kw_only=True)
    class Telling:
        kind: ClassVar[str] = "telling"
        password: Secret

        async def check(self, context: CheckContext) -> CheckResult:
            raise RuntimeError(f"cannot use {self.password.reveal()}")

    result = await check_once(Telling(password=Secret("hunter2-canary")))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "hunter2" not in result.summary
