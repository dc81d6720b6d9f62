"""The light check `redis` against the real server: each way it can be unwell, first proven by the server's own word."""

from __future__ import annotations

import datetime
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trustme
from tests.servers import free_port, until
from tests.stack.redis import RedisClient, RedisSentinel, RedisServer
from tests.stack.small_disk import small_disk
from tests.stack.starved import starve

from selfheal.builtin.wire_checks import REDIS_CAUSES
from selfheal.core.model import Cause, CheckResult, Verdict
from selfheal.secret import Secret
from selfheal.shell.lanes import KEPT_CHECKS
from selfheal.testing import servers
from selfheal.testing.probing import Turned
from selfheal_redis.check import RedisCheck
from selfheal_redis.judge import CAUSES

pytestmark = [pytest.mark.server, pytest.mark.real_time]

WRONG = "hunter2-canary-51d2e8"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "replica") as server:
        yield server


@pytest.fixture
def turned() -> Iterator[Turned]:
    turned = Turned()
    yield turned
    turned.runner.close()


def seen(turned: Turned, check: RedisCheck, verdict: Verdict, cause: Cause | None, timeout: float = 2.0) -> CheckResult:
    """Run a check that must find this; what it says must not be the password."""
    result = turned.run(check, timeout)
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert WRONG not in repr(result)
    return result


def failing(turned: Turned, check: RedisCheck, cause: Cause, timeout: float = 2.0) -> str:
    return seen(turned, check, Verdict.FAILING, cause, timeout).summary


def warned(turned: Turned, check: RedisCheck, cause: Cause) -> str:
    return seen(turned, check, Verdict.WARNING, cause).summary


def passing(turned: Turned, check: RedisCheck) -> CheckResult:
    return seen(turned, check, Verdict.PASSING, None)


# -- well ------------------------------------------------------------------------------------------------------------


def test_a_healthy_one_passes_over_tcp_and_a_unix_socket_and_says_what_is_worth_seeing(
    redis: RedisServer, turned: Turned
) -> None:
    path = redis.folder / "redis.sock"
    redis.start("--unixsocket", str(path), "--maxmemory", "64mb")
    redis.ask("SET", "a", "1")
    redis.ask("SET", "b", "1", "EX", "100")
    result = passing(turned, RedisCheck(url=redis.url))
    assert passing(turned, RedisCheck(url=f"unix://{path}?db=1")).instance == result.instance
    said = redis.info()
    assert result.instance == said["run_id"]
    details = dict(result.details)
    assert details["role"] == "primary"
    assert details["version"] == said["redis_version"]
    assert details["memory_limit_bytes"] == 64 * 2**20
    assert (details["keys"], details["keys_expiring"]) == (2, 1)
    assert details["clients_limit"] == int(said["maxclients"])


def test_a_kept_connection_carries_one_check_after_another_under_our_name(redis: RedisServer, turned: Turned) -> None:
    redis.start()
    lane = turned.runner.lane(RedisCheck(url=redis.url), 2.0, None)
    for _ in range(5):
        assert turned.run(lane).verdict is Verdict.PASSING
    assert turned.runner.connections == 1
    assert "name=selfheal" in redis.ask("CLIENT", "LIST")


def test_after_a_renewal_the_connection_is_another_one(redis: RedisServer, turned: Turned) -> None:
    redis.start()
    check = RedisCheck(url=redis.url)
    lane = turned.runner.lane(check, 2.0, None)

    def ours() -> str:
        assert turned.run(lane).verdict is Verdict.PASSING
        listed: list[str] = [line for line in redis.ask("CLIENT", "LIST").splitlines() if "name=selfheal" in line]
        return listed[0].partition(" ")[0] if listed else ""

    first = ours()
    assert ours() == first != ""
    check.renew()
    assert turned.run(lane).verdict is Verdict.PASSING
    assert ours() not in ("", first)


# -- who may ask -----------------------------------------------------------------------------------------------------


