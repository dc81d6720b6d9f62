"""The check `weaviate` against real Weaviates: each way to be unwell is told from the others, and from being well."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
from anyio.from_thread import start_blocking_portal
from tests.servers import free_port, until
from tests.stack.asking import deep, left_by_deep_failures, left_by_light_failures, light, silence
from tests.stack.small_disk import fill, small_disk
from tests.stack.starved import starve
from tests.stack.weaviate import KEY, Weaviate, cluster

from selfheal import Cause, CheckResult, Secret, Verdict
from selfheal.core.model import NEVER_RESTART, NOT_CURED
from selfheal.shell.lanes import KEPT_CHECKS
from selfheal.shell.results import Scrubber, checked
from selfheal.testing import servers
from selfheal.testing.probing import Turned
from selfheal.testing.stage import Stage, verdict_of
from selfheal_weaviate.checks import WeaviateCheck
from selfheal_weaviate.writing import COLLECTION, OBJECT, RIGHTS

pytestmark = [pytest.mark.server, pytest.mark.real_time]

WRONG = "hunter2-canary-51d2e8"


def is_(result: CheckResult, verdict: Verdict, cause: Cause | None) -> CheckResult:
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert WRONG not in repr(result)
    assert KEY not in repr(result)
    return result


def check(weaviate: Weaviate, **options: Any) -> WeaviateCheck:
    return WeaviateCheck(**{"url": weaviate.url, "api_key": Secret(KEY), **options})


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[Weaviate]:
    one = Weaviate(folder)
    try:
        one.start(**environment)
        yield one
    finally:
        one.kill()


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weaviate]:
    """One that stays well: nobody here may harm it."""
    with running(tmp_path_factory.mktemp("weaviate")) as one:
        assert one.ask("/v1/schema", "POST", {"class": "Thing", "vectorizer": "none"})[0] == 200
        yield one


@pytest.fixture
def turned() -> Iterator[Turned]:
    turned = Turned()
    yield turned
    turned.runner.close()


@contextmanager
def kept() -> Iterator[Callable[[WeaviateCheck], CheckResult]]:
    """Run deep checks one after the other, with what they keep; at last it is closed, as at a stop."""
    with start_blocking_portal() as portal:
        stage = portal.call(_stage)

        async def look(one: WeaviateCheck) -> CheckResult:
            scrubber = Scrubber(one)
            context = partial(stage.contexts.for_check, "weaviate", one, 10.0, deep=True)
            outcome = await stage.loops.run("weaviate", lambda: checked(one, context(), scrubber), timeout=10.0)
            return verdict_of(outcome)

        try:
            yield partial(portal.call, look)
        finally:
            portal.call(stage.loops.aclose, 3.0)
            stage.contexts.threads.close()


async def _stage() -> Stage:
    return Stage()


@pytest.fixture
def looking() -> Iterator[Callable[[WeaviateCheck], CheckResult]]:
    """Deep checks one after the other, with what they keep."""
    with kept() as looking:
        yield looking


# -- well ---------------------------------------------------------------------------------------------------------


def test_a_healthy_one_passes_and_says_its_nodes_and_version(well: Weaviate) -> None:
    result = is_(light(check(well, nodes=1)), Verdict.PASSING, None)
    assert result.details == {
        "nodes": 1,
        "nodes_expected": 1,
        "nodes_healthy": 1,
        "version": "1.35.2",
        "queue": 0,
    }


def test_one_kept_connection_carries_one_check_after_another(well: Weaviate, turned: Turned) -> None:
    lane = turned.runner.lane(check(well), 2.0, None)
    for _ in range(5):
        is_(turned.run(lane), Verdict.PASSING, None)
    assert turned.runner.connections == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_deep_check_knows_shards_and_grpc(well: Weaviate, backend: str) -> None:
    result = is_(deep(check(well, grpc_port=well.grpc_port), backend=backend), Verdict.PASSING, None)
    assert (result.details["grpc"], result.details["shards"], result.details["objects"]) == (True, 1, 0)


def test_rest_that_serves_while_grpc_does_not_is_degraded(well: Weaviate) -> None:
    result = is_(deep(check(well, grpc_port=free_port())), Verdict.WARNING, Cause.UNREACHABLE)
    assert "refused" in result.summary
    result = is_(deep(check(well, grpc_port=well.port), 5.0), Verdict.WARNING, Cause.UNREACHABLE)  # it speaks HTTP/1
    assert "gRPC" in result.summary
    with silence() as port:
        is_(deep(check(well, grpc_port=port), 1.0), Verdict.WARNING, Cause.UNREACHABLE)


# -- keys -----------------------------------------------------------------------------------------------------------


def test_s63_a_wrong_or_missing_key_is_auth_and_is_not_shown(well: Weaviate) -> None:
    one = check(well, api_key=Secret(WRONG))
    assert "401" in is_(light(one), Verdict.FAILING, Cause.AUTH).summary
    is_(deep(one), Verdict.FAILING, Cause.AUTH)
    is_(light(check(well, api_key=None)), Verdict.FAILING, Cause.AUTH)
    assert WRONG not in repr(one)


def test_a_key_rotated_while_it_runs_is_auth_until_the_new_one_is_read(tmp_path: Path) -> None:
    environment = {
        "AUTHENTICATION_DB_USERS_ENABLED": "true",
        "AUTHORIZATION_RBAC_ENABLED": "true",
        "AUTHORIZATION_RBAC_ROOT_USERS": "steward",
    }
    with running(tmp_path, **environment) as one:
        status, made = one.ask("/v1/users/db/watcher", "POST", {})
        assert status == 201
        held = [made["apikey"]]
        asked = check(one, api_key=Secret(lambda: held[0], source="env KEY"))
        assert "403" in is_(light(asked), Verdict.FAILING, Cause.AUTH).summary  # it may not see the nodes
        body = {"roles": ["viewer"], "userType": "db"}
        assert one.ask("/v1/authz/users/watcher/assign", "POST", body)[0] == 200
        is_(light(asked), Verdict.PASSING, None)
        probing = attrs.evolve(asked, write_probe=True)
        assert RIGHTS in is_(deep(probing), Verdict.WARNING, Cause.AUTH).summary
        actions = ("read_collections", "create_collections", "delete_collections")
        rights = [{"action": action, "collections": {"collection": COLLECTION}} for action in actions]
        rights += [{"action": action, "data": {"collection": COLLECTION}} for action in ("create_data", "update_data")]
        assert one.ask("/v1/authz/roles", "POST", {"name": "prober", "permissions": rights})[0] == 201
        assert one.ask("/v1/authz/users/watcher/assign", "POST", {**body, "roles": ["prober"]})[0] == 200
        with kept() as looking:
            is_(looking(probing), Verdict.PASSING, None)
            assert one.ask(f"/v1/schema/{COLLECTION}")[0] == 200
        assert one.ask(f"/v1/schema/{COLLECTION}")[0] == 404
        status, rotated = one.ask("/v1/users/db/watcher/rotate-key", "POST", {})
        assert status == 200
        is_(light(asked), Verdict.FAILING, Cause.AUTH)
        is_(deep(asked), Verdict.FAILING, Cause.AUTH)
        held[0] = rotated["apikey"]
        is_(light(asked), Verdict.PASSING, None)


def test_a_key_that_cannot_be_read_says_nothing_about_weaviate(well: Weaviate) -> None:
    def absent() -> str:
        raise FileNotFoundError("/run/secrets/key")

    one = check(well, api_key=Secret(absent, source="file /run/secrets/key"))
    is_(light(one), Verdict.INCONCLUSIVE, Cause.CONFIG)
    is_(deep(one), Verdict.INCONCLUSIVE, Cause.CONFIG)


# -- the process ----------------------------------------------------------------------------------------------------


def test_it_is_killed_comes_back_freezes_is_loaded_and_takes_nobody_any_more(tmp_path: Path, turned: Turned) -> None:
    with running(tmp_path) as one:
        lane = turned.runner.lane(check(one), 0.5, None)
        is_(turned.run(lane), Verdict.PASSING, None)
        one.kill()
        began = time.monotonic()
        turned.turn(lambda: turned.lost == [lane])
        assert time.monotonic() - began < 0.5
        is_(turned.run(lane), Verdict.FAILING, Cause.UNREACHABLE)
        is_(deep(check(one)), Verdict.FAILING, Cause.UNREACHABLE)

        one.begin()
        seen = [turned.run(lane).cause]
        end = time.monotonic() + 30.0
        while seen[-1] is not None and time.monotonic() < end:
            seen.append(turned.run(lane).cause)
        assert seen[-1] is None
        assert set(seen) <= {Cause.UNREACHABLE, Cause.STARTING, None}

        one.freeze()
        is_(turned.run(lane), Verdict.FAILING, Cause.TIMEOUT)
        is_(light(check(one), 0.5), Verdict.FAILING, Cause.TIMEOUT)
        is_(deep(check(one), 0.5), Verdict.FAILING, Cause.TIMEOUT)
        one.thaw()
        is_(turned.run(lane), Verdict.PASSING, None)

        objects = [{"class": "Thing", "properties": {"name": f"number {n}"}, "vector": [n, 1]} for n in range(3000)]
        with ThreadPoolExecutor(1) as pool:  # a large load is no reason to complain
            load = pool.submit(one.ask, "/v1/batch/objects", "POST", {"objects": objects})
            while not load.done():
                is_(light(check(one)), Verdict.PASSING, None)
            assert load.result()[0] == 200

        lane = turned.runner.lane(check(one), 0.5, None)
        is_(turned.run(lane), Verdict.PASSING, None)
        starve(one.pid, one.port)
        is_(light(check(one), 0.5), Verdict.FAILING, Cause.TIMEOUT)
        seen = [turned.run(lane).cause for _ in range(KEPT_CHECKS)]
        assert (seen[-1], set(seen[:-1])) == (Cause.TIMEOUT, {None})


# -- read-only ------------------------------------------------------------------------------------------------------


def test_a_mode_changed_while_it_runs_is_read_only(tmp_path: Path) -> None:
    mode = tmp_path / "overrides.yaml"
    mode.write_text("operational_mode: ReadWrite\n")
    environment = {
        "RUNTIME_OVERRIDES_ENABLED": "true",
        "RUNTIME_OVERRIDES_PATH": str(mode),
        "RUNTIME_OVERRIDES_LOAD_INTERVAL": "100ms",
    }
    thing = {"class": "Thing", "vectorizer": "none"}
    with running(tmp_path, **environment) as one:
        is_(light(check(one)), Verdict.PASSING, None)
        mode.write_text("operational_mode: ReadOnly\n")
        until(lambda: one.ask("/v1/schema", "POST", thing)[0] == 503, "Weaviate refuses writes")
        for result in (light(check(one)), deep(check(one))):
            is_(result, Verdict.WARNING, Cause.READ_ONLY)
            assert "node1 ReadOnly" in result.summary
        mode.write_text("operational_mode: ReadWrite\n")
        until(lambda: light(check(one)).verdict is Verdict.PASSING, "it may be written again")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A small disk for the data of a node."""
    with small_disk(tmp_path / "node1", 128 * 1024, "weaviate") as disk:
        yield disk


