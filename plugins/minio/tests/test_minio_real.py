"""The check `minio` against the real MinIO: each way it can be unwell is told from the others, and from being well."""

from __future__ import annotations

import datetime
import http.client
import io
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
import urllib3
from minio import Minio as Client
from minio.credentials.providers import StaticProvider
from minio.error import S3Error
from minio.minioadmin import MinioAdmin
from tests.servers import until
from tests.stack.asking import deep, left_by_deep_failures, left_by_light_failures, light, silence
from tests.stack.minio import USER, Minio
from tests.stack.small_disk import fill, small_disk
from tests.stack.starved import starve

from selfheal import Cause, CheckResult, Secret, Verdict
from selfheal.shell.lanes import KEPT_CHECKS
from selfheal.testing import servers
from selfheal.testing.probing import Turned
from selfheal_minio.checks import MinioCheck

pytestmark = [pytest.mark.server, pytest.mark.real_time]

BUCKET = "things"
WRONG = "hunter2-canary-51d2e8"


def is_(result: CheckResult, verdict: Verdict, cause: Cause | None) -> CheckResult:
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert WRONG not in repr(result)
    return result


def client(minio: Minio) -> Client:
    at_once = urllib3.PoolManager(retries=False, timeout=10.0)
    address = f"127.0.0.1:{minio.port}"
    return Client(endpoint=address, access_key=USER, secret_key=minio.password, secure=False, http_client=at_once)


def check(minio: Minio, **options: Any) -> MinioCheck:
    """Return the deep check with the keys of the owner, or others."""
    keys = {"access_key": USER, "secret_key": Secret(minio.password), "bucket": BUCKET}
    return MinioCheck(**{"url": minio.url, **keys, **options})


def info(minio: Minio) -> str:
    """Return what MinIO tells its owner about its drives."""
    return admin(minio).info()


def admin(minio: Minio) -> MinioAdmin:
    keys = StaticProvider(USER, minio.password)
    return MinioAdmin(endpoint=f"127.0.0.1:{minio.port}", credentials=keys, secure=False)


@contextmanager
def running(folder: Path, drives: int = 1) -> Iterator[Minio]:
    one = Minio(folder, drives=drives)
    try:
        yield one
    finally:
        one.kill()


@pytest.fixture
def minio(tmp_path: Path) -> Iterator[Minio]:
    with running(tmp_path) as one:
        yield one


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Minio]:
    """One process with four drives, of which three must be there to write and two to read."""
    with running(tmp_path, 4) as one:
        one.start()
        client(one).make_bucket(bucket_name=BUCKET)
        yield one


@pytest.fixture
def turned() -> Iterator[Turned]:
    turned = Turned()
    yield turned
    turned.runner.close()


# -- well ---------------------------------------------------------------------------------------------------------


def test_a_healthy_one_passes_and_says_its_quorum(minio: Minio) -> None:
    minio.start()
    result = is_(light(MinioCheck(url=minio.url)), Verdict.PASSING, None)
    assert result.details == {"writable": True, "write_quorum": 1}


def test_one_kept_connection_carries_one_check_after_another(minio: Minio, turned: Turned) -> None:
    minio.start()
    lane = turned.runner.lane(MinioCheck(url=minio.url), 2.0, None)
    for _ in range(5):
        is_(turned.run(lane), Verdict.PASSING, None)
    assert turned.runner.connections == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_deep_check_knows_every_drive(four: Minio, backend: str) -> None:
    result = is_(deep(check(four), backend=backend), Verdict.PASSING, None)
    assert (result.details["drives"], result.details["drives_ok"], result.details["write_quorum"]) == (4, 4, 3)
    assert (result.details["backend"], result.details["nodes"]) == ("Erasure", 1)
    assert result.details["version"]


def test_a_deep_check_without_keys_asks_for_health_only(minio: Minio) -> None:
    minio.start()
    assert deep(MinioCheck(url=minio.url)).details == {"writable": True, "write_quorum": 1}


