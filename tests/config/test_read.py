"""Files as they come: empty, half-written, in other encodings, hostile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.broken import fails_when

from selfheal.config import read as reading
from selfheal.config.read import DEPTH_LIMIT, below, plain, printable, read, secret
from selfheal.errors import ConfigurationError


def refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        plain(read(path))
    return str(caught.value)


def written(tmp_path: Path, content: bytes | str, name: str = "selfheal.toml") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_toml_and_json_give_the_same_data(tmp_path: Path) -> None:
    toml = written(tmp_path, '[services.a]\ninterval = 5\ncheck = { kind = "tcp" }\n')
    json = written(tmp_path, '{"services": {"a": {"interval": 5, "check": {"kind": "tcp"}}}}', "selfheal.JSON")

    assert read(toml) == read(json) == {"services": {"a": {"interval": 5, "check": {"kind": "tcp"}}}}


@pytest.mark.parametrize("name", ["a.toml", "a.json"])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_empty_table(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(written(tmp_path, content, name)) == {}


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path: Path) -> None:
    assert read(written(tmp_path, b"\xef\xbb\xbf[fleet]\r\nname = 'a'\r\n")) == {"fleet": {"name": "a"}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[fleet]\nname = 'caf\xe9'\n", "is not UTF-8 (line 2, byte 19)"),
        ("[fleet]\nname = 'a'\n".encode("utf-16"), "is not UTF-8 (line 1"),
        (b"[services.a]\ncheck = { kind = ", "not TOML"),
        (b"[fleet]\nname = 'a'\nname = 'b'\n", "not TOML: Cannot overwrite a value (at line 3"),
        (b"[services.a]\n[services.a]\n", "not TOML"),
        (b"a = " + b"[" * 100_000, "too deep"),
        (b"a = 1" + b"0" * 5000, "malformed"),
        (b"fleet.interval = nan", "fleet.interval: nan is no number anything can be measured by"),
        (b"fleet.interval = -inf", "-inf is no number"),
        (b"a = 9223372036854775808", "beyond 64 bits"),
        (b'a = "\\u0007"', "control character '\\x07'"),
        (b'"\\u001b[2J" = 1', "the key '\\x1b[2J' holds the control character"),
    ],
)
def test_what_is_malformed_is_refused_in_one_printable_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    text = refusal(written(tmp_path, content))

    assert words in text
    assert text.isprintable()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands there twice"),
        ('{"a": NaN}', "NaN is no number in JSON"),
        ('{"a": 1e999}', "inf is no number"),
        ('{"a": [1,}', "not JSON: Expecting value (at line 1, column 10)"),
        ('{"a": "\\ud800"}', "half a surrogate pair"),
        ("[1]", "holds a list, not a table"),
        ("null", "holds a NoneType, not a table"),
        ("[" * 100_000, "too deep"),
        ('{"a": 1' + "0" * 5000 + "}", "malformed"),
    ],
)
def test_json_is_read_as_strictly(tmp_path: Path, content: str, words: str) -> None:
    assert words in refusal(written(tmp_path, content, "a.json"))


def test_data_too_deep_is_refused_where_it_is(tmp_path: Path) -> None:
    deep: object = 1
    for _ in range(DEPTH_LIMIT + 1):
        deep = [deep]

    with pytest.raises(ConfigurationError, match="stands too deep"):
        plain({"a": deep})


def test_every_fault_of_the_data_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        plain({"a": float("nan"), "b": [b"x", 1 << 64], 3: 1})  # type: ignore[dict-item]

    assert [str(problem) for problem in caught.value.problems] == [
        ".: the key 3 is no text",
        "a: nan is no number anything can be measured by",
        "b[0]: is a bytes, which no file can hold",
        "b[1]: is a number beyond 64 bits",
    ]


def test_a_file_that_is_not_there_a_folder_or_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert "No such file" in refusal(tmp_path / "missing")
    assert "cannot be read" in refusal(tmp_path) or "no plain file" in refusal(tmp_path)
    assert "is not a plain file" in refusal(tmp_path / "pipe")
    assert "cannot be read" in refusal(Path("a\0b"))


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SIZE_LIMIT", 1 << 20)

    assert "is larger than 1 MiB" in refusal(written(tmp_path, b"#" * ((1 << 20) + 1)))


def test_paths_quote_what_is_no_plain_word() -> None:
    assert below("services", "a-b_1") == "services.a-b_1"
    assert below("", "fleet") == "fleet"
    assert below("services", "x; touch pwned") == "services.'x; touch pwned'"
    assert below("services", "api.v1") == 'services."api.v1"'
    assert printable("\x1b[31mé") == "\\x1b[31mé"


# -- secrets ---------------------------------------------------------------------------------------------------------


@fails_when("a secret shows itself")
def test_s63_a_secret_is_read_late_and_each_time_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "password"
    path.write_text("first\n")
    found = secret("file", "password", tmp_path)
    assert found.reveal() == "first"

    path.write_text("second\n")

    assert found.reveal() == "second"
    assert "second" not in repr(found)
    monkeypatch.setenv("A_PASSWORD", "third")
    assert secret("env", "A_PASSWORD").reveal() == "third"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert secret("credential", "password").reveal() == "second"


def test_a_secret_that_cannot_be_had_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * 70_000)

    for source, name, words in [
        ("env", "NO_SUCH_NAME", "the environment has no NO_SUCH_NAME"),
        ("env", "EMPTY", "EMPTY of the environment is empty"),
        ("credential", "db", "CREDENTIALS_DIRECTORY is not set"),
        ("file", "missing", "missing"),
        ("file", "empty", "is empty"),
        ("file", "binary", "does not hold text"),
        ("file", "large", "larger than 64 KiB"),
    ]:
        with pytest.raises((LookupError, OSError, ValueError), match=words) as caught:
            secret(source, name, tmp_path).reveal()
        assert "xxxx" not in str(caught.value)
