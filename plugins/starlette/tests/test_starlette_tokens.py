"""Tokens: shown once, kept as hashes in a file that is whole at every moment, and made, listed and revoked by hand."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.cli.conftest import invoked

from selfheal.requests import Scope
from selfheal_starlette.tokens import FILE, PREFIX, TokenBook, TokenFile, TokensUnusable, hash_of


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / FILE)


def book_of(file: TokenFile) -> TokenBook:
    book = TokenBook(file)
    book.read()
    return book


def test_a_token_has_256_random_bits_and_only_its_hash_is_kept(file: TokenFile) -> None:
    texts = [file.create(f"n{number}", Scope.READ)[0] for number in range(3)]
    assert len(set(texts)) == 3
    assert all(text.startswith(PREFIX) and len(text) == len(PREFIX) + 43 for text in texts)
    kept = file.path.read_text()
    assert not [text for text in texts if text in kept or text.removeprefix(PREFIX) in kept]
    assert all(hash_of(text) in kept for text in texts)


def test_the_file_is_for_its_owner_alone_and_the_hash_is_in_no_repr(file: TokenFile) -> None:
    _, token = file.create("reader", Scope.READ)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert token.hash not in repr(token)
    assert file.read() == (token,)
    assert [path.name for path in file.path.parent.iterdir()] == [FILE]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_what_root_makes_belongs_to_whom_the_folder_belongs(file: TokenFile) -> None:
    os.chown(file.path.parent, 65534, 65534)
    file.create("reader", Scope.READ)
    assert (file.path.stat().st_uid, file.path.stat().st_gid) == (65534, 65534)


def test_two_that_make_tokens_at_once_lose_none(file: TokenFile) -> None:
    def make() -> None:
        for number in range(10):
            file.create(f"n{number}", Scope.READ)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read()) == 40


def written(**changes: Any) -> str:
    """Return a file with one token in which something is wrong."""
    dates = {"created": "2026-01-01T00:00:00Z", "expires": None}
    entry = {"id": "a", "name": "b", "hash": "0" * 64, "scope": "read", "services": None, **dates}
    return json.dumps({"version": 1, "tokens": [{**entry, **changes}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 2, "tokens": []}',
        '{"version": 1, "tokens": [{}]}',
        written(hash="00"),
        written(hash="x" * 64),
        written(scope="root"),
        written(services=[5]),
        written(created="today"),
        "[" * 100_000,
    ],
)
def test_a_file_that_cannot_be_used_lets_nobody_in_and_is_not_taken_for_none(
    file: TokenFile, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, _ = file.create("reader", Scope.READ)
    file.path.write_text(text)
    with pytest.raises(TokensUnusable, match=r"tokens\.json"):
        file.read()
    book = book_of(file)
    assert book.used
    assert book.find(good) is None
    book.read()
    assert caplog.text.count("nobody is let in by a token") == 1
    with pytest.raises(TokensUnusable):
        file.create("another", Scope.READ)
    assert file.path.read_text() == text, "what we do not understand is not overwritten"


def test_a_file_that_others_may_read_is_refused_with_the_line_to_type(file: TokenFile) -> None:
    file.create("reader", Scope.READ)
    file.path.chmod(0o640)
    with pytest.raises(TokensUnusable, match=f"chmod 600 {file.path}"):
        file.read()


def test_a_file_that_changes_or_goes_is_noticed(file: TokenFile) -> None:
    book = book_of(file)
    assert not book.used
    first, _ = file.create("first", Scope.READ)
    book.read()
    assert book.find(first) is not None
    second, _ = file.create("second", Scope.READ)
    book.read()
    assert book.find(second) is not None
    file.path.write_text("{")
    book.read()
    assert book.find(first) is None
    file.path.unlink()
    book.read()
    assert not book.used


def test_a_token_that_has_expired_is_none(file: TokenFile) -> None:
    text, token = file.create("guest", Scope.READ, expires=time.time() + 60.0)
    over, _ = file.create("gone", Scope.READ, expires=time.time() - 0.001)
    book = book_of(file)
    assert book.find(text) == token.of(token.shape())
    assert book.find(over) is None
    assert book.used, "an expired token still says that tokens are wanted"


def test_no_file_at_all_knows_no_token() -> None:
    book = TokenBook(None)
    assert not book.used
    assert book.find("anything") is None


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 61])
def test_a_name_that_does_not_fit_is_refused(file: TokenFile, name: str) -> None:
    with pytest.raises(ValueError, match="a token has a name"):
        file.create(name, Scope.READ)


# -- the command -------------------------------------------------------------------------------------------------------


def token(folder: Path, *words: str) -> Result:
    return invoked("--state-dir", folder, "token", *words)


def test_a_token_is_made_listed_and_revoked_at_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    made = token(
        folder, "create", "ann", "--scope", "operate", "--service", "web", "--service", "mail", "--expires", "90d"
    )
    assert made.exit_code == 0, made.output
    text = made.stdout.strip()
    assert text.startswith(PREFIX)
    assert "shown once" in made.stderr
    found = book_of(TokenFile(folder / FILE)).find(text)
    assert found is not None
    assert (found.name, found.scope, found.services) == ("ann", Scope.OPERATE, ("web", "mail"))
    assert found.expires == pytest.approx(time.time() + 90 * 86400, abs=60)
    shown = token(folder, "list").stdout
    assert found.id in shown
    assert "operate" in shown
    assert "web, mail" in shown
    assert text not in shown
    assert found.hash not in shown
    assert found.hash not in token(folder, "list", "--json").stdout
    assert token(folder, "revoke", found.id).stdout == f"revoked {found.id} (ann)\n"
    assert token(folder, "revoke", found.id).exit_code != 0
    assert book_of(TokenFile(folder / FILE)).find(text) is None
    assert "no tokens" in token(folder, "list").stdout


def test_a_token_in_json_is_for_programs(tmp_path: Path) -> None:
    made: dict[str, Any] = json.loads(token(tmp_path, "create", "ci", "--json").stdout)
    assert made.keys() == {"token", "id", "name", "scope", "services", "created", "expires"}
    assert made["scope"] == "read"
    assert made["expires"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("create",),
        ("create", "ann", "--scope", "root"),
        ("create", "ann", "--expires", "soon"),
        ("create", "ann", "--service", "web"),
        ("create", "ann", "--scope", "admin", "--service", "web"),
        ("create", "two\nlines"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert token(tmp_path, *words).exit_code == 2
    assert not (tmp_path / FILE).exists()