THING = {"class": "Thing", "properties": {"name": "one"}, "vector": [0.1, 0.2]}


def refuses(one: Weaviate) -> bool:
    return one.ask("/v1/objects", "POST", THING)[0] >= 400


def test_a_disk_that_was_full_once_leaves_it_refusing_writes_which_only_a_write_shows(
    small: Path, looking: Callable[[WeaviateCheck], CheckResult]
) -> None:
    """`ready` says 200 and every write 500, until it is restarted: that is told when there is room, and not before."""
    with running(small.parent) as one:
        assert one.ask("/v1/schema", "POST", {"class": "Thing", "vectorizer": "none"})[0] == 200
        assert not refuses(one)
        seeing, blind = check(one, write_probe=True, data_path=small), check(one, write_probe=True)
        for asked in (seeing, blind):
            assert is_(looking(asked), Verdict.PASSING, None).details["written"] is True
        room = fill(small, 0.95)
        until(lambda: refuses(one), "Weaviate refuses writes", 60.0)
        assert one.ask("/v1/.well-known/ready")[0] == 200
        is_(light(check(one)), Verdict.PASSING, None)
        result = is_(deep(check(one)), Verdict.WARNING, Cause.READ_ONLY)
        assert "Thing/" in result.summary
        assert result.details["shards_read_only"] == 2
        assert "make room" in is_(looking(seeing), Verdict.WARNING, Cause.FULL).summary
        assert "give data_path" in is_(looking(blind), Verdict.WARNING, Cause.FULL).summary

        room.unlink()
        assert os.statvfs(small).f_bfree > 0.9 * os.statvfs(small).f_blocks
        assert one.ask("/v1/.well-known/ready")[0] == 200
        assert refuses(one)
        is_(light(check(one)), Verdict.PASSING, None)
        result = is_(looking(seeing), Verdict.FAILING, Cause.ERROR)
        assert Cause.ERROR not in NEVER_RESTART | NOT_CURED
        assert "a restart opens" in result.summary
        assert float(str(result.details["disk_used_percent"])) < 10.0
        is_(looking(blind), Verdict.WARNING, Cause.FULL)

        one.kill()
        one.start()
        assert not refuses(one)
        is_(looking(seeing), Verdict.PASSING, None)


