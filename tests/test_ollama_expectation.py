"""Whether an Ollama is expected: by the operator's word or by memory, and what memory survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ollama_metrics.ollama_expectation import FILE_NAME, OllamaExpectation

URL = "http://127.0.0.1:11434"


def expectation(folder: Any, fixed: bool = False, url: str = URL, **more: Any) -> OllamaExpectation:
    said = more.pop("said", [])
    return OllamaExpectation(
        url, fixed, str(folder), lambda level, sentence: said.append(sentence), **more
    )


def test_a_host_that_never_had_one_expects_none(tmp_path: Path) -> None:
    """Without a note nothing is expected."""
    assert not expectation(tmp_path).expected


def test_once_it_has_answered_it_is_expected_across_restarts(tmp_path: Path) -> None:
    """The first answer is noted; an agent that starts later expects Ollama there."""
    first = expectation(tmp_path / "made")
    first.saw()
    assert first.expected
    assert expectation(tmp_path / "made").expected


def test_another_address_is_another_ollama(tmp_path: Path) -> None:
    """What answered at one address is not expected at another, until it answers there."""
    expectation(tmp_path).saw()
    elsewhere = expectation(tmp_path, url="http://127.0.0.1:1")
    assert not elsewhere.expected
    elsewhere.saw()
    assert expectation(tmp_path, url="http://127.0.0.1:1").expected


def test_the_operators_word_needs_no_memory(tmp_path: Path) -> None:
    """An Ollama that was named is expected, and nothing is written."""
    fixed = expectation(tmp_path, fixed=True)
    fixed.saw()
    assert fixed.expected
    assert list(tmp_path.iterdir()) == []


def test_reading_only_writes_nothing(tmp_path: Path) -> None:
    """`once` looks at the note and leaves none."""
    only = expectation(tmp_path, read_only=True)
    only.saw()
    assert only.expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"yes\n", b"x" * 5000])
def test_a_broken_note_still_says_that_there_was_one(tmp_path: Path, content: bytes) -> None:
    """It is only written when an Ollama has answered: what cannot be read expects one, and says so."""
    (tmp_path / FILE_NAME).write_bytes(content)
    said: list[str] = []
    broken = expectation(tmp_path, said=said)
    assert broken.expected
    assert "cannot be used" in said[0]
    broken.saw()
    assert (tmp_path / FILE_NAME).read_text() == URL + "\n"


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    """A note that is no file is a broken one."""
    (tmp_path / FILE_NAME).mkdir()
    assert expectation(tmp_path).expected


def test_what_cannot_be_written_is_said_once_and_tried_again(tmp_path: Path) -> None:
    """Without a place to write: one warning, a try a minute, and the note once it can be written."""
    now = [0.0]
    said: list[str] = []
    (tmp_path / "state").write_text("no folder")
    late = expectation(tmp_path / "state", said=said, clock=lambda: now[0])
    for moment in (0.0, 1.0, 61.0):
        now[0] = moment
        late.saw()
    assert len(said) == 1
    assert "cannot be remembered" in said[0]
    assert late.expected
    (tmp_path / "state").unlink()
    late.saw()
    assert not (tmp_path / "state").exists()
    now[0] = 122.0
    late.saw()
    assert (tmp_path / "state" / FILE_NAME).read_text() == URL + "\n"


def test_nowhere_to_remember() -> None:
    """Without a state directory it is remembered for as long as the agent runs."""
    said: list[str] = []
    lost = OllamaExpectation(URL, False, None, lambda level, sentence: said.append(sentence))
    assert not lost.expected
    lost.saw()
    assert lost.expected
    assert "--state-dir" in said[0]