def test_a_password_is_given_in_the_url_or_as_a_secret_and_to_a_user(redis: RedisServer, turned: Turned) -> None:
    rights = ("-@all", "+ping", "+role", "+info", "+client|setname")
    redis.start("--requirepass", "sesame", "--user", "watcher", "on", ">sesame", *rights)
    passing(turned, RedisCheck(url=redis.url.replace("//", "//:sesame@")))
    passing(turned, RedisCheck(url=redis.url, password=Secret("sesame")))
    passing(turned, RedisCheck(url=redis.url.replace("//", "//watcher:sesame@")))
    passing(turned, RedisCheck(url=redis.url, username="watcher", password=Secret("sesame")))


def test_a_missing_or_wrong_password_is_no_outage_but_auth(redis: RedisServer, turned: Turned) -> None:
    redis.start("--requirepass", "sesame")
    assert redis.ask("PING").startswith("-NOAUTH")
    assert "NOAUTH" in failing(turned, RedisCheck(url=redis.url), Cause.AUTH)
    assert "WRONGPASS" in failing(turned, RedisCheck(url=redis.url, password=Secret(WRONG)), Cause.AUTH)


def test_a_password_for_a_server_without_one_is_auth(redis: RedisServer, turned: Turned) -> None:
    redis.start()
    assert redis.ask("PING") == "PONG"
    failing(turned, RedisCheck(url=redis.url, password=Secret(WRONG)), Cause.AUTH)


def test_a_password_changed_while_running_is_heard_of_on_the_kept_connection(
    redis: RedisServer, turned: Turned
) -> None:
    redis.start("--requirepass", "sesame")
    lane = turned.runner.lane(RedisCheck(url=redis.url, password=Secret("sesame")), 2.0, None)
    assert turned.run(lane).verdict is Verdict.PASSING
    with RedisClient(redis) as logged_in:
        logged_in.ask("AUTH", "sesame")
        assert logged_in.ask("CONFIG", "SET", "requirepass", "open") == "OK"
        assert logged_in.ask("PING") == "PONG"  # those who are in stay in
    result = turned.run(lane)
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.AUTH)


def test_a_first_password_set_while_running_is_heard_of_on_the_kept_connection(
    redis: RedisServer, turned: Turned
) -> None:
    """Who is in stays in; only who asks as a new client does hears that no other one comes in."""
    redis.start()
    lane = turned.runner.lane(RedisCheck(url=redis.url), 2.0, None)
    with RedisClient(redis) as inside:
        assert inside.ask("PING") == "PONG"
        for _ in range(3):
            assert turned.run(lane).verdict is Verdict.PASSING
        assert "name=selfheal" in inside.ask("CLIENT", "LIST")
        assert inside.ask("CONFIG", "SET", "requirepass", "open") == "OK"
        assert inside.ask("PING") == "PONG"
        assert redis.ask("PING").startswith("-NOAUTH")
        result = turned.run(lane)
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.AUTH)
    assert "no password" in result.summary
    assert turned.runner.connections == 0


def test_one_that_cannot_make_a_connection_as_new_is_seen_through_after_ten_checks(
    redis: RedisServer, turned: Turned
) -> None:
    redis.start("--rename-command", "RESET", "")
    assert "unknown command" in redis.ask("RESET")
    lane = turned.runner.lane(RedisCheck(url=redis.url), 2.0, None)
    with RedisClient(redis) as inside:
        assert turned.run(lane).verdict is Verdict.PASSING
        assert inside.ask("CONFIG", "SET", "requirepass", "open") == "OK"
        seen = [turned.run(lane).cause for _ in range(KEPT_CHECKS)]
    assert (seen[-1], set(seen[:-1])) == (Cause.AUTH, {None})


def test_one_without_a_descriptor_left_takes_nobody_and_within_ten_checks_that_is_seen(
    redis: RedisServer, turned: Turned
) -> None:
    redis.start()
    lane = turned.runner.lane(RedisCheck(url=redis.url), 0.5, None)
    assert turned.run(lane).verdict is Verdict.PASSING
    starve(redis.pid, redis.port, b"PING\r\n")
    failing(turned, RedisCheck(url=redis.url), Cause.TIMEOUT, 0.5)
    seen = [turned.run(lane).cause for _ in range(KEPT_CHECKS)]
    assert (seen[-1], set(seen[:-1])) == (Cause.TIMEOUT, {None})