# -- the process ----------------------------------------------------------------------------------------------------


def test_where_nobody_listens_it_is_unreachable(minio: Minio) -> None:
    assert "refused" in is_(light(MinioCheck(url=minio.url)), Verdict.FAILING, Cause.UNREACHABLE).summary
    is_(deep(check(minio)), Verdict.FAILING, Cause.UNREACHABLE)


def test_a_killed_one_is_told_at_once_by_its_kept_connection(minio: Minio, turned: Turned) -> None:
    minio.start()
    lane = turned.runner.lane(MinioCheck(url=minio.url), 2.0, None)
    is_(turned.run(lane), Verdict.PASSING, None)
    minio.kill()
    began = time.monotonic()
    turned.turn(lambda: turned.lost == [lane])
    assert time.monotonic() - began < 0.5
    is_(turned.run(lane), Verdict.FAILING, Cause.UNREACHABLE)
    minio.start()
    is_(turned.run(lane), Verdict.PASSING, None)


def test_a_frozen_one_is_a_timeout_kept_new_and_deep(minio: Minio, turned: Turned) -> None:
    minio.start()
    lane = turned.runner.lane(MinioCheck(url=minio.url), 0.5, None)
    is_(turned.run(lane), Verdict.PASSING, None)
    minio.freeze()
    is_(turned.run(lane), Verdict.FAILING, Cause.TIMEOUT)
    is_(turned.run(MinioCheck(url=minio.url), 0.5), Verdict.FAILING, Cause.TIMEOUT)
    is_(deep(check(minio), 0.5), Verdict.FAILING, Cause.TIMEOUT)
    minio.thaw()
    is_(turned.run(lane), Verdict.PASSING, None)


def test_one_without_a_descriptor_left_takes_nobody_and_within_ten_checks_that_is_seen(
    minio: Minio, turned: Turned
) -> None:
    minio.start()
    one = MinioCheck(url=minio.url)
    lane = turned.runner.lane(one, 0.5, None)
    is_(turned.run(lane), Verdict.PASSING, None)
    starve(minio.pid, minio.port)
    is_(light(one, 0.5), Verdict.FAILING, Cause.TIMEOUT)
    seen = [turned.run(lane).cause for _ in range(KEPT_CHECKS)]
    assert (seen[-1], set(seen[:-1])) == (Cause.TIMEOUT, {None})


def test_while_a_large_object_is_loaded_all_is_well(minio: Minio) -> None:
    minio.start()
    client(minio).make_bucket(bucket_name=BUCKET)
    size = 200 * 2**20
    with ThreadPoolExecutor(1) as pool, Path("/dev/zero").open("rb") as zeros:
        load = pool.submit(client(minio).put_object, BUCKET, "large", zeros, size)
        while not load.done():
            is_(light(check(minio)), Verdict.PASSING, None)
        load.result()
    assert client(minio).stat_object(bucket_name=BUCKET, object_name="large").size == size
    is_(deep(check(minio)), Verdict.PASSING, None)


def test_a_start_shows_nothing_but_unreachable_starting_and_passing(minio: Minio, turned: Turned) -> None:
    seen = [turned.run(MinioCheck(url=minio.url)).cause]
    minio.begin()
    end = time.monotonic() + 15.0
    while seen[-1] is not None and time.monotonic() < end:
        seen.append(turned.run(MinioCheck(url=minio.url)).cause)
    assert seen[0] is Cause.UNREACHABLE
    assert seen[-1] is None
    assert set(seen) <= {Cause.UNREACHABLE, Cause.STARTING, None}


