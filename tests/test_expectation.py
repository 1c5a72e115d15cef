"""How many GPUs a host should have: what is remembered, where, and what happens when that fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import pytest

from ollama_metrics.expectation import FILE_NAME, Expectation


class Memory:
    """A state directory and what was logged of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / FILE_NAME
        self.log: list[tuple[str, str]] = []

    def expectation(self, fixed: Optional[int] = None, read_only: bool = False) -> Expectation:
        self.now = 0.0
        return Expectation(
            fixed,
            str(self.directory),
            lambda level, sentence: self.log.append((level, sentence)),
            read_only=read_only,
            clock=lambda: self.now,
        )

    def note(self, content: bytes) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(content)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "state" / "ollama-metrics")


def test_a_host_that_never_had_a_gpu_expects_none(memory: Memory) -> None:
    """Without a note nothing is expected, nothing is said and nothing is written."""
    assert memory.expectation().count == 0
    assert memory.log == []
    assert not memory.directory.exists()


def test_what_was_seen_is_remembered_by_the_next_instance(memory: Memory) -> None:
    """The number outlives the process, in a directory that is made for it."""
    memory.expectation().saw(4)
    assert memory.file.read_text() == "4\n"
    assert memory.expectation().count == 4
    assert memory.log == []


def test_the_number_only_grows(memory: Memory) -> None:
    """Fewer GPUs than before change nothing, more do."""
    expectation = memory.expectation()
    counts = []
    for seen in (2, 1, 0, 3, 2):
        expectation.saw(seen)
        counts.append((expectation.count, memory.expectation().count))
    assert counts == [(2, 2), (2, 2), (2, 2), (3, 3), (3, 3)]


def test_what_is_known_is_not_written_again(memory: Memory) -> None:
    """Seeing the same number again touches no file."""
    memory.note(b"2\n")
    before = memory.file.stat()
    memory.expectation().saw(2)
    after = memory.file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("note", [b"3", b"3\n", b" 3 \n", b"3\n\n"])
def test_a_note_may_have_been_written_by_hand(memory: Memory, note: bytes) -> None:
    """White space around the number does not matter."""
    memory.note(note)
    assert memory.expectation().count == 3
    assert memory.log == []


@pytest.mark.parametrize(
    "note",
    [
        *(b"", b"\n", b"four\n", b"\xff\xfe", b"\0\0\0\0", b"2.0\n", b"1 2\n"),
        *(b"0\n", b"-1\n", b"257\n", b"9" * 31, b"9" * 5000, b"4" + b"x" * 10_000_000),
    ],
)
def test_a_broken_note_still_says_that_there_were_gpus(memory: Memory, note: bytes) -> None:
    """A note that cannot be used is one warning, and at least one GPU is expected."""
    memory.note(note)
    assert memory.expectation().count == 1
    ((level, sentence),) = memory.log
    assert level == "warning"
    assert str(memory.file) in sentence
    assert "at least one GPU is expected" in sentence


def test_a_note_that_cannot_be_read_counts_as_broken(memory: Memory) -> None:
    """Where something is that cannot be read, at least one GPU is expected."""
    memory.file.mkdir(parents=True)
    assert memory.expectation().count == 1
    assert [level for level, _ in memory.log] == ["warning"]


def test_a_state_directory_that_is_none_holds_no_note(memory: Memory) -> None:
    """Where the directory is a file, no GPU was ever noted: nothing is expected until one is seen."""
    memory.directory.parent.mkdir(parents=True)
    memory.directory.write_text("not a directory")
    expectation = memory.expectation()
    assert (expectation.count, memory.log) == (0, [])
    expectation.saw(1)
    assert expectation.count == 1
    assert [level for level, _ in memory.log] == ["warning"]


def test_a_broken_note_is_mended_by_more_gpus(memory: Memory) -> None:
    """As soon as a GPU is seen a good note replaces a broken one."""
    memory.note(b"garbage")
    memory.expectation().saw(2)
    assert memory.file.read_text() == "2\n"
    memory.note(b"garbage")
    memory.expectation().saw(1)
    assert memory.file.read_text() == "1\n"