def test_a_user_without_the_right_to_ask_is_told_the_right_to_add(redis: RedisServer, turned: Turned) -> None:
    redis.start("--user", "mute", "on", ">sesame", "-@all", "--user", "half", "on", ">sesame", "-@all", "+ping")
    mute = RedisCheck(url=redis.url, username="mute", password=Secret("sesame"))
    assert "+info" in failing(turned, mute, Cause.AUTH)
    half = warned(turned, attrs.evolve(mute, username="half"), Cause.AUTH)
    assert "INFO" in half
    assert "+info" in half


def test_a_secret_that_cannot_be_read_concludes_nothing(redis: RedisServer, turned: Turned) -> None:
    redis.start()

    def missing() -> str:
        raise FileNotFoundError("/run/secrets/redis")

    seen(turned, RedisCheck(url=redis.url, password=Secret(missing)), Verdict.INCONCLUSIVE, Cause.CONFIG)


# -- starting, hanging, dead -----------------------------------------------------------------------------------------


def test_one_that_loads_its_data_is_starting_and_says_how_long_it_takes(redis: RedisServer, turned: Turned) -> None:
    """Restarting it would only begin the loading anew."""
    redis.start()
    script = "for i = 1, 1500 do redis.call('SET', 'key' .. i, string.rep('x', 100)) end"
    assert redis.ask("EVAL", script, "0") is None
    assert redis.ask("SAVE") == "OK"
    redis.kill()
    redis.begin("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")  # a millisecond each
    until(lambda: str(redis.ask("PING")).startswith("-LOADING"), "Redis loads")
    check = RedisCheck(url=redis.url)
    result = seen(turned, check, Verdict.FAILING, Cause.STARTING)
    assert "% is read" in result.summary
    assert isinstance(result.details["loading_eta_seconds"], int)
    until(lambda: turned.run(check).verdict is Verdict.PASSING, "it has loaded its data", 30.0)


def test_a_stopped_process_accepts_and_says_nothing_which_is_a_timeout(redis: RedisServer, turned: Turned) -> None:
    redis.start()
    lane = turned.runner.lane(RedisCheck(url=redis.url), 0.5, None)
    assert turned.run(lane).verdict is Verdict.PASSING
    redis.freeze()
    assert redis.ask("PING", timeout=0.2) == ""
    for check in (lane, RedisCheck(url=redis.url)):  # on the kept connection, and on a new one
        began = time.monotonic()
        result = turned.run(check, 0.5)
        assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.TIMEOUT)
        assert time.monotonic() - began < 1.5
    redis.thaw()
    assert turned.run(lane).verdict is Verdict.PASSING


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_process_is_told_at_once_by_its_kept_connection(
    redis: RedisServer, turned: Turned, number: int
) -> None:
    redis.start()
    lane = turned.runner.lane(RedisCheck(url=redis.url), 2.0, None)
    assert turned.run(lane).verdict is Verdict.PASSING
    (redis.kill if number == signal.SIGKILL else redis.stop)()
    began = time.monotonic()
    turned.turn(lambda: turned.lost == [lane])
    assert time.monotonic() - began < 0.5
    result = turned.run(lane)
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.UNREACHABLE)
    redis.start()
    assert turned.run(lane).verdict is Verdict.PASSING  # another incarnation at the same address


def test_what_an_application_tells_its_own_driver_is_passed_over_in_a_variable_only() -> None:
    said = "redis://:sesame@cache/2?decode_responses=true&max_connections=50&socket_timeout=5"
    address = RedisCheck(url=Secret(f" {said}\n", source="env REDIS_URL")).address()
    assert (address.host, address.database, address.password) == ("cache", 2, "sesame")
    for wrong in ("rediss://cache?ssl_cert_reqs=none", "redis://cache?dbb=1"):
        with pytest.raises(ValueError, match=r"after the \?"):
            RedisCheck(url=Secret(wrong)).target()
    with pytest.raises(ValueError, match="only db=NUMBER"):
        RedisCheck(url=said)


