"""A log is followed from its end, through whatever happens to it, and no line is lost or read twice."""

from __future__ import annotations

import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Optional, Union

import psutil
import pytest
from conftest import missing
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import Machine, why_not

import ollama_metrics
from ollama_metrics.errors import CollectorError
from ollama_metrics.log_follower import LONGEST_LINE, PIECE_BYTES, ROTATED_SECONDS, FileFollower
from ollama_metrics.log_journal import JournalFollower
from ollama_metrics.log_tally import LogTally

ACCESS = '[GIN] 2026/11/20 - 10:11:12 | 200 |  1.2s |  127.0.0.1 | POST     "/api/chat"'


def drain(follower: Union[FileFollower, JournalFollower]) -> tuple[bytes, Optional[str]]:
    """What one call of `read` gives, and the error that it ended with."""
    blocks: list[bytes] = []
    try:
        for block in follower.read():
            assert block.endswith(b"\n")
            blocks.append(block)
    except CollectorError as error:
        return b"".join(blocks), str(error)
    return b"".join(blocks), None


def lines(follower: Union[FileFollower, JournalFollower]) -> list[bytes]:
    """The lines of one call of `read`, which goes well."""
    got, error = drain(follower)
    assert error is None
    return got.splitlines()


class Log:
    """A log file, its follower and a clock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ollama.log"
        self.now = 1000.0
        self.follower = self.following()

    def following(self, most: int = 32 << 20) -> FileFollower:
        self.follower = FileFollower(str(self.path), lambda: self.now, most)
        return self.follower

    def write(self, *texts: str) -> None:
        self.write_bytes("".join(text + "\n" for text in texts).encode())

    def write_bytes(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)

    def begin(self) -> None:
        """The file is there, with something old in it, and is followed."""
        self.write("old")
        assert lines(self.follower) == []


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    yield made
    made.follower.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- a file that grows -------------------------------------------------------------------------------------------------


def test_nothing_is_replayed(log: Log) -> None:
    """What is in the file at the first look is never read; what comes then is, once."""
    log.write("old", "older")
    assert lines(log.follower) == []
    log.write("new")
    assert lines(log.follower) == [b"new"]
    assert lines(log.follower) == []


def test_a_file_that_comes_later_is_read_from_its_beginning(log: Log) -> None:
    """A log that does not exist yet is an error that says what to do, and none of its lines is lost."""
    got, error = drain(log.follower)
    assert got == b""
    assert error is not None
    assert error.startswith(f"{log.path} does not exist; ")
    log.write("first")
    assert lines(log.follower) == [b"first"]


def test_a_line_waits_for_its_end(log: Log) -> None:
    """A line that is not finished is given when it is, and only then."""
    log.begin()
    log.write_bytes(b"whole\nbeg")
    assert lines(log.follower) == [b"whole"]
    log.write_bytes(b"un")
    assert lines(log.follower) == []
    log.write_bytes(b" here\n")
    assert lines(log.follower) == [b"begun here"]


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_line_without_an_end_is_cut(log: Log, pieces: int) -> None:
    """What a line has above its bound is dropped, and it counts as one."""
    log.begin()
    for _ in range(pieces):
        log.write_bytes(b"x" * (1_000_000 // pieces))
        log_lines = lines(log.follower)
        if log_lines:
            assert log_lines == [b"x" * LONGEST_LINE]
    assert lines(log.follower) == []
    log.write_bytes(b"tail\nnext\n")
    assert lines(log.follower) == [b"next"]


def test_bytes_that_are_no_text_do_no_harm(log: Log) -> None:
    """NUL bytes and invalid UTF-8 come through as they are."""
    log.begin()
    log.write_bytes(b"\0\0\xff\xfe\nnext\n")
    assert lines(log.follower) == [b"\0\0\xff\xfe", b"next"]


def test_a_call_is_bounded_and_the_next_goes_on(log: Log) -> None:
    """A log that has grown by much is read in several calls, each of a bounded size, whole."""
    follower = log.following(most=3 * PIECE_BYTES)
    log.begin()
    written = b"".join(b"line %d\n" % number for number in range(100_000))
    log.write_bytes(written)
    parts = []
    while True:
        part, error = drain(follower)
        assert error is None
        if not part:
            break
        assert len(part) <= 4 * PIECE_BYTES
        parts.append(part)
    assert len(parts) > 4
    assert b"".join(parts) == written


# -- rotation ----------------------------------------------------------------------------------------------------------


def test_a_renamed_file_is_read_to_its_end(log: Log) -> None:
    """Lines that were written before a rename and create are read, and those of the new file from its beginning."""
    log.begin()
    log.write("before")
    log.path.rename(log.path.with_suffix(".1"))
    log.write("after")
    assert sorted(lines(log.follower)) == [b"after", b"before"]
    assert lines(log.follower) == []


def test_a_writer_that_reopens_late_loses_nothing(log: Log) -> None:
    """What is written into the old file after the new one was seen is read for as long as it comes."""
    log.begin()
    log.now += 3600
    with log.path.open("ab", buffering=0) as late:
        log.path.rename(log.path.with_suffix(".1"))
        log.write("new")
        assert lines(log.follower) == [b"new"]
        for number in range(5):
            log.now += ROTATED_SECONDS - 1
            assert lines(log.follower) == []
            late.write(b"late %d\n" % number)
            assert lines(log.follower) == [b"late %d" % number]
        late.write(b"half")
        assert lines(log.follower) == []
    log.now += ROTATED_SECONDS
    assert lines(log.follower) == [b"half"]


def test_a_rotated_file_is_let_go(log: Log) -> None:
    """A file that was rotated away and grows no more is closed after a minute, and rotations in a row are bounded."""
    log.begin()
    before = open_files()
    for number in range(50):
        log.path.rename(log.path.with_suffix(f".{number}"))
        log.write(f"in {number}")
        assert lines(log.follower) == [b"in %d" % number]
    assert open_files() <= before + 9
    log.now += ROTATED_SECONDS
    assert lines(log.follower) == []
    assert open_files() == before
    log.follower.close()
    assert open_files() == before - 1


def test_a_removed_file_comes_again(log: Log) -> None:
    """While a file is gone that is an error, its last lines are read all the same, and its successor from its start."""
    log.begin()
    with log.path.open("ab", buffering=0) as writer:
        log.path.unlink()
        writer.write(b"into the void\n")
        got, error = drain(log.follower)
        assert got == b"into the void\n"
        assert error is not None
        assert "does not exist" in error
    log.write("again")
    assert lines(log.follower) == [b"again"]


def test_a_truncated_file_is_read_from_its_start(log: Log) -> None:
    """After copytruncate what is written is read, also when it has become longer than it was before."""
    log.begin()
    log.write("one")
    assert lines(log.follower) == [b"one"]
    os.truncate(log.path, 0)
    assert lines(log.follower) == []
    log.write("two")
    assert lines(log.follower) == [b"two"]
    os.truncate(log.path, 0)
    log.write("three, and this is much more than there was before the file was truncated")
    (got,) = lines(log.follower)
    assert got.startswith(b"three, and")
    os.truncate(log.path, 0)
    log.write("short")
    assert lines(log.follower) == [b"short"]


def test_a_line_that_was_cut_by_a_truncation_is_one(log: Log) -> None:
    """What was begun before a truncation is not glued to what comes after it."""
    log.begin()
    log.write_bytes(b"begun")
    assert lines(log.follower) == []
    os.truncate(log.path, 0)
    log.write("new")
    assert lines(log.follower) == [b"begun", b"new"]


def test_a_writer_that_does_not_append_leaves_a_hole(log: Log) -> None:
    """`ollama serve >ollama.log` goes on at its old place after a truncation; the hole before it is not read."""
    with log.path.open("wb", buffering=0) as writer:
        writer.truncate(1 << 36)
        writer.seek(0, os.SEEK_END)
        writer.write(b"old\n")
        assert lines(log.follower) == []
        os.truncate(log.path, 0)
        writer.write(f"{ACCESS}\n".encode())
        (got,) = lines(log.follower)
        assert got.lstrip(b"\0") == ACCESS.encode()
        assert len(got) < 10_000
        tally = LogTally()
        tally.lines(got)
        assert tally.reading(0.0).requests[0].requests_total == 1
        writer.write(b"next\n")
        assert lines(log.follower) == [b"next"]


def test_a_symbolic_link_is_followed(log: Log, tmp_path: Path) -> None:
    """Kubernetes' logs are links: where one is set to another file, both are read whole."""
    for name in ("0.log", "1.log"):
        (tmp_path / name).write_text("old\n")
    log.path.symlink_to("0.log")
    assert lines(log.follower) == []
    with (tmp_path / "0.log").open("a") as file:
        file.write("last\n")
    (tmp_path / "1.log").write_text("first\n")
    link = tmp_path / "link"
    link.symlink_to("1.log")
    link.replace(log.path)
    assert sorted(lines(log.follower)) == [b"first", b"last"]