def test_a_node_that_waits_for_the_other_is_starting_and_without_it_later_may_only_be_read(tmp_path: Path) -> None:
    """Two nodes with two drives each: a start needs three drives, and so does a write."""
    one, other = Minio(tmp_path / "one", drives=2), Minio(tmp_path / "other", drives=2)
    drives = [f"{node.url}{drive}" for node in (one, other) for drive in node.drives]
    for node in (one, other):
        for drive in node.drives:
            drive.mkdir(parents=True)
        node.endpoints = drives
    try:
        one.begin()
        until(lambda: one.ask("/minio/health/live")[1].get("x-minio-server-status") == "offline", "it waits", 30.0)
        result = is_(light(MinioCheck(url=one.url)), Verdict.FAILING, Cause.STARTING)
        assert result.details == {"server_status": "offline"}
        is_(deep(check(one)), Verdict.FAILING, Cause.STARTING)
        other.begin()
        until(lambda: one.ask("/minio/health/cluster")[0] == 200, "the two are one", 30.0)
        client(one).make_bucket(bucket_name=BUCKET)
        until(lambda: deep(check(one)).verdict is Verdict.PASSING, "both nodes are known to be online", 30.0)
        assert deep(check(one)).details["nodes"] == 2
        other.kill()
        until(lambda: one.ask("/minio/health/cluster")[0] == 503, "the other is missed", 30.0)
        is_(light(MinioCheck(url=one.url)), Verdict.WARNING, Cause.READ_ONLY)
    finally:
        one.kill()
        other.kill()


# -- drives ---------------------------------------------------------------------------------------------------------


def test_of_four_drives_one_lost_degrades_two_make_it_read_only_and_three_end_it(four: Minio) -> None:
    def lose(number: int) -> None:
        four.drives[number].rename(four.folder / f"lost{number}")  # at once, also while MinIO writes to it
        four.drives[number].touch()  # or MinIO makes it anew within a minute, and heals it

    lose(0)
    until(lambda: '"state":"ok"' in info(four) and info(four).count('"state":"ok"') == 3, "MinIO misses a drive")
    assert four.ask("/minio/health/cluster")[0] == 200
    is_(light(MinioCheck(url=four.url)), Verdict.PASSING, None)
    result = is_(deep(check(four)), Verdict.WARNING, Cause.DEGRADED_CLUSTER)
    assert str(four.drives[0]) in result.summary
    assert result.details["drives_ok"] == 3

    lose(1)
    until(lambda: four.ask("/minio/health/cluster")[0] == 503, "MinIO refuses writes")
    assert four.ask("/minio/health/cluster/read")[0] == 200
    with pytest.raises(S3Error):
        client(four).put_object(bucket_name=BUCKET, object_name="one", data=io.BytesIO(b"x"), length=1)
    result = is_(light(MinioCheck(url=four.url)), Verdict.WARNING, Cause.READ_ONLY)
    assert result.details == {"writable": False, "write_quorum": 3, "readable": True, "read_quorum": 2}
    is_(deep(check(four)), Verdict.WARNING, Cause.READ_ONLY)

    lose(2)
    until(lambda: four.ask("/minio/health/cluster/read")[0] == 503, "MinIO refuses reads")
    assert four.ask("/minio/health/live")[0] == 200
    result = is_(light(MinioCheck(url=four.url)), Verdict.FAILING, Cause.DEGRADED_CLUSTER)
    assert result.details["readable"] is False


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Minio]:
    """One drive, a tmpfs of 64 MiB."""
    with small_disk(tmp_path / "drive1", 64 * 1024, "minio"), running(tmp_path) as one:
        one.start()
        client(one).make_bucket(bucket_name=BUCKET)
        yield one


def test_a_full_drive_is_full_and_its_health_pages_do_not_know(small: Minio) -> None:
    is_(deep(check(small)), Verdict.PASSING, None)
    room = fill(small.drives[0])

    def refused() -> bool:
        try:
            client(small).put_object(bucket_name=BUCKET, object_name="one", data=io.BytesIO(b"x" * 9), length=9)
        except S3Error as problem:
            return problem.code == "XMinioStorageFull"
        return False

    until(refused, "MinIO says that it is full")
    assert small.ask("/minio/health/cluster")[0] == 200
    is_(light(MinioCheck(url=small.url)), Verdict.PASSING, None)
    result = until(lambda: (one := deep(check(small))).verdict is Verdict.WARNING and one, "a deep check knows")
    assert result.cause is Cause.FULL
    assert result.details["least_free"] == 0.0
    room.unlink()
    until(lambda: not refused(), "MinIO goes on by itself when there is room")
    until(lambda: deep(check(small)).verdict is Verdict.PASSING, "a deep check knows that too")