def test_s63_and_s38_the_address_is_read_once_and_never_shown_with_its_password() -> None:
    check = RedisCheck(url=f"redis://user:{WRONG}@127.0.0.1:1/3", password=Secret(WRONG))
    assert WRONG not in repr(check)
    address = check.address()
    assert WRONG not in repr(address)
    assert (address.host, address.port, address.database, address.user) == ("127.0.0.1", 1, 3, "user")


# -- overloaded ------------------------------------------------------------------------------------------------------


def test_one_without_a_place_for_another_client_is_overloaded(redis: RedisServer, turned: Turned) -> None:
    redis.start("--maxclients", "4")
    crowd = redis.crowd(4)
    assert "max number of clients" in redis.ask("PING")
    for check in (RedisCheck(url=redis.url), RedisCheck(url=redis.url, password=Secret(WRONG))):
        assert "maxclients" in failing(turned, check, Cause.OVERLOADED)
    for client in crowd:
        client.close()
    until(lambda: turned.run(RedisCheck(url=redis.url)).verdict is Verdict.PASSING, "the crowd has left")


def test_who_is_in_already_sees_that_nobody_else_comes_in(redis: RedisServer, turned: Turned) -> None:
    redis.start("--maxclients", "10")
    lane = turned.runner.lane(RedisCheck(url=redis.url), 2.0, None)
    assert turned.run(lane).verdict is Verdict.PASSING
    crowd = redis.crowd(8)
    nearly = turned.run(lane)
    assert (nearly.verdict, nearly.cause) == (Verdict.WARNING, Cause.OVERLOADED)
    assert "nearly" in nearly.summary
    crowd += redis.crowd(1)
    assert "max number of clients" in redis.ask("PING")
    full = turned.run(lane)
    assert (full.verdict, full.cause) == (Verdict.WARNING, Cause.OVERLOADED)
    assert "another one is refused" in full.summary
    assert "max number of clients" in redis.ask("PING")
    for client in crowd:
        client.close()
    until(lambda: redis.ask("PING") == "PONG" and int(redis.info()["connected_clients"]) < 5, "the crowd has left")
    later = turned.run(lane)
    assert (later.verdict, later.cause) == (Verdict.WARNING, Cause.OVERLOADED)
    assert "were refused since the last check" in later.summary
    until(lambda: turned.run(lane).verdict is Verdict.PASSING, "the refusals lie before the last check")


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru"])
def test_a_full_memory_of_which_nothing_can_be_evicted_is_overloaded(
    redis: RedisServer, turned: Turned, policy: str
) -> None:
    redis.start("--maxmemory-policy", policy)
    assert redis.ask("SET", "big", "x" * 4_000_000) == "OK"
    assert redis.ask("CONFIG", "SET", "maxmemory", "3mb") == "OK"
    assert redis.ask("PING") == "PONG"  # PING is blind
    assert redis.ask("SET", "more", "x").startswith("-OOM")
    assert "refuses writes" in warned(turned, RedisCheck(url=redis.url), Cause.OVERLOADED)
    used = int(redis.info()["used_memory"])
    redis.ask("CONFIG", "SET", "maxmemory", str(int(used * 1.05)))
    assert "nearly full" in warned(turned, RedisCheck(url=redis.url), Cause.OVERLOADED)
    passing(turned, RedisCheck(url=redis.url, memory_warn=1.0))


def test_a_full_memory_that_is_a_cache_is_as_it_should_be(redis: RedisServer, turned: Turned) -> None:
    redis.start("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")
    with RedisClient(redis) as client:
        for place in range(300):
            assert client.ask("SET", f"key{place}", "x" * 20_000) == "OK"
    assert int(redis.info()["evicted_keys"]) > 0
    passing(turned, RedisCheck(url=redis.url))


