"""Who may do what: every route by every kind of caller, and what a browser, a proxy or a stranger may not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from tests.servers import until
from tests.stack.starlette import MANY, PREFIX, Fleet, Listener, Served, api, serving

from selfheal.requests import Scope
from selfheal_starlette import Caller, limits, recovery_app
from selfheal_starlette.access import means_loopback
from selfheal_starlette.routes import ROUTES, Route
from selfheal_starlette.tokens import FILE, TokenFile

CALLERS = ("nobody", "bad", "expired", "revoked", "read", "operate", "operate on another", "admin")

BODIES: dict[str, dict[str, Any]] = {
    "pause": {"services": ["web"]},
    "resume": {"services": ["web"]},
    "maintenance": {"services": ["web"]},
    "silence": {"services": ["web"]},
    "lift": {"suppression": "none of that id"},
    "release": {"hold": "storm"},
}


@attrs.frozen
class Gate:
    """An API with tokens, and the headers of every kind of caller."""

    served: Served
    headers: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with api(tmp_path_factory.mktemp("fleet"), rates=MANY) as served:
        headers = {
            "nobody": {},
            "bad": {"Authorization": "Bearer selfheal_" + "x" * 43},
            "read": served.token("reader", "read"),
            "operate": served.token("operator", "operate"),
            "operate on another": served.token("mailman", "operate", ["mail"]),
            "admin": served.token("chief", "admin"),
            "expired": served.token("gone", "admin", expires=time.time() - 1.0),
            "revoked": served.token("fired", "admin"),
        }
        file = TokenFile(served.fleet.folder / FILE)
        (fired,) = [one for one in file.read() if one.name == "fired"]
        file.revoke(fired.id)
        until(lambda: served.get("/status", headers=headers["revoked"]).status_code == 401, "it is revoked")
        yield Gate(served, headers)


def declared(route: Route, caller: str) -> set[int]:
    """Return the statuses that the scope of a route allows for a caller; an empty set where it must be let through."""
    if route.scope is None:
        return {401} if caller in ("bad", "expired", "revoked") else set()
    if caller in ("nobody", "bad", "expired", "revoked"):
        return {401}
    has = {"read": Scope.READ, "operate": Scope.OPERATE, "operate on another": Scope.OPERATE, "admin": Scope.ADMIN}
    order = list(Scope)
    if order.index(has[caller]) < order.index(route.scope):
        return {403}
    if caller == "operate on another" and route.scope is Scope.OPERATE:
        return {403}
    return set()


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", ROUTES, ids=lambda one: one.name)
def test_every_route_lets_in_whom_its_scope_says(gate: Gate, route: Route, caller: str) -> None:
    path = route.path.replace("{service}", "web").replace("{number}", "1")
    url = f"{gate.served.base}{path}"
    body = BODIES.get(route.request, {}) if route.row is not None and route.row.act else None
    with gate.served.client.stream(route.method, url, headers=gate.headers[caller], json=body) as response:
        refused = declared(route, caller)
        if refused:
            assert response.status_code in refused, response.status_code
            if response.status_code == 401:
                assert response.headers["www-authenticate"].startswith("Bearer")
        else:
            assert response.status_code not in (401, 403, 405, 500), response.status_code
            if response.status_code == 404:
                response.read()
                assert response.json()["code"] == "not_found", response.text  # there is nothing to approve, say


def test_a_limit_on_services_holds_for_every_way_of_naming_them(gate: Gate) -> None:
    served, mailman = gate.served, gate.headers["operate on another"]
    for path, body, status in [
        ("/services/mail/disable", {}, 200),
        ("/services/mail/enable", {}, 200),
        ("/services/web/disable", {}, 403),
        ("/services/web/disable", {"service_name": "web"}, 403),
        ("/pause", {"services": ["mail"], "duration": 1}, 200),
        ("/pause", {"services": ["mail", "web"]}, 403),
        ("/pause", {"everything": True}, 403),
        ("/pause", {"services": ["mail"], "everything": True}, 403),
        ("/pause", {"services": []}, 403),
        ("/pause", {}, 403),
        ("/initialize", {}, 403),
        ("/initialize", {"service": "web"}, 403),
        ("/initialize", {"service": "mail"}, 200),
        ("/lift", {"suppression": "x"}, 403),
        ("/services/job/heartbeat", {}, 403),
    ]:
        response = served.post(path, json=body, headers=mailman)
        assert response.status_code == status, (path, body, response.text)
    assert served.get("/services/web", headers=mailman).status_code == 200


def test_names_that_are_no_texts_do_not_pass_the_limit(gate: Gate) -> None:
    for services in ("mail", 5, [["mail"]], {"mail": 1}, [None]):
        response = gate.served.post("/pause", json={"services": services}, headers=gate.headers["operate on another"])
        assert response.status_code in (400, 403), services


def test_an_override_needs_the_scope_admin(gate: Gate) -> None:
    body = {"override": ["parents"], "reason": "I know"}
    forbidden = gate.served.post("/services/web/recover", json=body, headers=gate.headers["operate"])
    assert (forbidden.status_code, forbidden.json()["code"]) == (403, "forbidden")
    chief = gate.served.post("/services/web/recover", json=body, headers=gate.headers["admin"])
    assert chief.status_code in (200, 409)
    unknown = gate.served.post("/services/web/recover", json={"override": ["slot"]}, headers=gate.headers["admin"])
    assert unknown.status_code == 400


def test_other_ways_of_showing_a_token_are_refused(gate: Gate) -> None:
    token = gate.headers["admin"]["Authorization"].removeprefix("Bearer ")
    for value in (token, f"Basic {token}", "Bearer", f"Bearer {token}x", f"Bearer {token.upper()}"):
        assert gate.served.get("/status", headers={"Authorization": value}).status_code == 401, value
    assert gate.served.get("/status", params={"token": token}).status_code == 401
    assert gate.served.get("/status", headers={"Cookie": f"token={token}"}).status_code == 401
    assert gate.served.get("/status", headers={"Authorization": f"bearer {token}"}).status_code == 200


def test_health_says_to_strangers_only_whether_it_is_well(gate: Gate) -> None:
    assert gate.served.get("/health").json() == {"status": "pass", "why": []}
    assert gate.served.get("/health", headers=gate.headers["read"]).json()["details"]["services"] == 4


# -- without a token ---------------------------------------------------------------------------------------------------


def test_without_a_token_this_machine_reads_and_the_line_to_type_is_named(tmp_path: Path) -> None:
    with api(tmp_path) as served:
        assert served.get("/status").status_code == 200
        refused = served.post("/services/web/disable")
        assert refused.status_code == 401
        detail = refused.json()["detail"]
        assert "selfheal token create NAME --scope operate" in detail
        assert "loopback_writes = true" in detail
        served.token("first", "read")
        until(lambda: served.get("/status").status_code == 401, "with a token there is no reading without")


def test_loopback_writes_are_for_this_machine_and_not_for_what_needs_admin(tmp_path: Path) -> None:
    with api(tmp_path, loopback_writes=True) as served:
        assert served.post("/services/mail/disable").status_code == 200
        assert served.post("/release", json={"hold": "storm"}).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "rebound.example:80"},
        {"Host": "127.0.0.1.rebound.example"},
        {"Host": "localhost.rebound.example"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
    ],
    ids=lambda headers: " ".join(f"{name} {value}" for name, value in headers.items()),
)
def test_who_comes_by_another_name_or_through_a_proxy_is_not_this_machine(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    with api(tmp_path, loopback_writes=True) as served:
        assert served.get("/status", headers=headers).status_code == 401
        assert served.post("/services/mail/disable", headers=headers).status_code == 401


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:3000", "127.0.0.1", "127.8.8.8:1", "[::1]:3000", "[::1]"])
def test_the_names_of_loopback_are_known(host: str) -> None:
    assert means_loopback(host)


@pytest.mark.parametrize("host", ["", "example.org", "10.0.0.1", "[::2]", "localhost.", "127.0.0.1@evil.example", "0"])
def test_other_names_are_not_loopback(host: str) -> None:
    assert not means_loopback(host)


# -- browsers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Origin": "https://evil.example"}, 403),
        ("GET", {"Origin": "null"}, 403),
        ("POST", {"Origin": "https://evil.example"}, 403),
        ("POST", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", {"Sec-Fetch-Site": "same-site"}, 403),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ("GET", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("GET", {"Sec-Fetch-Site": "none"}, 200),
        ("POST", {"Origin": "own", "Sec-Fetch-Site": "same-origin"}, 200),
        ("POST", {"Origin": "https://dashboard.example"}, 200),
    ],
)
def test_pages_of_other_sites_get_nothing_and_change_nothing(
    tmp_path: Path, method: str, headers: dict[str, str], status: int
) -> None:
    with api(tmp_path, loopback_writes=True, origins=["https://dashboard.example"]) as served:
        sent = {name: value.replace("own", f"http://127.0.0.1:{served.port}") for name, value in headers.items()}
        path = "/status" if method == "GET" else "/services/mail/enable"
        response = served.client.request(method, f"{served.base}{path}", headers=sent)
        assert response.status_code == status, response.text
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_host_that_is_not_named_is_misdirected(tmp_path: Path) -> None:
    with api(tmp_path, hosts=["127.0.0.1", "recovery.example"]) as served:
        reader = served.token("reader", "read")
        assert served.get("/status", headers=reader).status_code == 200
        assert served.get("/status", headers={**reader, "Host": "recovery.example:8443"}).status_code == 200
        wrong = served.get("/status", headers={**reader, "Host": "rebound.example"})
        assert (wrong.status_code, wrong.json()["code"]) == (421, "wrong_host")


# -- a host application that knows its users ---------------------------------------------------------------------------


def cookie_user(request: Request) -> Caller | None:
    """Know a user by a cookie, as a host with sessions does; blocking, as many are."""
    names = {"ann": Scope.OPERATE, "bob": Scope.READ}
    user = request.cookies.get("session")
    return Caller(name=user, scope=names[user], services=["mail"] if user == "ann" else None) if user in names else None


async def async_user(request: Request) -> Caller | None:
    return cookie_user(request)


@pytest.mark.parametrize("authenticate", [cookie_user, async_user])
def test_a_host_application_says_who_asks(tmp_path: Path, authenticate: Any) -> None:
    with api(tmp_path, authenticate=authenticate) as served:
        ann, bob = {"Cookie": "session=ann"}, {"Cookie": "session=bob"}
        own = {"Origin": f"http://127.0.0.1:{served.port}"}
        stranger = served.get("/status")
        assert (stranger.status_code, "www-authenticate" in stranger.headers) == (401, False)
        assert stranger.json()["detail"].startswith("log in to the application")
        assert served.get("/status", headers=ann).status_code == 200
        assert served.post("/services/mail/disable", headers={**bob, **own}).status_code == 403
        done = served.post("/services/mail/disable", headers={**ann, **own})
        assert done.json()["actor"] == "ann at 127.0.0.1"
        assert served.post("/services/web/disable", headers={**ann, **own}).status_code == 403


def test_with_a_cookie_an_act_must_say_which_page_it_comes_from(tmp_path: Path) -> None:
    with api(tmp_path, authenticate=cookie_user) as served:
        ann = {"Cookie": "session=ann"}
        refused = served.post("/services/mail/enable", headers=ann)
        assert (refused.status_code, refused.json()["code"]) == (403, "cross_origin")
        assert served.post("/services/mail/enable", headers={**ann, "Sec-Fetch-Site": "same-origin"}).status_code == 200
        bearer = {"Authorization": "Bearer of the host's own", **ann}
        assert served.post("/services/mail/enable", headers=bearer).status_code == 200


def test_a_user_of_the_host_may_open_the_stream_with_a_ticket(tmp_path: Path) -> None:
    with api(tmp_path, authenticate=cookie_user) as served:
        sent = {"Cookie": "session=bob", "Origin": f"http://127.0.0.1:{served.port}"}
        ticket = served.post("/events/ticket", headers=sent).json()["ticket"]
        assert Listener(served).start().status == 401
        assert Listener(served, path=f"/events?ticket={ticket}").start().status == 200
        assert Listener(served, path=f"/events?ticket={ticket}").start().status == 401


def test_a_host_application_that_fails_lets_nobody_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Request) -> Caller | None:
        raise LookupError("the session store at 10.0.0.9 is down")

    def wrong(request: Request) -> Any:
        return True

    fleet = Fleet(tmp_path)
    supervisor = fleet.supervisor()
    routes = [
        Mount(PREFIX, app=recovery_app(supervisor, authenticate=broken)),
        Mount("/wrong", app=recovery_app(supervisor, authenticate=wrong)),
    ]
    with serving(Starlette(routes=routes, lifespan=supervisor.lifespan), fleet) as served:
        response = served.get("/status")
        assert response.status_code == 500
        assert "10.0.0.9" not in response.text
        assert "10.0.0.9" in caplog.text
        assert served.client.get(f"http://127.0.0.1:{served.port}/wrong/status").status_code == 500


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 101, 5])
def test_a_caller_has_a_name_that_fits_into_the_audit_trail(name: Any) -> None:
    with pytest.raises(ValueError, match="a caller has a name"):
        Caller(name=name, scope="read")


def test_one_text_is_not_taken_for_a_list_of_its_letters() -> None:
    with pytest.raises(TypeError, match="not one name"):
        Caller(name="ann", scope="read", services="mail")


# -- proxies -----------------------------------------------------------------------------------------------------------


def test_an_address_is_believed_from_proxies_that_are_named_and_from_no_other(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    supervisor = fleet.supervisor()
    routes = [
        Mount(PREFIX, app=recovery_app(supervisor, proxies=["127.0.0.0/8", "10.0.0.0/8"], rates=MANY)),
        Mount("/plain", app=recovery_app(supervisor, rates=MANY)),
    ]
    with serving(Starlette(routes=routes, lifespan=supervisor.lifespan), fleet, proxy_headers=False) as served:
        chief = served.token("chief", "admin")

        def seen(headers: dict[str, str], prefix: str = PREFIX) -> str:
            url = f"http://127.0.0.1:{served.port}{prefix}/services/mail/enable"
            response = served.client.post(url, headers={**chief, **headers})
            assert response.status_code == 200, response.text
            return str(response.json()["actor"].rpartition(" at ")[2])

        assert seen({}) == "127.0.0.1"
        assert seen({"X-Forwarded-For": "203.0.113.7"}) == "203.0.113.7"
        assert seen({"X-Forwarded-For": "198.51.100.1, 203.0.113.7, 10.1.1.1"}) == "203.0.113.7"
        assert seen({"X-Forwarded-For": "nonsense"}) == "an unknown address"
        assert seen({"X-Forwarded-For": "203.0.113.7"}, prefix="/plain") == "127.0.0.1"


def test_a_proxy_that_is_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 network"):
        recovery_app(Fleet(tmp_path).supervisor(), proxies=["proxy.example"])


# -- rates -------------------------------------------------------------------------------------------------------------


def test_guessing_tokens_is_slowed_down_by_address(tmp_path: Path) -> None:
    with api(tmp_path) as served:
        reader = served.token("reader", "read")
        codes = [served.get("/status", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(25)]
        assert codes.count(401) <= limits.Rates().failures.count
        assert codes[-1] == 429
        assert served.get("/status", headers=reader).status_code == 200


def test_a_bucket_fills_up_again_evenly() -> None:
    now = [0.0]
    bucket = limits.Buckets(limits.Rate(count=2, seconds=10.0), clock=lambda: now[0])
    assert [bucket.take("a") for _ in range(3)] == [0, 0, 5]
    assert bucket.take("b") == 0
    now[0] = 4.9
    assert bucket.wait("a") == 1
    now[0] = 5.0
    assert bucket.take("a") == 0
    assert bucket.take("a") == 5
    now[0] = 1000.0
    assert [bucket.take("a") for _ in range(3)] == [0, 0, 5]


def test_keys_without_end_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEYS", 10)
    bucket = limits.Buckets(limits.Rate(count=1, seconds=60.0))
    for number in range(1000):
        bucket.take(number)
    assert bucket.take(999) > 0
    assert len(bucket._full) == 10