def test_a_disk_without_a_byte_left_takes_its_leader_and_that_is_no_start(
    small: Path, looking: Callable[[WeaviateCheck], CheckResult]
) -> None:
    with running(small.parent) as one:
        assert one.ask("/v1/schema", "POST", {"class": "Thing", "vectorizer": "none"})[0] == 200
        assert not refuses(one)
        room = fill(small)
        until(lambda: "read-only" in str(one.ask("/v1/objects", "POST", THING)), "its shards are closed", 60.0)
        assert "no space left" in str(one.ask("/v1/schema", "POST", {"class": "More", "vectorizer": "none"}))
        until(lambda: one.ask("/v1/.well-known/ready")[0] == 503, "it has no leader", 60.0)
        assert one.ask("/v1/objects?class=Thing")[0] == 200  # it may still be read
        probing = check(one, write_probe=True, data_path=small)
        for asked in (check(one), probing):
            assert "make room" in is_(looking(asked), Verdict.WARNING, Cause.FULL).summary
        room.unlink()
        until(lambda: one.ask("/v1/.well-known/ready")[0] == 200, "it has a leader again", 30.0)
        assert refuses(one)
        # Nobody had written before: who closed the shards cannot be told any more, and nothing is made that were open.
        is_(looking(probing), Verdict.WARNING, Cause.READ_ONLY)
        assert one.ask(f"/v1/schema/{COLLECTION}")[0] == 404


