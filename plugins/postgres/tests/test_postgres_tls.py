"""TLS in PostgreSQL's manner, against the real server: who is believed, who is not, and what that is called."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import pytest
import trustme
from tests.stack import asking
from tests.stack.postgres import ADMIN, WATCHER, Server

from selfheal.core.model import Cause, CheckResult, Verdict
from selfheal.secret import Secret
from selfheal_postgres.check import PostgresCheck

pytestmark = [pytest.mark.server, pytest.mark.real_time]

Road: TypeAlias = "Callable[..., CheckResult]"


@pytest.fixture(params=["light", "deep"])
def road(request: pytest.FixtureRequest) -> Road:
    found: Road = asking.light if request.param == "light" else asking.deep
    return found


@attrs.frozen(kw_only=True)
class Papers:
    """An authority, its PEM file, and another one's."""

    authority: trustme.CA
    trusted: Path
    stranger: Path
    folder: Path


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    authority = trustme.CA()
    trusted, stranger = tmp_path / "authority.pem", tmp_path / "stranger.pem"
    authority.cert_pem.write_to_path(str(trusted))
    trustme.CA().cert_pem.write_to_path(str(stranger))
    return Papers(authority=authority, trusted=trusted, stranger=stranger, folder=tmp_path)


def certified(server: Server, papers: Papers, *names: str, days: float = 365.0, **settings: Any) -> None:
    """Start the server with a certificate for these names that ends in so many days."""
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = now - datetime.timedelta(days=30), now + datetime.timedelta(days=days)
    leaf = papers.authority.issue_cert(*(names or ("127.0.0.1",)), not_before=begins, not_after=ends)
    files = {"server.key": leaf.private_key_pem.bytes(), "server.crt": leaf.cert_chain_pems[0].bytes()}
    files["root.crt"] = papers.authority.cert_pem.bytes()
    for name, content in files.items():
        (server.data / name).write_bytes(content)
        server.template.own(server.data / name, 0o600)
    server.start(ssl="on", ssl_ca_file="root.crt", **settings)


def secured(server: Server, papers: Papers, mode: str = "verify-full", **options: Any) -> PostgresCheck:
    given = {"authority": papers.trusted} | options
    return PostgresCheck(url=Secret(server.url()), sslmode=mode, **given)


def told(result: CheckResult, verdict: Verdict, cause: Cause | None) -> str:
    assert (result.verdict, result.cause) == (verdict, cause), result
    return result.summary


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca", "verify-full"])
def test_a_certificate_that_is_in_order_passes_in_every_mode_and_the_line_is_secure(
    server: Server, papers: Papers, road: Road, mode: str
) -> None:
    certified(server, papers)
    (server.data / "pg_hba.conf").write_text("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
    server.reload()
    told(road(secured(server, papers, mode)), Verdict.PASSING, None)


def test_an_expired_certificate_is_config_which_no_restart_cures(server: Server, papers: Papers, road: Road) -> None:
    certified(server, papers, days=-1.0)
    said = told(road(secured(server, papers)), Verdict.FAILING, Cause.CONFIG)
    assert "expired" in said or road is asking.deep  # libpq says only that it could not be verified
    told(road(secured(server, papers, "require")), Verdict.PASSING, None)


def test_a_stranger_s_certificate_and_one_for_another_name_are_config(
    server: Server, papers: Papers, road: Road
) -> None:
    certified(server, papers, "elsewhere.example")
    told(road(secured(server, papers)), Verdict.FAILING, Cause.CONFIG)
    told(road(secured(server, papers, "verify-ca")), Verdict.PASSING, None)
    told(road(secured(server, papers, "verify-ca", authority=papers.stranger)), Verdict.FAILING, Cause.CONFIG)


def test_a_server_without_tls_is_config_where_it_is_required(primary: Server, papers: Papers, road: Road) -> None:
    told(road(secured(primary, papers, "require")), Verdict.FAILING, Cause.CONFIG)
    told(road(secured(primary, papers, "verify-full")), Verdict.FAILING, Cause.CONFIG)
    told(road(secured(primary, papers, "prefer")), Verdict.PASSING, None)


def test_a_certificate_that_ends_soon_warns(server: Server, papers: Papers) -> None:
    certified(server, papers, days=5.5)
    check = secured(server, papers)
    assert "ends in" in told(asking.light(check), Verdict.WARNING, Cause.CONFIG)
    told(asking.light(secured(server, papers, warn_before=86400.0)), Verdict.PASSING, None)


def test_our_own_certificate_logs_us_in(server: Server, papers: Papers, road: Road) -> None:
    certified(server, papers)
    (server.data / "pg_hba.conf").write_text("local all all trust\nhostssl all all 127.0.0.1/32 cert\n")
    server.reload()
    own = papers.folder / "own.pem"
    leaf = papers.authority.issue_cert("client@example.org", common_name=WATCHER)
    leaf.private_key_and_cert_chain_pem.write_to_path(str(own))
    own.chmod(0o600)
    told(road(secured(server, papers, certificate=own)), Verdict.PASSING, None)
    told(road(secured(server, papers)), Verdict.FAILING, Cause.AUTH)
    other = PostgresCheck(url=server.url(user=ADMIN), sslmode="verify-full", authority=papers.trusted, certificate=own)
    told(road(other), Verdict.FAILING, Cause.AUTH)


def test_a_file_that_is_missing_is_ours_and_no_outage(server: Server, papers: Papers, road: Road) -> None:
    certified(server, papers)
    result = road(secured(server, papers, authority=papers.folder / "absent.pem"))
    told(result, Verdict.INCONCLUSIVE, Cause.CONFIG)


def test_a_renewed_authority_is_read_without_a_reload(server: Server, papers: Papers) -> None:
    certified(server, papers)
    check = secured(server, papers, authority=papers.stranger)
    told(asking.light(check), Verdict.FAILING, Cause.CONFIG)
    papers.stranger.write_bytes(papers.trusted.read_bytes())
    check._tls._looked -= 120.0  # as if it had been two minutes ago
    told(asking.light(check), Verdict.PASSING, None)


def test_a_password_is_not_sent_as_it_is_over_a_line_that_others_may_read() -> None:
    from selfheal.wire import rehearse

    check = PostgresCheck(url="postgresql://u@db.example/d", password=Secret("hunter2-canary"), sslmode="disable")
    said = list(rehearse(check.talk(), b"R\0\0\0\x08\0\0\0\x03"))
    assert isinstance(said[-1], CheckResult)
    assert "not sent" in told(said[-1], Verdict.INCONCLUSIVE, Cause.CONFIG)
    assert not any(b"hunter2" in part for part in said[:-1] if isinstance(part, bytes))
