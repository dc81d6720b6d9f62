"""The collector in a host's own registry, scraped from wherever hosts scrape."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from tests.servers import until

from selfheal import Service, Supervisor
from selfheal_prometheus import collector

OPENMETRICS: Callable[[CollectorRegistry], bytes] = generate_openmetrics  # it has no annotations of its own

HEALTHY = 'service_health_status{service="web",state="healthy"} 1.0'
NOT_RUNNING = "selfheal_running 0.0"


def supervisor_of(journal: Path | None = None, check: Callable[[], bool] = lambda: True) -> Supervisor:
    made = Supervisor([Service("web", check=check, interval=0.1, recovery_actions=["reconnect"])], journal=journal)

    @made.action("web", "reconnect")
    async def mend(context: Any) -> None: ...

    return made


def registry_of(supervisor: Supervisor) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector(supervisor))
    return registry


def scrape(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


async def seen(supervisor: Supervisor) -> None:
    """Wait until the first check has said something, and that is stored."""
    with anyio.fail_after(20):
        while True:
            if "service_uptime_percentage{" in await supervisor.ask("metrics"):
                return
            await anyio.sleep(0.02)


@pytest.mark.anyio
async def test_it_says_what_the_query_says_on_the_loop_and_in_a_thread(tmp_path: Path) -> None:
    """`make_asgi_app` collects on the loop, a synchronous route and `start_http_server` in a thread."""
    supervisor = supervisor_of(tmp_path / "selfheal.db")
    registry = registry_of(supervisor)
    async with supervisor:
        await seen(supervisor)

        def shape(text: str) -> list[tuple[str, str, str, set[Any]]]:
            return [
                (
                    one.name,
                    one.type,
                    one.documentation,
                    {(s.name, tuple(sorted(s.labels.items()))) for s in one.samples},
                )
                for one in text_string_to_metric_families(text)
            ]

        here, there = scrape(registry), await anyio.to_thread.run_sync(scrape, registry)
        asked = await supervisor.ask("metrics")
        modern = OPENMETRICS(registry).decode()
    assert HEALTHY in here
    assert shape(here) == shape(there) == shape(asked)
    assert "recovery_attempts_total" in here
    assert "# UNIT recovery_duration_seconds seconds" in modern
    assert modern.endswith("# EOF\n")


def test_beside_a_synchronous_host() -> None:
    supervisor = supervisor_of()
    registry = registry_of(supervisor)
    with supervisor.threaded() as threaded:
        until(lambda: threaded.ask("service", service="web")["state"] == "healthy", "it was checked")
        assert HEALTHY in scrape(registry)
    assert NOT_RUNNING in scrape(registry)


def test_what_is_registered_before_it_runs_hides_nothing_of_the_host(tmp_path: Path) -> None:
    registry = registry_of(supervisor_of(tmp_path / "selfheal.db"))
    Counter("orders", "Orders.", registry=registry).inc()
    text = scrape(registry)
    assert NOT_RUNNING in text
    assert "orders_total 1.0" in text
    assert "service_" not in text


def test_to_be_registered_is_not_to_be_collected() -> None:
    class Asked:
        times = 0

        def metrics(self, format: str = "data") -> Any:  # noqa: A002  # as the supervisor has it
            self.times += 1
            return {}

    asked, registry = Asked(), CollectorRegistry()
    registry.register(collector(asked))
    assert asked.times == 0
    assert scrape(registry) == ""
    assert asked.times == 1


@pytest.mark.anyio
async def test_two_supervisors_have_a_registry_each(tmp_path: Path) -> None:
    """In one they would give each series twice, which prometheus_client cannot see and Prometheus refuses."""
    one, other = supervisor_of(), supervisor_of()
    async with one, other:
        await seen(one)
        await seen(other)
        for supervisor in (one, other):
            text = scrape(registry_of(supervisor))
            lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
            assert len(lines) == len(set(lines))


@pytest.mark.anyio
async def test_s55_a_worker_that_only_reads_the_journal_says_what_was_decided_and_counted(tmp_path: Path) -> None:
    journal = tmp_path / "selfheal.db"
    async with supervisor_of(journal) as holder:
        await seen(holder)
        async with supervisor_of(journal) as worker:
            assert worker.reading
            registry = registry_of(worker)
            for text in (scrape(registry), await anyio.to_thread.run_sync(scrape, registry)):
                assert HEALTHY in text
                assert 'recovery_attempts_total{action="reconnect",result="success",service="web"} 0.0' in text
                assert "selfheal_running" not in text, "it does not know"
            assert "selfheal_running 1" in await worker.ask("metrics"), "the holder answers"


@pytest.mark.anyio
async def test_a_loop_that_does_not_turn_costs_a_scrape_and_not_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("selfheal.shell.running.TURNS", 0.2)
    supervisor = supervisor_of()
    registry = registry_of(supervisor)
    found: list[str] = []
    async with supervisor:
        await seen(supervisor)
        scraper = threading.Thread(target=lambda: found.append(scrape(registry)))
        scraper.start()
        scraper.join()  # this is the loop, and it stands
    assert NOT_RUNNING in found[0]
    assert "did not turn" in caplog.text


MANY_PROCESSES = """
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from selfheal import Supervisor
from selfheal_prometheus import collector

Counter("orders", "Orders.").inc()
with Supervisor([], journal=None).threaded() as threaded:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    registry.register(collector(threaded.supervisor))
    print(generate_latest(registry).decode())
"""


def test_beside_the_many_processes_of_prometheus_client(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY_PROCESSES],
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "orders_total 1.0" in done.stdout, done.stderr
    assert "selfheal_running 1.0" in done.stdout


def test_the_daemon_does_without_prometheus_client() -> None:
    lines = (
        "import sys, selfheal_prometheus, selfheal_prometheus.serving",
        "assert 'prometheus_client' not in sys.modules",
        "selfheal_prometheus.collector(None)",
        "assert 'prometheus_client' in sys.modules",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=60)