@pytest.mark.slow
def test_a_memory_that_was_full_closes_the_shards_and_a_restart_opens_them(
    tmp_path: Path, looking: Callable[[WeaviateCheck], CheckResult]
) -> None:
    with running(tmp_path, MEMORY_READONLY_PERCENTAGE="45", GOMEMLIMIT="100MiB") as one:
        assert one.ask("/v1/schema", "POST", {"class": "Thing", "vectorizer": "none"})[0] == 200
        probing = check(one, write_probe=True)
        is_(looking(probing), Verdict.PASSING, None)
        large = {**THING, "vector": [1] * 9999}

        def full() -> bool:
            one.ask("/v1/batch/objects", "POST", {"objects": [large] * 20})
            return "memory usage too high" in str(one.ask("/v1/objects", "POST", large))

        until(full, "its memory is full", 60.0)
        assert one.ask("/v1/.well-known/ready")[0] == 200
        is_(deep(check(one)), Verdict.WARNING, Cause.READ_ONLY)
        assert "until it is restarted" in is_(looking(probing), Verdict.FAILING, Cause.OVERLOADED).summary
        one.kill()
        one.start()
        assert one.ask("/v1/objects", "POST", large)[0] == 200
        is_(looking(probing), Verdict.PASSING, None)


def test_a_write_probe_leaves_nothing_and_grows_little(well: Weaviate) -> None:
    probing = check(well, write_probe=True)
    with kept() as looking:
        for _ in range(3):
            assert is_(looking(probing), Verdict.PASSING, None).details["written"] is True
        found = well.ask(f"/v1/objects?class={COLLECTION}")[1]["objects"]
        assert [one["id"] for one in found] == [OBJECT]
    assert well.ask(f"/v1/schema/{COLLECTION}")[0] == 404


