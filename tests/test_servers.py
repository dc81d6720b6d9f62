"""A server that is missing is a skip for a contributor, and a failure where it was promised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.servers import program_of
else:
    from servers import program_of


def test_the_first_program_that_is_there_is_taken() -> None:
    assert program_of("shell", "no-such-program-51d2e8", "sh").endswith("/sh")


@pytest.mark.parametrize(
    ("asked", "ends"), [("", "Skipped"), ("redis,postgres", "Skipped"), ("redis,nosuch", "Failed")]
)
def test_a_missing_server_skips_unless_it_is_required(monkeypatch: pytest.MonkeyPatch, asked: str, ends: str) -> None:
    monkeypatch.setenv("SELFHEAL_REQUIRE", asked)
    with pytest.raises(BaseException, match="no-such-program-51d2e8 is installed") as found:  # neither is an Exception
        program_of("nosuch", "no-such-program-51d2e8")
    assert type(found.value).__name__ == ends