def test_what_cannot_be_written_is_warned_of_once(memory: Memory) -> None:
    """Without a writable directory the number holds for this process, with one warning however often it grows."""
    memory.directory.parent.mkdir(parents=True)
    memory.directory.write_text("in the way")
    expectation = memory.expectation()
    for seen in (1, 2, 3):
        expectation.saw(seen)
    assert expectation.count == 3
    ((level, sentence),) = memory.log
    assert level == "warning"
    assert "cannot be remembered across restarts" in sentence


def test_what_could_not_be_written_is_tried_again_each_minute(memory: Memory) -> None:
    """A disk that is full or a path in the way costs the note only for as long as it lasts."""
    memory.directory.parent.mkdir(parents=True)
    memory.directory.write_text("in the way")
    expectation = memory.expectation()
    expectation.saw(2)
    memory.directory.unlink()
    memory.now = 59.0
    expectation.saw(2)
    assert not memory.file.exists()
    memory.now = 60.0
    expectation.saw(2)
    assert memory.file.read_text() == "2\n"


def test_a_pipe_in_the_place_of_the_note_does_not_hang(memory: Memory) -> None:
    """What is no regular file is not waited for: at least one GPU is expected."""
    memory.directory.mkdir(parents=True)
    os.mkfifo(memory.file)
    assert memory.expectation().count == 1
    assert "it is no file" in memory.log[0][1]


def test_writing_leaves_the_note_and_nothing_else(memory: Memory) -> None:
    """No scratch file stays behind."""
    expectation = memory.expectation()
    expectation.saw(1)
    expectation.saw(2)
    assert os.listdir(memory.directory) == [FILE_NAME]


def test_a_write_that_fails_leaves_no_scratch_file(memory: Memory) -> None:
    """Nor does one when the note cannot be replaced."""
    memory.file.mkdir(parents=True)
    memory.expectation().saw(5)
    assert os.listdir(memory.directory) == [FILE_NAME]
    assert [level for level, _ in memory.log] == ["warning", "warning"]


def test_the_note_is_replaced_and_never_rewritten(memory: Memory) -> None:
    """Who has the old note open goes on reading the whole old one: the new one is another file."""
    expectation = memory.expectation()
    expectation.saw(1)
    with open(memory.file) as old:
        expectation.saw(2)
        assert old.read() == "1\n"
    assert memory.file.read_text() == "2\n"


@pytest.mark.parametrize("fixed", [0, 1, 8])
def test_a_fixed_number_leaves_the_note_alone(memory: Memory, fixed: int) -> None:
    """What the operator says holds: the note is neither read nor written, whatever is seen."""
    memory.note(b"garbage")
    expectation = memory.expectation(fixed)
    expectation.saw(16)
    assert expectation.count == fixed
    assert memory.file.read_bytes() == b"garbage"
    assert memory.log == []


def test_read_only_writes_nothing(memory: Memory) -> None:
    """`once` remembers what it sees for itself alone."""
    expectation = memory.expectation(read_only=True)
    expectation.saw(4)
    assert expectation.count == 4
    assert not memory.directory.exists()


def test_read_only_reads_the_note(memory: Memory) -> None:
    """`once` expects what the daemon has remembered."""
    memory.note(b"4\n")
    assert memory.expectation(read_only=True).count == 4


def test_without_a_directory_the_process_remembers(memory: Memory) -> None:
    """A user without a home has an expectation as long as the process lives, and is told so."""
    expectation = Expectation(None, None, lambda *said: memory.log.append(said))
    assert expectation.count == 0
    expectation.saw(2)
    expectation.saw(1)
    assert expectation.count == 2
    ((level, sentence),) = memory.log
    assert level == "warning"
    assert "there is no state directory; set --state-dir" in sentence


def test_an_operator_is_told_how_to_accept_fewer(memory: Memory) -> None:
    """The clause behind a reason names the file to delete, or the option where there is no file."""
    assert f"delete {memory.file} and restart" in memory.expectation().how_to_change
    assert "set --expected-gpus" in memory.expectation().how_to_change
    assert "set --expected-gpus to the number left" in memory.expectation(4).how_to_change
    assert "delete" not in memory.expectation(4).how_to_change