# -- keys and buckets -----------------------------------------------------------------------------------------------


def test_s63_a_wrong_key_is_auth_and_is_not_shown(minio: Minio) -> None:
    minio.start()
    client(minio).make_bucket(bucket_name=BUCKET)
    result = is_(deep(check(minio, secret_key=Secret(WRONG))), Verdict.FAILING, Cause.AUTH)
    assert "SignatureDoesNotMatch" in result.summary
    result = is_(deep(check(minio, access_key=Secret(WRONG))), Verdict.FAILING, Cause.AUTH)
    assert "InvalidAccessKeyId" in result.summary
    assert WRONG not in repr(check(minio, secret_key=Secret(WRONG)))


def test_keys_without_a_bucket_are_asked_for_themselves(minio: Minio) -> None:
    minio.start()
    one = check(minio, bucket=None, url=Secret(minio.url.removeprefix("http://"), source="env MINIO_ENDPOINT"))
    assert "drives_ok" in is_(deep(one), Verdict.PASSING, None).details
    for wrong in (attrs.evolve(one, secret_key=Secret(WRONG)), attrs.evolve(one, access_key=Secret(WRONG))):
        result = is_(deep(wrong), Verdict.FAILING, Cause.AUTH)
        assert "does not take our key (status 403" in result.summary
    admin(minio).user_add("watcher", "sesame-the-first")
    blind = attrs.evolve(one, access_key="watcher", secret_key=Secret("sesame-the-first"))
    assert "s3:ListAllMyBuckets" in str(is_(deep(blind), Verdict.PASSING, None).details["buckets"])


def test_a_key_changed_while_it_runs_is_auth_until_the_new_one_is_read(minio: Minio) -> None:
    minio.start()
    client(minio).make_bucket(bucket_name=BUCKET)
    admin(minio).user_add("watcher", "sesame-the-first")
    admin(minio).attach_policy(policies=["readwrite"], user="watcher")
    held = ["sesame-the-first"]
    one = check(minio, access_key="watcher", secret_key=Secret(lambda: held[0], source="env KEY"))
    result = is_(deep(one), Verdict.PASSING, None)
    assert result.details["drives"] == "not shown to this key (admin:ServerInfo)"
    admin(minio).user_add("watcher", "sesame-the-other")
    is_(deep(one), Verdict.FAILING, Cause.AUTH)
    held[0] = "sesame-the-other"
    is_(deep(one), Verdict.PASSING, None)


def test_a_key_without_the_right_to_list_the_bucket_is_auth(minio: Minio) -> None:
    """MinIO's own policy `readonly` is such a one."""
    minio.start()
    client(minio).make_bucket(bucket_name=BUCKET)
    admin(minio).user_add("watcher", "sesame-the-first")
    admin(minio).attach_policy(policies=["readonly"], user="watcher")
    one = check(minio, access_key="watcher", secret_key=Secret("sesame-the-first"))
    assert "AccessDenied" in is_(deep(one), Verdict.FAILING, Cause.AUTH).summary


def test_a_key_that_cannot_be_read_says_nothing_about_minio(minio: Minio) -> None:
    minio.start()

    def absent() -> str:
        raise FileNotFoundError("/run/secrets/key")

    one = check(minio, secret_key=Secret(absent, source="file /run/secrets/key"))
    is_(deep(one), Verdict.INCONCLUSIVE, Cause.CONFIG)


def test_a_bucket_that_is_not_there_is_config(minio: Minio) -> None:
    minio.start()
    assert "NoSuchBucket" in is_(deep(check(minio)), Verdict.FAILING, Cause.CONFIG).summary