@pytest.mark.parametrize("how", ["rename", "copytruncate"])
def test_a_hundred_thousand_lines_with_a_rotation_are_counted_exactly(log: Log, how: str) -> None:
    """100,000 lines, rotated in the middle and between two reads, are 100,000 requests and not one line more."""
    log.begin()
    tally = LogTally()

    def catch_up() -> None:
        for block in log.follower.read():
            tally.lines(block)

    some = (f"{ACCESS}\n" * 1000).encode()
    with log.path.open("ab", buffering=0) as first:
        writer = first
        for number in range(100):
            writer.write(some[: len(some) // 3])  # a read sees a line's beginning
            if number % 3 == 0:
                catch_up()
            writer.write(some[len(some) // 3 :])
            if number == 50:
                if how == "copytruncate":
                    catch_up()
                    os.truncate(log.path, 0)
                else:
                    log.path.rename(log.path.with_suffix(".1"))
                    log.path.touch()
            if number == 60 and how == "rename":
                writer = log.path.open("ab", buffering=0)
        catch_up()
        writer.close()
    reading = tally.reading(0.0)
    assert [one.requests_total for one in reading.requests] == [100_000]
    assert reading.log_lines_total == 100_000
    assert reading.log_lines_unparsed_total == 0


ACTIONS = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([b"\n", b"read", b"rename", b"remove"]),
        st.integers(1, 200_000).map(lambda size: b"x" * size),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(ACTIONS)
def test_whatever_is_written_comes_out_once(actions: list[bytes]) -> None:
    """Any bytes, any rotations: as many lines come out as went in, and the tally counts each."""
    expected = 0
    tally = LogTally()
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder))
        log.begin()
        written = b""

        def catch_up() -> None:
            tally.lines(drain(log.follower)[0])

        def of_this_file() -> int:
            return written.count(b"\n") + (not written.endswith(b"\n") and written != b"")

        for number, action in enumerate(actions):
            if action == b"read":
                catch_up()
            elif action in (b"rename", b"remove"):
                catch_up()
                if action == b"rename":
                    log.path.rename(log.path.with_suffix(f".{number}"))
                else:
                    log.path.unlink()
                log.path.touch()
                expected, written = expected + of_this_file(), b""
            else:
                log.write_bytes(action)
                written += action
        catch_up()
        log.path.rename(log.path.with_suffix(".last"))
        log.path.touch()
        catch_up()
        log.now += ROTATED_SECONDS
        catch_up()
        expected += of_this_file()
        log.follower.close()
    # A line that was cut has lost its end, never itself.
    assert tally.reading(0.0).log_lines_total == expected


# -- what cannot be read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_only_a_regular_file_is_followed(log: Log, kind: str) -> None:
    """A pipe, a folder or a device is an error that says what to do: nothing waits, nothing is opened."""
    if kind == "fifo":
        os.mkfifo(log.path)
    elif kind == "folder":
        log.path.mkdir()
    else:
        log.path.symlink_to("/dev/zero")
    before = open_files()
    for _ in range(3):
        assert drain(log.follower) == (
            b"",
            f"{log.path} is no regular file; name the file that Ollama's log is written to",
        )
    assert open_files() == before


def test_a_file_that_is_replaced_by_something_else_is_kept(log: Log) -> None:
    """Where a pipe takes the log's name, what the old file still gets is read."""
    log.begin()
    with log.path.open("ab", buffering=0) as writer:
        log.path.unlink()
        os.mkfifo(log.path)
        writer.write(b"last\n")
        got, error = drain(log.follower)
    assert got == b"last\n"
    assert error is not None
    assert "no regular file" in error


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's rights")
def test_without_permission_the_error_says_so(log: Log) -> None:
    """A file that may not be read is an error with the remedy, and is read from its end when it may."""
    log.write("old")
    os.chmod(log.path, stat.S_IRUSR)
    for folder in log.path.parents:
        if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            os.chmod(folder, 0o755)
    os.seteuid(65534)
    try:
        got, error = drain(log.follower)
    finally:
        os.seteuid(0)
    assert got == b""
    assert error is not None
    assert error.startswith(f"{log.path} may not be read; give the service's user the right")
    assert lines(log.follower) == []
    log.write("new")
    assert lines(log.follower) == [b"new"]


# -- the journal -------------------------------------------------------------------------------------------------------


def wait_for_end(pid: int) -> None:
    gone = os.pidfd_open(pid)
    ended, _, _ = select.select([gone], [], [], 30)
    os.close(gone)
    assert ended


class Journal:
    """A stand-in for journalctl that carries out a script, and its follower with a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 1000.0
        self.program, self.ready = folder / "journalctl", folder / "ready"
        self.go = folder / "go"
        os.mkfifo(self.ready)
        os.mkfifo(self.go)
        self.systemctl, self.asked = folder / "systemctl", folder / "asked"
        self.answer = folder / "answer"
        self.follower = JournalFollower(
            "ollama.service", [str(self.program)], lambda: self.now, systemctl=[str(self.systemctl)]
        )

    def knows(self, script: str) -> None:
        """What systemctl does when `answered` lets it; `asked` has a line for each time that it was asked.

        Without this there is none.
        """
        os.mkfifo(self.answer)
        self.systemctl.write_text(
            f'#!/bin/sh\necho "$@" >>"{self.asked}"\nread _ <"{self.answer}"\n{script}\n'
        )
        self.systemctl.chmod(0o755)

    def answered(self) -> None:
        """Let systemctl answer, and wait until it has ended."""
        self.answer.write_text("on\n")
        (child,) = [one for one in psutil.Process().children() if one.name() == "systemctl"]
        wait_for_end(child.pid)

    def does(self, script: str) -> None:
        """`ready` in the script is what `wait` waits for, `step` waits for `on`."""
        text = (
            f'#!/bin/sh\nready() {{ : >"{self.ready}"; }}\nstep() {{ read _ <"{self.go}"; }}\n'
            f"step\n{script}\n"
        )
        scratch = self.folder / "scratch"
        scratch.write_text(text)
        scratch.chmod(0o755)
        scratch.replace(self.program)

    def begin(self) -> None:
        """Start it, and wait until it says that it is ready."""
        self.start()
        self.wait()

    def start(self) -> None:
        """Start it; it does nothing before the read that starts it has returned."""
        assert drain(self.follower) == (b"", None)
        self.go.write_text("on\n")

    def wait(self) -> None:
        self.ready.read_bytes()

    def on(self) -> None:
        """Let it go on to where it is ready again."""
        self.go.write_text("on\n")
        self.wait()

    def all(self) -> tuple[bytes, str]:
        """What comes until it has ended, and the error then."""
        got = b""
        (child,) = psutil.Process().children()
        wait_for_end(child.pid)
        while True:
            more, error = drain(self.follower)
            got += more
            if error is not None:
                return got, error


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made.follower.close()
    assert psutil.Process().children() == []


def test_journalctl_is_asked_for_what_comes(journal: Journal) -> None:
    """It is told to follow the unit from the end, and its lines are given as they come."""
    journal.does(
        'echo "$@"; ready; step; echo two; printf beg; ready; step; echo un; ready; exec sleep 600'
    )
    journal.begin()
    assert lines(journal.follower) == [
        b"--follow --lines=0 --output=cat --no-pager --unit=ollama.service"
    ]
    assert lines(journal.follower) == []
    journal.on()
    assert lines(journal.follower) == [b"two"]
    journal.on()
    assert lines(journal.follower) == [b"begun"]


@pytest.mark.parametrize("begins", ["-- Journal begins at Fri 2026. --", "-- Logs begin at Fri --"])
def test_what_an_old_journalctl_begins_with_is_no_line(journal: Journal, begins: str) -> None:
    """The line that versions before 251 say first is not Ollama's."""
    journal.does(f'echo "{begins}"; echo one; ready; exec sleep 600')
    journal.begin()
    assert lines(journal.follower) == [b"one"]


def test_a_call_of_the_journal_is_bounded(tmp_path: Path) -> None:
    """A journal that never stops does not keep a read from returning."""
    (tmp_path / "yes").write_text("#!/bin/sh\nexec yes\n")
    (tmp_path / "yes").chmod(0o755)
    follower = JournalFollower("ollama.service", [str(tmp_path / "yes")], most=1 << 20)
    total = 0
    while total < 10 << 20:
        got, error = drain(follower)
        assert error is None
        assert len(got) <= (1 << 20) + PIECE_BYTES
        total += len(got)
    follower.close()
    assert psutil.Process().children() == []


def test_when_journalctl_ends_that_is_said_and_it_is_started_again(journal: Journal) -> None:
    """Its last lines are given, then the error with its complaint; after a pause that doubles it runs again."""
    journal.does("echo one; printf two; echo 'Failed to do: it' >&2; echo more >&2; ready; exit 3")
    journal.begin()
    got, error = journal.all()
    assert got == b"one\ntwo\n"
    assert error == (
        "journalctl ended with status 3: Failed to do: it;"
        " requests are not counted until it has been started again"
    )
    for pause in (1.0, 2.0, 4.0):
        journal.now += pause - 0.5
        assert drain(journal.follower) == (b"", error)
        assert psutil.Process().children() == []
        journal.now += 0.5
        journal.begin()
        journal.all()
    journal.does("echo three; ready; exec sleep 600")
    journal.now += 8.0
    journal.begin()
    assert lines(journal.follower) == [b"three"]


def test_a_journalctl_that_ran_long_is_started_again_soon(journal: Journal) -> None:
    """The pause begins anew after a run of more than half a minute."""
    journal.does("ready; exit 1")
    for _ in range(5):
        journal.begin()
        journal.now += 31.0
        journal.all()
        journal.now += 1.0


@pytest.mark.parametrize(
    "said",
    [
        "Hint: You are currently not seeing messages from other users and the system.",
        "No journal files were opened due to insufficient permissions.",
    ],
)
def test_a_journal_that_may_not_be_read_is_an_error(journal: Journal, said: str) -> None:
    """journalctl goes on without the messages of the system: that looks idle, so it is an error with the remedy."""
    journal.does(f'echo "{said}" >&2; ready; exec sleep 600')
    journal.begin()
    assert drain(journal.follower) == (
        b"",
        "journalctl may not read the journal; add the service's user to the group"
        " systemd-journal and restart the agent",
    )
    assert psutil.Process().children() == []


def test_complaints_are_bounded(journal: Journal) -> None:
    """However much and whatever it complains, the error is a short line of text, and no read waits."""
    journal.does("printf 'a\\033\\377' >&2; ready; yes x | tr -d '\\n' >&2")
    journal.begin()
    for _ in range(20):
        assert drain(journal.follower) == (b"", None)
    (child,) = psutil.Process().children()
    child.kill()
    _, error = journal.all()
    assert error.startswith("journalctl ended with status -9: a")
    assert len(error) < 350
    assert error.isprintable()


def test_without_journalctl_the_error_says_what_to_do(tmp_path: Path) -> None:
    """Neither a missing program nor one that cannot be executed raises anything else."""
    now = 0.0
    follower = JournalFollower("ollama.service", ["/nowhere/journalctl"], lambda: now)
    missing_program = "journalctl is not installed; follow a file instead (file:/PATH)"
    assert drain(follower) == (b"", missing_program)
    before = open_files()
    for _ in range(5):
        now += 100.0
        assert drain(follower) == (b"", missing_program)
    assert open_files() == before
    (tmp_path / "journalctl").write_text("")
    follower = JournalFollower("ollama.service", [str(tmp_path / "journalctl")])
    _, error = drain(follower)
    assert error is not None
    assert "cannot be started (Permission denied)" in error


def test_it_inherits_no_signals_and_no_files(journal: Journal) -> None:
    """What the agent's thread blocks or ignores is not so in journalctl, which has none of the agent's files open."""
    (journal.folder / "mine").touch()
    mine = (journal.folder / "mine").open()
    read, write = os.pipe()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    ignored = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGRTMIN + 3]
    before = [signal.signal(number, signal.SIG_IGN) for number in ignored]
    try:
        journal.does("exec grep -E '^Sig(Blk|Ign)' /proc/self/status")
        journal.start()
        got, _ = journal.all()
        own = 0b11 << 31  # of the C library
        blocked_there, ignored_there = (int(word, 16) & ~own for word in got.split()[1::2])
        assert (blocked_there, ignored_there) == (0, 0)
        journal.does("exec readlink /proc/self/fd/*")
        journal.now += 100.0
        journal.start()
        got, _ = journal.all()
        assert b"/dev/null" in got.splitlines()[0]
        for name in (mine.name, f"pipe:[{os.fstat(read).st_ino}]"):
            assert os.fsencode(name) not in got
    finally:
        for number, handler in zip(ignored, before):
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(read)
        os.close(write)
        mine.close()


def test_a_unit_that_systemd_does_not_know_is_an_error(journal: Journal) -> None:
    """A misspelt unit would count nothing for ever: systemd is asked once, and followed it is until a line comes."""
    journal.knows("echo not-found")
    journal.does("ready; step; echo one; ready; exec sleep 600")
    journal.begin()
    journal.answered()
    for _ in range(3):
        got, error = drain(journal.follower)
        assert got == b""
        assert error is not None
        assert error.startswith("no unit of that name is known to systemd: ollama.service; ")
    journal.on()
    assert lines(journal.follower) == [b"one"]
    assert lines(journal.follower) == []
    assert journal.asked.read_text() == "show --property=LoadState --value ollama.service\n"


@pytest.mark.parametrize(
    "script", ["echo loaded", "echo masked", "echo 'it cannot be told' >&2; exit 1", "kill -9 $$"]
)
def test_where_systemd_knows_or_cannot_tell_nothing_is_said(journal: Journal, script: str) -> None:
    """Only `not-found` is an error; there is no systemd in a container, say."""
    journal.knows(script)
    journal.does("ready; exec sleep 600")
    journal.begin()
    journal.answered()
    assert lines(journal.follower) == []
    assert len(psutil.Process().children()) == 1  # journalctl's; systemctl has ended


@pytest.mark.parametrize("end", ["time", "close", "line"])
def test_systemd_is_not_waited_for(journal: Journal, end: str) -> None:
    """A systemctl that hangs keeps no read from returning, and is ended by its time, by close() and by a line."""
    before = open_files()
    journal.knows("echo too late")
    journal.does("ready; step; echo one; ready; exec sleep 600")
    journal.begin()
    journal.now += 9.0
    assert lines(journal.follower) == []
    assert len(psutil.Process().children()) == 2
    if end == "time":
        journal.now += 1.0
        assert lines(journal.follower) == []
    if end == "line":
        journal.on()
        assert lines(journal.follower) == [b"one"]
    if end != "close":
        assert len(psutil.Process().children()) == 1
    journal.follower.close()
    assert psutil.Process().children() == []
    assert open_files() == before


def test_systemd_is_asked_once(journal: Journal) -> None:
    """Not by each journalctl that is started because one has ended, but again after a close."""
    journal.knows("echo not-found")
    journal.does("ready; step; exit 3")
    journal.begin()
    journal.answered()
    _, error = drain(journal.follower)
    assert error is not None
    assert error.startswith("no unit of that name")
    journal.go.write_text("on\n")
    (child,) = psutil.Process().children()
    wait_for_end(child.pid)
    for _ in range(3):
        _, error = drain(journal.follower)
        assert error is not None
        assert error.startswith("journalctl ended with status 3")
        journal.now += 100.0
        journal.does("ready; exit 3")
        _, error = drain(journal.follower)
        assert error is not None
        assert error.startswith("no unit of that name")  # it has not come by that
        journal.go.write_text("on\n")
        journal.wait()
        (child,) = psutil.Process().children()
        wait_for_end(child.pid)
    assert len(journal.asked.read_text().splitlines()) == 1
    journal.follower.close()
    journal.begin()
    journal.answered()
    assert len(journal.asked.read_text().splitlines()) == 2


def test_close_ends_what_will_not_end(journal: Journal) -> None:
    """A child that ignores SIGTERM is killed; no process and no file is left."""
    before = open_files()
    journal.does("trap '' TERM; ready; while :; do sleep 0.01; done")
    journal.begin()
    journal.follower.close()
    journal.follower.close()
    assert psutil.Process().children() == []
    assert open_files() == before


def test_it_can_be_followed_again_after_a_close(journal: Journal) -> None:
    """A read after a close starts another one."""
    journal.does("echo one; ready; exec sleep 600")
    for _ in range(2):
        journal.begin()
        assert lines(journal.follower) == [b"one"]
        journal.follower.close()


def test_the_real_journalctl_does_not_outlive_the_agent() -> None:
    """An agent that is killed takes its journalctl along, though nothing is logged."""
    if not Path("/usr/bin/journalctl").exists():
        missing("journalctl")
    agent = (
        "import time\n"
        "from ollama_metrics.log_journal import JournalFollower\n"
        "follower = JournalFollower('nothing-of-this-name.service')\n"
        "for _ in follower.read(): pass\n"
        "print('started', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", agent],
        stdout=subprocess.PIPE,
        cwd=Path(ollama_metrics.__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        (child,) = [
            one
            for one in psutil.Process(process.pid).children()
            if one.name() == "journalctl"  # and not systemctl, which ends by itself
        ]
        gone = os.pidfd_open(child.pid)
        process.kill()
    ended, _, _ = select.select([gone], [], [], 30)
    os.close(gone)
    assert ended


# -- a real journal ----------------------------------------------------------------------------------------------------

FOLLOW = """
import os, subprocess, sys, time
from ollama_metrics.errors import CollectorError
from ollama_metrics.log_journal import JournalFollower

follower = JournalFollower("talks.service")
said = lambda: sum(block.count(b"said") for block in follower.read())

def start():
    subprocess.run(["systemctl", "start", "talks"], check=True)
    subprocess.run(["journalctl", "--sync"], check=True)

def caught_up(count, deadline):
    while count > 0 and time.monotonic() < deadline:
        count -= said()
        time.sleep(0.01)
    return count

try:
    said()
    if sys.argv[1:]:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            said()
            time.sleep(0.01)
        sys.exit("it was not refused")
    # Until journalctl has come so far that it follows, what is said is not for it.
    for _ in range(100):
        start()
        if caught_up(1, time.monotonic() + 0.5) == 0:
            break
    for _ in range(5):
        start()
    print(caught_up(5, time.monotonic() + 20))
except CollectorError as error:
    print(error)
follower.close()
"""


@pytest.mark.booted
def test_a_real_journal_is_followed_and_not_replayed() -> None:
    """Each line of the unit that comes is read once, none of before; a user without the group is told of it."""
    reason = why_not()
    if reason is not None:
        missing(f"a bootable systemd ({reason})")
    with Machine() as machine:
        target = machine.path("/opt/followed")
        target.mkdir()
        shutil.copytree(Path(ollama_metrics.__file__).parent, target / "ollama_metrics")
        machine.path("/etc/systemd/system/talks.service").write_text(
            "[Service]\nType=oneshot\nExecStart=/bin/echo said\n"
        )
        machine.path("/etc/systemd/system/quiet.service").write_text(
            "[Service]\nType=oneshot\nExecStart=/bin/echo said\n"
        )
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "talks")
        machine.run("systemctl", "start", "talks")
        follow = ("python3", "-c", FOLLOW)
        env = {"PYTHONPATH": "/opt/followed"}
        assert machine.run(*follow, env=env).stdout == "0\n"
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        told = machine.run(*nobody, *follow, "wait", env=env).stdout
        assert told.startswith("journalctl may not read the journal; add the service's user")


MISSPELT = """
import time
from ollama_metrics.errors import CollectorError
from ollama_metrics.log_journal import JournalFollower

follower = JournalFollower("nothing-of-this-name.service")
end = time.monotonic() + 20
try:
    while time.monotonic() < end:
        for _ in follower.read(): pass
        time.sleep(0.01)
except CollectorError as error:
    print(error)
follower.close()
"""


@pytest.mark.booted
def test_a_real_systemd_does_not_know_a_misspelt_unit() -> None:
    """A user who may read the journal is told by systemd that there is no such unit."""
    reason = why_not()
    if reason is not None:
        missing(f"a bootable systemd ({reason})")
    with Machine() as machine:
        target = machine.path("/opt/followed")
        target.mkdir()
        shutil.copytree(Path(ollama_metrics.__file__).parent, target / "ollama_metrics")
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--groups=systemd-journal")
        env = {"PYTHONPATH": "/opt/followed"}
        told = machine.run(*user, "python3", "-c", MISSPELT, env=env).stdout
    assert told.startswith("no unit of that name is known to systemd: nothing-of-this-name")