def test_a_write_probe_without_a_deep_check_says_so(well: Weaviate) -> None:
    result = is_(light(check(well, write_probe=True)), Verdict.WARNING, Cause.CONFIG)
    assert "deep = true" in result.summary
    assert well.ask(f"/v1/schema/{COLLECTION}")[0] == 404


def test_a_folder_that_cannot_be_looked_at_is_told_while_all_is_well(well: Weaviate, tmp_path: Path) -> None:
    probing = check(well, write_probe=True, data_path=tmp_path / "nowhere")
    assert "No such file" in is_(deep(probing), Verdict.WARNING, Cause.CONFIG).summary


def test_doctor_says_why_a_probe_could_not_be_asked_or_sees_no_disk(tmp_path: Path) -> None:
    file = tmp_path / "selfheal.toml"
    options = f'kind = "weaviate", url = "http://127.0.0.1:9", write_probe = true, data_path = "{tmp_path}/nowhere"'
    said = {}
    for deep_one in ("false", "true"):
        file.write_text(f"[services.weaviate]\ndeep = {deep_one}\ncheck = {{ {options} }}\n")
        done = subprocess.run(
            [sys.executable, "-m", "selfheal", "--state-dir", str(tmp_path / "state"), "doctor", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        said[deep_one] = (done.returncode, "deep = true" in done.stderr, "No such file" in done.stderr)
    assert said == {"false": (1, True, True), "true": (1, False, True)}


# -- a cluster --------------------------------------------------------------------------------------------------------


def test_a_cluster_starts_has_a_frozen_node_loses_it_and_then_its_leader(tmp_path: Path) -> None:
    one, two, three = nodes = cluster(tmp_path)
    try:
        one.begin()
        until(lambda: one.ask("/v1/.well-known/ready")[0] == 503, "the first waits for the others", 30.0)
        assert "not ready" in is_(light(check(one)), Verdict.FAILING, Cause.STARTING).summary
        is_(deep(check(one)), Verdict.FAILING, Cause.STARTING)
        two.begin()
        three.begin()
        for node in nodes:
            until(lambda: node.ask("/v1/.well-known/ready")[0] == 200, f"{node.name} is ready", 60.0)  # noqa: B023
        until(lambda: light(check(one, nodes=3)).verdict is Verdict.PASSING, "all three are seen", 30.0)
        assert deep(check(one, nodes=3)).details["nodes"] == 3
        assert deep(check(one, write_probe=True)).details["written"] is True

        three.freeze()  # the list of nodes waits for it, 10 s long: a deep check does not
        result = is_(deep(check(one, nodes=3), 1.0), Verdict.WARNING, Cause.DEGRADED_CLUSTER)
        assert "frozen" in result.summary
        three.thaw()
        until(lambda: light(check(one, nodes=3)).verdict is Verdict.PASSING, "it is seen again", 60.0)

        three.kill()
        result = until(lambda: (seen := light(check(one, nodes=3))).verdict is not Verdict.PASSING and seen, "a loss")
        is_(result, Verdict.WARNING, Cause.DEGRADED_CLUSTER)
        until(lambda: one.ask("/v1/nodes?output=minimal")[0] == 200, "the lost one is forgotten", 60.0)
        assert one.ask("/v1/.well-known/ready")[0] == 200
        is_(light(check(one)), Verdict.PASSING, None)  # without being told how many there must be
        result = is_(light(check(one, nodes=3)), Verdict.WARNING, Cause.DEGRADED_CLUSTER)
        assert "2 of 3 nodes" in result.summary

        two.kill()
        until(lambda: one.ask("/v1/.well-known/ready")[0] == 503, "it has no leader", 30.0)
        until(lambda: one.ask("/v1/nodes?output=minimal")[0] == 200, "it knows to be alone", 60.0)
        result = is_(light(check(one, nodes=3)), Verdict.FAILING, Cause.DEGRADED_CLUSTER)
        assert "not ready" in result.summary
        is_(deep(check(one, nodes=3)), Verdict.FAILING, Cause.DEGRADED_CLUSTER)
    finally:
        for node in nodes:
            node.kill()


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "verdict", "cause"),
    [(300.0, Verdict.PASSING, None), (3.0, Verdict.WARNING, Cause.CONFIG), (-1.0, Verdict.FAILING, Cause.CONFIG)],
)
def test_a_certificate_is_good_or_ends_soon_or_has_ended(
    well: Weaviate, tmp_path: Path, days: float, verdict: Verdict, cause: Cause | None
) -> None:
    """A proxy of one line ends TLS before the real one, as is usual for Weaviate."""
    now = datetime.datetime.now(datetime.UTC)
    authority = trustme.CA()
    ends = now + datetime.timedelta(days=days)
    leaf = authority.issue_cert("127.0.0.1", not_before=now - datetime.timedelta(days=30), not_after=ends)
    pem = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(pem))
    with tls_before(well.port, leaf) as port:
        one = check(well, url=f"https://127.0.0.1:{port}", authority=pem)
        is_(light(one), verdict, cause)
        is_(deep(one), verdict, cause)
        is_(light(check(well, url=one.url)), Verdict.FAILING, Cause.CONFIG)  # an authority that we do not trust


