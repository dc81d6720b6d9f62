"""TLS contexts: built once, renewed with their files, and refused with a sentence."""

from __future__ import annotations

import select
import shutil
from pathlib import Path
from time import monotonic

import pytest
import trustme

from selfheal.builtin.wire_checks import HttpCheck
from selfheal.core.model import Cause, CheckResult, Verdict
from selfheal.shell.approach import Approach
from selfheal.shell.lanes import Lane
from selfheal.shell.names import Resolver
from selfheal.shell.tls import FRESH, TlsSettingsBroken, prepare
from selfheal.wire import Tls


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


def test_a_context_is_the_same_until_a_file_is_renewed(authority: Path) -> None:
    tls = Tls(authority=authority)
    first = prepare(tls)
    assert prepare(tls, first) is first
    trustme.CA().cert_pem.write_to_path(str(authority))
    second = prepare(tls, first)
    assert second is not first
    assert second.context is not first.context


def test_a_file_that_cannot_be_used_is_named(authority: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("not a certificate")
    for tls in (
        Tls(authority=tmp_path / "none.pem"),
        Tls(authority=text),
        Tls(authority=authority, certificate=tmp_path / "none.pem"),
        Tls(authority=authority, certificate=authority),
    ):
        with pytest.raises(TlsSettingsBroken) as raised:
            prepare(tls)
        assert str(tls.certificate or tls.authority) in str(raised.value)


def test_a_renewed_file_is_looked_for_in_time_and_a_lost_one_is_our_configuration(authority: Path) -> None:
    resolver = Resolver()
    approach = Approach(resolver)
    lane = Lane(HttpCheck(url="https://127.0.0.1/", authority=authority), 1.0, None)
    assert approach.aim(lane) is None
    now = monotonic()

    def collect() -> list[tuple[Lane, CheckResult | None]]:
        assert select.select([resolver.fd], [], [], 5.0)[0]
        return [*approach.collect(now)]

    assert not approach.ready(lane, now)
    assert collect() == [(lane, None)]
    assert approach.ready(lane, now)
    earlier = approach.context(lane)
    shutil.move(authority, authority.with_suffix(".away"))
    assert approach.ready(lane, now + FRESH - 1)
    assert approach.ready(lane, now + FRESH + 1), "the check at hand may do with the old one"
    assert approach.context(lane) is earlier
    assert collect() == []
    assert not approach.ready(lane, now + FRESH + 2)
    ((waited, trouble),) = collect()
    assert waited is lane
    assert trouble is not None
    assert (trouble.verdict, trouble.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    resolver.close()