def test_more_requests_than_it_takes_is_overloaded(minio: Minio) -> None:
    minio.start(MINIO_API_REQUESTS_MAX="1")
    client(minio).make_bucket(bucket_name=BUCKET)
    url = client(minio).presigned_put_object(bucket_name=BUCKET, object_name="slow")
    with ExitStack() as crowd:

        def refuses() -> bool:
            """One that comes while another is still served is refused itself: so it is tried until one is let in."""
            one = crowd.enter_context(closing(http.client.HTTPConnection("127.0.0.1", minio.port, timeout=5.0)))
            one.putrequest("PUT", url.removeprefix(minio.url))
            one.putheader("Content-Length", "1000000")
            one.endheaders(b"the rest comes later")
            return minio.ask(f"/{BUCKET}")[0] == 429

        until(refuses, "MinIO refuses another request")
        result = is_(deep(check(minio)), Verdict.FAILING, Cause.OVERLOADED)
        assert "429" in result.summary
    until(lambda: deep(check(minio)).verdict is Verdict.PASSING, "the crowd has left")


# -- TLS --------------------------------------------------------------------------------------------------------------


def _certify(minio: Minio, authority: trustme.CA, days: float) -> Path:
    """Give MinIO a certificate that ends in so many days; return the authority to trust."""
    now = datetime.datetime.now(datetime.UTC)
    ends = now + datetime.timedelta(days=days)
    leaf = authority.issue_cert("127.0.0.1", not_before=now - datetime.timedelta(days=30), not_after=ends)
    folder = minio.folder / "certs"
    folder.mkdir(exist_ok=True)
    leaf.cert_chain_pems[0].write_to_path(str(folder / "public.crt"))
    leaf.private_key_pem.write_to_path(str(folder / "private.key"))
    pem = minio.folder / "authority.pem"
    authority.cert_pem.write_to_path(str(pem))
    return pem


@pytest.mark.parametrize(
    ("days", "verdict", "cause"),
    [
        (300.0, Verdict.PASSING, None),
        (3.0, Verdict.WARNING, Cause.CONFIG),
        (-1.0, Verdict.FAILING, Cause.CONFIG),
    ],
)
def test_a_certificate_is_good_or_ends_soon_or_has_ended(
    minio: Minio, days: float, verdict: Verdict, cause: Cause | None
) -> None:
    authority = _certify(minio, trustme.CA(), days)
    minio.begin()
    until(lambda: _listens(minio), "MinIO listens")
    one = MinioCheck(url=minio.url.replace("http:", "https:"), authority=authority)
    until(lambda: light(one).cause not in (Cause.STARTING, Cause.UNREACHABLE), "MinIO has started")
    is_(light(one), verdict, cause)
    is_(deep(one), verdict, cause)
    is_(light(MinioCheck(url=one.url)), Verdict.FAILING, Cause.CONFIG)  # an authority that we do not trust


def _listens(minio: Minio) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", minio.port)) == 0


# -- what is left behind --------------------------------------------------------------------------------------------


def test_s64_a_thousand_failing_checks_leave_nothing_open() -> None:
    with silence() as port:
        one = MinioCheck(url=f"http://127.0.0.1:{port}", access_key=USER, secret_key=Secret(WRONG), bucket=BUCKET)
        assert left_by_light_failures(one) == {}
        assert left_by_deep_failures(one) == {}


@pytest.mark.parametrize("fault", [servers.black_hole, servers.hang, lambda: servers.drip(b"HTTP/1.1 200 OK\r\n" * 99)])
def test_silence_in_every_form_is_a_timeout(fault: Any) -> None:
    with fault() as address:
        one = MinioCheck(url=f"http://{address}", access_key=USER, secret_key=Secret(WRONG), bucket=BUCKET)
        is_(light(one, 0.2), Verdict.FAILING, Cause.TIMEOUT)
        is_(deep(one, 0.2), Verdict.FAILING, Cause.TIMEOUT)
