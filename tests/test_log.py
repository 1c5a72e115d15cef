"""The daemon's log: one line for each thing said, whoever reads it, or nobody."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from ollama_metrics.log import LEVELS, Log


def said(level: str, *lines: tuple[str, str]) -> list[str]:
    stream = io.StringIO()
    log = Log(level, stream)
    for line in lines:
        log(*line)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("least", "heard"),
    [
        ("error", ["error"]),
        ("warning", ["error", "warning"]),
        ("info", ["error", "warning", "info"]),
        ("debug", ["error", "warning", "info", "debug"]),
    ],
)
def test_only_what_is_urgent_enough_is_written(least: str, heard: list[str]) -> None:
    """A log of a level has the lines of that level and the more urgent ones."""
    lines = said(least, *[(level, level) for level in LEVELS])
    assert [line.split()[-1] for line in lines] == heard


def test_a_line_names_the_program_and_its_level() -> None:
    """For a person a line says who speaks, and its level where it is not mere information."""
    lines = said("debug", ("info", "listening"), ("warning", "odd"), ("error", "broken"))
    assert lines == [
        "ollama-metrics: listening",
        "ollama-metrics: warning: odd",
        "ollama-metrics: error: broken",
    ]


def test_for_the_journal_a_line_begins_with_its_priority(tmp_path: Path) -> None:
    """On the stream that JOURNAL_STREAM names, levels are syslog's numbers."""
    with open(tmp_path / "journal", "w+") as stream:
        status = os.fstat(stream.fileno())
        log = Log("debug", stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        for level in LEVELS:
            log(level, level)
        stream.seek(0)
        assert stream.read().split() == ["<3>error", "<4>warning", "<6>info", "<7>debug"]


def test_a_terminal_that_inherited_journal_stream_is_none(tmp_path: Path) -> None:
    """The variable counts for the stream that it names and for no other."""
    with open(tmp_path / "terminal", "w+") as stream:
        Log("info", stream, {"JOURNAL_STREAM": "9:12345"})("info", "hello")
        stream.seek(0)
        assert stream.read() == "ollama-metrics: hello\n"


@pytest.mark.parametrize(
    "breaker", ["\n", "\r", "\x0b", "\x1b[2J", "\x85", "\u2028", "\0", "\ud800"]
)
def test_nothing_breaks_a_line_in_two(breaker: str) -> None:
    """A driver's text cannot forge a second line nor speak to the terminal."""
    stream = io.StringIO()
    Log("info", stream)("info", f"before{breaker}after")
    text = stream.getvalue()
    assert text.endswith("after\n")
    assert text[:-1].isprintable()


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def ascii_only() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


@pytest.mark.parametrize("make", [Gone, closed, ascii_only])
def test_a_log_that_nobody_can_read_is_no_error(make: type[io.StringIO]) -> None:
    """Serving matters more than saying so: a stream that takes nothing raises nothing."""
    Log("info", make())("error", "caf\u00e9")