@contextmanager
def tls_before(port: int, leaf: trustme.LeafCert) -> Iterator[int]:
    import socket
    import ssl
    import threading

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)

    def speak(client: socket.socket, stop: threading.Event) -> None:
        with socket.create_connection(("127.0.0.1", port)) as behind:
            while heard := client.recv(65536):
                behind.sendall(heard)
                client.sendall(behind.recv(65536))

    with servers.serve(speak, context=context) as address:
        yield int(address.rpartition(":")[2])


# -- what is left behind --------------------------------------------------------------------------------------------


def test_s64_a_thousand_failing_checks_leave_nothing_open() -> None:
    with silence() as port:
        one = WeaviateCheck(url=f"http://127.0.0.1:{port}", api_key=Secret(WRONG), grpc_port=port)
        assert left_by_light_failures(one) == {}
        assert left_by_deep_failures(one) == {}


@pytest.mark.parametrize("fault", [servers.black_hole, servers.hang, lambda: servers.drip(b"HTTP/1.1 200 OK\r\n" * 99)])
def test_silence_in_every_form_is_a_timeout(fault: Any) -> None:
    with fault() as address:
        one = WeaviateCheck(url=f"http://{address}", api_key=Secret(WRONG))
        is_(light(one, 0.2), Verdict.FAILING, Cause.TIMEOUT)
        is_(deep(one, 0.2), Verdict.FAILING, Cause.TIMEOUT)


def test_where_nobody_listens_it_is_unreachable() -> None:
    with servers.refuse() as address:
        assert (
            "refused" in is_(light(WeaviateCheck(url=f"http://{address}")), Verdict.FAILING, Cause.UNREACHABLE).summary
        )