def test_a_script_that_does_not_end_is_overloaded_and_its_cure_is_named(redis: RedisServer, turned: Turned) -> None:
    redis.start("--lua-time-limit", "50")
    runs = threading.Thread(target=redis.ask, args=("EVAL", "while true do end", "0"), kwargs={"timeout": 20.0})
    runs.start()
    until(lambda: str(redis.ask("PING")).startswith("-BUSY"), "the script runs too long")
    assert "SCRIPT KILL" in failing(turned, RedisCheck(url=redis.url), Cause.OVERLOADED)
    assert redis.ask("SCRIPT", "KILL") == "OK"
    runs.join(10.0)
    passing(turned, RedisCheck(url=redis.url))


def test_a_function_that_does_not_end_has_another_cure(redis: RedisServer, turned: Turned) -> None:
    redis.start("--lua-time-limit", "50")
    code = "#!lua name=lib\nredis.register_function('forever', function() while true do end end)"
    assert redis.ask("FUNCTION", "LOAD", code) == "lib"
    runs = threading.Thread(target=redis.ask, args=("FCALL", "forever", "0"), kwargs={"timeout": 20.0})
    runs.start()
    until(lambda: str(redis.ask("PING")).startswith("-BUSY"), "the function runs too long")
    assert "FUNCTION KILL" in failing(turned, RedisCheck(url=redis.url), Cause.OVERLOADED)
    assert redis.ask("FUNCTION", "KILL") == "OK"
    runs.join(10.0)


# -- persistence -----------------------------------------------------------------------------------------------------


