"""What `mesh broker permissions` takes, and what it prints of who may be called."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gateway.cli import main
from tests.http.harness import component

BROKERS = ("nats", "amqp", "kafka", "redis")
# What says that another application may be called, at once or durably; Kafka carries calls at once in one topic.
CALLED = {
    "nats": (r'"mesh\.prod\.app\.(\*|orders)"', r'"mesh\.prod\.topic\.mesh-calls\.\*\.(\*|orders)"'),
    "amqp": (r"mesh\\\.prod\\\.app\\\.(\[\^\.\]\+|orders)\$", r"'\^\(\[\^\.\]\+\\\.(\.\+|orders)\$\)' '\^#\$'"),
    "kafka": (r"--topic mesh\.prod\.topic\.mesh-calls\.(orders| )",),
    "redis": (
        r"&mesh\.prod\.app\.(\*|orders)",
        r"~mesh\.prod\.app\.(\*|orders)",
        r"\+xgroup\|create ~mesh\.prod\.topic\.mesh-calls:s:(\*|orders)",
        r"~mesh\.prod\.topic\.mesh-calls:p:(\*|orders)",
    ),
}
OPEN = re.compile(r"'\^\(\)'|\(\||\|\||\|\)|\(\+[^ ]+( \+[^ ]+)*\)")  # An empty alternative, or commands on anything.


def printed(capsys: pytest.CaptureFixture[str], broker: str, *words: str) -> str:
    assert main(["broker", "permissions", "shop", "--broker", broker, "--namespace", "prod", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize(
    ("words", "called"),
    [((), True), (("--calls", "*"), True), (("--calls", "orders"), True), (("--calls", ""), False)]
    + [((f"--calls={text}",), False) for text in ("", " ", ",", " , ")],
)
def test_who_may_be_called(
    broker: str, words: tuple[str, ...], called: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """All, one, or nobody: an empty list is not the lack of one."""
    text = printed(capsys, broker, *words)
    assert [re.search(each, text) is not None for each in CALLED[broker]] == [called] * len(CALLED[broker]), text
    assert OPEN.search(text) is None, text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["*"], "APP-ID: '*' would be all of them"),
        ([">"], "APP-ID: '>' would be all of them"),
        ([""], "APP-ID: the app id must not be empty"),
        (["a.b"], "APP-ID: the app id 'a.b' must not contain dots"),
        (["a b"], "APP-ID: the app id 'a b' must not contain dots, slashes, '@', blanks or control characters"),
        (["a\n--operation=All"], "must not contain dots, slashes, '@', blanks or control characters"),
        (["a", "--calls", "b,c/d"], "--calls: the app id 'c/d' must not contain"),
        (["a", "--calls", "b,>"], "--calls: '>' would be all of them"),
        (["a", "--namespace", "*"], "--namespace: '*' would be all of them"),
    ],
)
def test_names_that_are_none(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "permissions", *words, "--broker", "nats"]) != 0
    told = capsys.readouterr()
    assert (expected in told.err, told.out) == (True, "")


def test_a_component_that_would_be_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all.yaml").write_text(component("*", "pubsub.mesh"))
    assert main(["broker", "permissions", "shop", "--broker", "nats", "--resources-path", str(tmp_path)]) != 0
    assert "the component '*' would be all of them" in capsys.readouterr().err


@pytest.mark.parametrize("app_id", ["shop", "o'neil", "$(id)", "a;b", "a`b", "a#b", 'a"b'])
def test_a_shell_takes_each_line_of_kafka_as_one_command(app_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "permissions", app_id, "--broker", "kafka"]) == 0
    for line in capsys.readouterr().out.splitlines():
        if not line.startswith("#"):
            assert shlex.split(line)[:4] == ["kafka-acls.sh", "--add", "--allow-principal", f"User:{app_id}"]
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            assert list(lexer) == shlex.split(line), "nothing in it is the shell's"
