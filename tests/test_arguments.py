"""A plain command line is read as argparse reads it, and every other one is left to argparse."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Optional

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollama_metrics.arguments import plain_options
from ollama_metrics.cli import _ask_argparse
from ollama_metrics.settings import SETTINGS

OPTIONS = [setting.option for setting in SETTINGS]


def referee(argv: Sequence[str]) -> Optional[dict[str, Any]]:
    """What argparse makes of a command line; None where it prints help or finds a mistake."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            return _ask_argparse(argv, {})
        except SystemExit:
            return None


# Any text, and those with which a command line can be misread.
TEXTS = st.text(max_size=6) | st.sampled_from(
    ["", " ", "=", "-", "--", "-1", "-.5", "- 1", "--x y", "=1", "a=b", "serve", "--help", "-h"]
)
NAMES = st.sampled_from(OPTIONS)
PLAIN = st.tuples(NAMES, TEXTS.filter(lambda text: not text.startswith("-"))).flatmap(
    lambda pair: st.sampled_from([list(pair), ["=".join(pair)]])
)
ODD = st.one_of(
    TEXTS.map(lambda text: [text]),
    NAMES.map(lambda name: [name]),
    st.tuples(NAMES, TEXTS).map(list),
    st.tuples(NAMES, TEXTS).map(lambda pair: ["=".join(pair)]),
    NAMES.map(lambda name: [name[:-1], "1"]),
    NAMES.map(lambda name: [name[1:], "1"]),
    NAMES.map(lambda name: [name.upper(), "1"]),
    st.just(["--format", "json"]),
    st.just(["--version"]),
)


def flat(parts: list[list[str]]) -> list[str]:
    return [word for part in parts for word in part]


@settings(deadline=None)
@given(st.lists(PLAIN, max_size=5).map(flat))
@example([])
@example([f"{OPTIONS[0]}="])
def test_what_is_plain_is_read_as_argparse_does(words: list[str]) -> None:
    """Options with their values, in whatever order and number, are read, and argparse agrees to the letter."""
    options = plain_options(["serve", *words])
    assert options is not None
    assert {"command": "serve", **options} == referee(["serve", *words])


@settings(deadline=None)
@given(
    st.sampled_from(["serve", "serve", "serve", "check", "once", "ser", "-v", ""]),
    st.lists(PLAIN | ODD, max_size=4).map(flat),
)
@example("serve", ["--listen", "-1"])
@example("serve", ["--", "--listen", "x"])
@example("serve", ["--listen", "--", "x"])
@example("serve", ["--listen=--"])
def test_nothing_is_read_that_argparse_reads_otherwise(command: str, words: list[str]) -> None:
    """Where argparse would refuse, print help or read something else, the decision is left to it."""
    options = plain_options([command, *words])
    if options is not None:
        assert {"command": command, **options} == referee([command, *words])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--version"],
        ["once"],
        ["check", "--interval", "1"],
        ["serve", "--help"],
        ["serve", "more"],
        ["serve", "--interval"],
        ["serve", "--interval", "-1"],
        ["serve", "--interval", "--window"],
        ["serve", "--int", "1"],
        ["serve", "-i", "1"],
        ["serve", "--nonsense=1"],
        ["serve", "--", "--interval", "1"],
        ["--interval", "1", "serve"],
    ],
)
def test_what_is_not_plain_is_left_to_argparse(argv: list[str]) -> None:
    """Other commands, help, and all that is or could be a mistake is not read."""
    assert plain_options(argv) is None


def test_an_option_that_is_given_twice() -> None:
    """Of an option the last value counts, of a repeatable one all do."""
    options = plain_options(
        ["serve", "--interval", "1", "--listen", "a:1", "--interval=2", "--listen=b:2"]
    )
    assert options is not None
    assert (options["interval"], options["listen"]) == ("2", ["a:1", "b:2"])
    assert set(options) == {setting.name for setting in SETTINGS}
    assert options["config"] is None