def test_a_save_that_failed_is_a_full_disk_and_no_reason_to_restart(redis: RedisServer, turned: Turned) -> None:
    redis.start("--save", "3600 1")
    assert redis.ask("SET", "a", "1") == "OK"
    shutil.rmtree(redis.folder)  # its working directory: a place where nothing can be written, even by root
    redis.ask("BGSAVE")
    redis.becomes(lambda info: info.get("rdb_last_bgsave_status") == "err", "the save has failed")
    assert redis.ask("PING").startswith("-MISCONF")
    text = warned(turned, RedisCheck(url=redis.url), Cause.FULL)
    assert "refuses writes" in text
    assert "1 changes are in memory only" in text
    redis.ask("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
    assert redis.ask("PING") == "PONG"
    assert "save failed" in warned(turned, RedisCheck(url=redis.url), Cause.FULL)


def test_a_disk_that_filled_up_under_the_append_only_file(tmp_path: Path, turned: Turned) -> None:
    with small_disk(tmp_path / "disk", 1024, "redis") as disk, RedisServer(disk / "redis") as redis:
        redis.start("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
        with RedisClient(redis) as client:
            until(lambda: str(client.ask("SET", "k", "x" * 200_000)).startswith("-MISCONF"), "writes are refused")
        assert redis.info()["aof_last_write_status"] == "err"
        assert "append-only" in warned(turned, RedisCheck(url=redis.url), Cause.FULL)


# -- replication -----------------------------------------------------------------------------------------------------


def follow(replica: RedisServer, redis: RedisServer, *options: str) -> None:
    """Start a replica of `redis`, and wait until it has its data."""
    replica.start("--replicaof", "127.0.0.1", str(redis.port), "--repl-diskless-sync-delay", "0", *options)
    replica.becomes(lambda info: info.get("master_link_status") == "up", "the replica follows", 30.0)


def test_a_replica_passes_and_says_whom_it_follows(redis: RedisServer, replica: RedisServer, turned: Turned) -> None:
    redis.start("--repl-diskless-sync-delay", "0")
    follow(replica, redis)
    result = passing(turned, RedisCheck(url=replica.url, expect="replica"))
    assert result.details["role"] == "replica"
    assert result.details["primary"] == redis.address
    assert result.details["link"] == "up"
    redis.becomes(lambda info: "state=online" in info.get("slave0", ""), "the primary knows of it")
    result = passing(turned, RedisCheck(url=redis.url, expect="primary", replicas=1))
    assert result.details["replicas"] == 1
    assert isinstance(result.details["lag_bytes"], int)


def test_a_replica_where_a_primary_is_expected_is_read_only_and_the_other_way_round(
    redis: RedisServer, replica: RedisServer, turned: Turned
) -> None:
    redis.start("--repl-diskless-sync-delay", "0")
    follow(replica, redis)
    assert replica.ask("SET", "a", "1").startswith("-READONLY")
    assert redis.address in warned(turned, RedisCheck(url=replica.url, expect="primary"), Cause.READ_ONLY)
    warned(turned, RedisCheck(url=redis.url, expect="replica"), Cause.DEGRADED_CLUSTER)
    warned(turned, RedisCheck(url=redis.url, replicas=2), Cause.DEGRADED_CLUSTER)


def test_a_replica_without_its_primary_serves_what_grows_old_or_nothing(
    redis: RedisServer, replica: RedisServer, turned: Turned
) -> None:
    redis.start("--repl-diskless-sync-delay", "0")
    follow(replica, redis)
    redis.kill()
    replica.becomes(lambda info: info["master_link_status"] == "down", "the link is down")
    assert replica.ask("PING") == "PONG"
    assert "grows old" in warned(turned, RedisCheck(url=replica.url), Cause.DEGRADED_CLUSTER)
    replica.ask("CONFIG", "SET", "replica-serve-stale-data", "no")
    assert replica.ask("PING").startswith("-MASTERDOWN")
    assert "without its primary" in failing(turned, RedisCheck(url=replica.url), Cause.DEGRADED_CLUSTER)


def test_a_primary_that_falls_silent_is_told_by_its_replica_and_a_replica_by_its_primary(
    redis: RedisServer, replica: RedisServer, turned: Turned
) -> None:
    redis.start("--repl-diskless-sync-delay", "0")
    follow(replica, redis)
    redis.becomes(lambda info: "state=online" in info.get("slave0", ""), "the primary knows of it")
    redis.freeze()
    replica.becomes(lambda info: int(info["master_last_io_seconds_ago"]) > 1, "the primary is silent")
    check = RedisCheck(url=replica.url, lag_warn=1.0)
    assert "nothing heard" in warned(turned, check, Cause.DEGRADED_CLUSTER)
    redis.thaw()
    replica.freeze()
    redis.becomes(lambda info: "lag=2" in info["slave0"] or "lag=3" in info["slave0"], "the replica is silent")
    assert "1 of 1 replicas" in warned(turned, RedisCheck(url=redis.url, lag_warn=1.0), Cause.DEGRADED_CLUSTER)
    passing(turned, RedisCheck(url=redis.url))
    replica.thaw()


def test_a_sentinel_says_what_it_thinks_of_its_primaries(redis: RedisServer, tmp_path: Path, turned: Turned) -> None:
    redis.start()
    with RedisSentinel(tmp_path / "sentinel", redis) as sentinel:
        sentinel.start("sentinel down-after-milliseconds main 300")
        assert passing(turned, RedisCheck(url=sentinel.url)).details["role"] == "sentinel"
        warned(turned, RedisCheck(url=sentinel.url, expect="primary"), Cause.CONFIG)
        redis.kill()
        sentinel.becomes(lambda info: "status=ok" not in info["master0"], "the Sentinel has noticed")
        assert "main" in warned(turned, RedisCheck(url=sentinel.url), Cause.DEGRADED_CLUSTER)


# -- strange peers ---------------------------------------------------------------------------------------------------


def test_where_nobody_listens_it_is_unreachable(turned: Turned) -> None:
    failing(turned, RedisCheck(url=f"redis://127.0.0.1:{free_port()}"), Cause.UNREACHABLE)


def test_a_black_hole_and_one_that_drips_are_over_at_the_deadline(turned: Turned) -> None:
    with servers.black_hole() as hole, servers.drip(b"+OK\r\n+PONG\r\n" + b"+" * 5000, 0.05) as drip:
        for address in (hole, drip):
            began = time.monotonic()
            failing(turned, RedisCheck(url=f"redis://{address}"), Cause.TIMEOUT, 0.3)
            assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"*9999999\r\n*1\r\n*1\r\n*1\r\n*1\r\n"]
)
def test_what_is_no_redis_is_an_error_and_not_a_bug(turned: Turned, said: bytes) -> None:
    with servers.answer(said) as address:
        assert "not the answer of a Redis" in failing(turned, RedisCheck(url=f"redis://{address}"), Cause.ERROR)


def test_one_that_never_stops_is_cut_off(turned: Turned) -> None:
    def speak(client: socket.socket, stop: threading.Event) -> None:
        client.recv(4096)
        client.sendall(b"+OK\r\n+PONG\r\n*1\r\n+x\r\n$99999999\r\n")
        while not stop.is_set():
            client.sendall(b"x" * 65536)

    with servers.serve(speak) as address:
        assert "more than" in failing(turned, RedisCheck(url=f"redis://{address}"), Cause.ERROR)


# -- TLS -------------------------------------------------------------------------------------------------------------


def test_over_tls_a_real_one_passes_and_a_wrong_authority_is_config(tmp_path: Path, turned: Turned) -> None:
    authority, other = trustme.CA(), trustme.CA()
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=100)
    leaf = authority.issue_cert("127.0.0.1", "redis.example", not_after=ends)
    names = {"authority.pem": authority.cert_pem, "other.pem": other.cert_pem}
    names |= {"own.pem": leaf.private_key_and_cert_chain_pem}
    for name, pem in names.items():
        pem.write_to_path(str(tmp_path / name))
    own = str(tmp_path / "own.pem")
    port = free_port()
    with RedisServer(tmp_path / "redis") as redis:
        redis.start(
            *("--tls-port", str(port), "--tls-cert-file", own, "--tls-key-file", own),
            *("--tls-ca-cert-file", str(tmp_path / "authority.pem"), "--tls-auth-clients", "no"),
        )
        check = RedisCheck(url=f"rediss://127.0.0.1:{port}", authority=tmp_path / "authority.pem")
        passing(turned, check)
        passing(turned, attrs.evolve(check, server_name="redis.example"))
        failing(turned, attrs.evolve(check, authority=tmp_path / "other.pem"), Cause.CONFIG)
        failing(turned, attrs.evolve(check, server_name="else.example"), Cause.CONFIG)
        passing(turned, attrs.evolve(check, authority=None, verify=False))
        warned(turned, attrs.evolve(check, warn_before=200 * 86400.0), Cause.CONFIG)

        ends = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        late = authority.issue_cert("127.0.0.1", not_before=ends - datetime.timedelta(days=30), not_after=ends)
        late.private_key_and_cert_chain_pem.write_to_path(own)
        assert redis.ask("CONFIG", "SET", "tls-cert-file", own, "tls-key-file", own) == "OK"
        assert "expired" in failing(turned, check, Cause.CONFIG)


def test_a_certificate_that_has_ended_is_config(turned: Turned) -> None:
    with servers.tls_expired() as server:
        check = RedisCheck(url=f"rediss://{server.address}", authority=server.authority)
        assert "expired" in failing(turned, check, Cause.CONFIG)


def test_a_word_of_an_error_means_the_same_as_in_redis_ping() -> None:
    """The house's table comes with HTTP, which the plugin does without: so there are two, and they agree."""
    assert dict(CAUSES) == dict(REDIS_CAUSES)


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"url": "http://127.0.0.1"}, "redis://"),
        ({"url": "redis://:0"}, "host"),
        ({"url": f"redis://:{WRONG}/x@host"}, "host"),
        ({"url": f"redis://user:{WRONG}/x@host"}, "port"),
        ({"url": "redis://host/first"}, "database"),
        ({"url": "redis://host?timeout=3"}, "unknown"),
        ({"url": "redis://host", "expect": "master"}, "expect"),
        ({"url": "redis://host", "memory_warn": 90}, "share"),
        ({"url": "redis://host", "clients_warn": True}, "share"),
        ({"url": "redis://host", "lag_warn": 0.0}, "lag_warn"),
        ({"url": "redis://host", "verify": False}, "rediss://"),
        ({"url": "redis://host", "password": "text"}, "password"),
        ({"url": "redis://host", "write_key": ""}, "write_key"),
    ],
)
def test_nonsense_is_refused_with_a_word_about_it_and_no_password(options: dict[str, object], word: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        RedisCheck(**options)  # type: ignore[arg-type]  # that is the point
    assert word in str(caught.value)
    assert WRONG not in str(caught.value)
