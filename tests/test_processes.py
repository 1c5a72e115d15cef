"""Ollama's processes are found in /proc: real ones of this test's, and folders of fixtures for what is rare."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ollama_metrics.errors import CollectorError
from ollama_metrics.ollama import Runner
from ollama_metrics.processes import cgroup_paths, owner_of, runners

BLOB = "sha256-" + "3f" * 32
OTHER = "sha256-" + "a0" * 32
MODELS = "/usr/share/ollama/.ollama/models/blobs"

# Starts a child with the arguments given, tells its pid, and ends with its standard input.
PARENT = """
import subprocess, sys, threading
def start():
    global child
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", *sys.argv[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    print(child.pid, flush=True)
    done.wait()
done = threading.Event()
thread = threading.Thread(target=start)
thread.start()
sys.stdin.read()
done.set()
thread.join()
child.stdin.close()
child.wait()
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends the processes and closes the sockets of a test."""
    with ExitStack() as stack:
        yield stack


def process(proc: Path, pid: int, parent: int = 1, *words: bytes, children: str = "") -> Path:
    """The folder of a process, as the kernel has it for one with a single thread."""
    folder = proc / str(pid)
    (folder / "task" / str(pid)).mkdir(parents=True)
    (folder / "fd").mkdir()
    (folder / "cmdline").write_bytes(b"".join(word + b"\0" for word in (b"ollama", *words)))
    (folder / "stat").write_text(f"{pid} (ollama) S {parent} {parent} {parent} 0 -1 4194560 1\n")
    (folder / "task" / str(pid) / "children").write_text(children)
    return folder


def served(proc: Path, *words: bytes) -> tuple[Runner, ...]:
    """The runners of a server (pid 10) whose one child (pid 20) has these arguments."""
    process(proc, 10, 1, b"serve", children="20 ")
    process(proc, 20, 10, *words)
    return runners(10, str(proc))


# -- who has a socket --------------------------------------------------------------------------------------------------


def test_the_owner_of_a_socket_is_found(stack: ExitStack) -> None:
    """The process with the listening socket among its descriptors is the owner, by the socket's inode."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    assert owner_of([os.fstat(server.fileno()).st_ino]) == os.getpid()


def test_another_process_is_found_by_its_socket(stack: ExitStack) -> None:
    """So is one that was started elsewhere."""
    other = stack.enter_context(
        subprocess.Popen(
            [
                *(sys.executable, "-c"),
                "import os, socket, sys; s = socket.create_server(('127.0.0.1', 0));"
                "print(os.fstat(s.fileno()).st_ino, flush=True); sys.stdin.read()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    assert other.stdout is not None
    assert owner_of([1, int(other.stdout.readline())]) == other.pid


def test_a_socket_that_nobody_has_has_no_owner() -> None:
    """Neither an unknown inode nor none at all leads to a process."""
    assert owner_of([(1 << 32) - 1]) is None
    assert owner_of([]) is None


def test_a_service_owns_what_process_1_has_passed_to_it(tmp_path: Path) -> None:
    """systemd keeps the sockets that it passes on: its copy is not the service."""
    for pid in (1, 30):
        (process(tmp_path, pid) / "fd" / "5").symlink_to("socket:[77]")
    assert owner_of([77], str(tmp_path)) == 30


def test_of_several_the_oldest_owns(tmp_path: Path) -> None:
    """A child that has inherited the socket is not the server."""
    for pid in (200, 31, 1000):
        (process(tmp_path, pid) / "fd" / "3").symlink_to("socket:[77]")
    assert owner_of([77], str(tmp_path)) == 31


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    """A process that ends meanwhile, descriptors that are something else, and what is no process are no obstacle."""
    (tmp_path / "10").mkdir()
    (process(tmp_path, 11) / "fd" / "0").write_text("no link")
    (tmp_path / "meminfo").write_text("")
    (tmp_path / "²").mkdir()
    (process(tmp_path, 12) / "fd" / "0").symlink_to("/dev/null")
    (process(tmp_path, 13) / "fd" / "0").symlink_to("socket:[77]")
    assert owner_of([77], str(tmp_path)) == 13


def test_without_procfs_it_is_an_error(tmp_path: Path) -> None:
    """That nothing can be seen is told, and is not the same as nobody."""
    with pytest.raises(CollectorError, match="cannot be read"):
        owner_of([77], str(tmp_path / "none"))


# -- the runners -------------------------------------------------------------------------------------------------------


def test_the_runners_of_a_real_process(stack: ExitStack) -> None:
    """A child counts that was started by a thread other than the main one, as Ollama's are."""
    parent = stack.enter_context(
        subprocess.Popen(
            [
                *(sys.executable, "-c", PARENT),
                *("runner", "--model", f"{MODELS}/{BLOB}", "--port", "41234", "--parallel", "4"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    # Until it has executed its program, its command line is still its parent's.
    deadline = time.monotonic() + 30
    while not (found := runners(parent.pid)) and time.monotonic() < deadline:
        os.sched_yield()
    assert found == (Runner(child, BLOB, 41234, 4),)


def test_a_process_without_children_has_no_runners(tmp_path: Path) -> None:
    """Nothing loaded is an empty tuple."""
    process(tmp_path, 10)
    assert runners(10, str(tmp_path)) == ()


@pytest.mark.parametrize(
    ("words", "runner"),
    [
        ("runner --model {m}/{b} --port 41234 --parallel 4", (BLOB, 41234, 4)),
        (
            "runner --ollama-engine --model {m}/{b} --ctx-size 8192 --port 41234",
            (BLOB, 41234, None),
        ),
        ("-m {m}/{b} -np 2 --port 8080", (BLOB, 8080, 2)),
        ("--model={m}/{b} --port=8080 --parallel=2", (BLOB, 8080, 2)),
        ("--model {b}", (BLOB, None, None)),
        ("--model /some/other.gguf --port 8080", (None, 8080, None)),
        ("--port 8080", (None, 8080, None)),
        ("--port 1 --port 2", (None, 2, None)),
        ("--model {m}/{o} --model {m}/{b}", (BLOB, None, None)),
        ("--model {m}/{b} --port 0", (BLOB, None, None)),
        ("--model {m}/{b} --port 65536 --parallel 65537", (BLOB, None, None)),
        ("--model {m}/{b} --port -1 --parallel x", (BLOB, None, None)),
        ("--model {m}/{b} --port", (BLOB, None, None)),
        ("--port --model {m}/{b}", None),
        ("--model", None),
        ("--model {m}/{b}-partial", None),
        ("--model {m}/{b}/more", None),
        ("--parallel 4", None),
        ("--models {m}/{b} --ports 1 -m={m}/{b} port 5", None),
        ("serve", None),
        ("", None),
    ],
)
def test_what_a_command_line_says(
    tmp_path: Path, words: str, runner: tuple[object, ...] | None
) -> None:
    """A runner is what names a model's blob or a port; the last of an option counts, what makes no sense does not."""
    text = words.format(m=MODELS, b=BLOB, o=OTHER)
    found = served(tmp_path, *(word.encode() for word in text.split()))
    assert [(one.blob, one.port, one.parallel) for one in found] == ([runner] if runner else [])


HOSTILE = [
    b"",
    b"\0" * 5000,
    b"\xff\xfe\0--model\0\xff/sha256-" + b"\xc3" * 64,
    b"ollama\0--port\0" + "٣٤".encode() + b"\0",
    b"ollama\0--port\0" + b"9" * 5000,
    b"ollama\0--model\0" + b"x" * 2_000_000,
    b"--model\0" * 20_000,
    b"ollama\0" + b"x" * (1 << 16) + b"\0--port\0" + b"8080\0",
    b"ollama\0--model\0sha256-" + b"3F" * 32,
    b"ollama\0--model\0sha256-" + b"3f" * 32 + b"\n",
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_command_line_says_nothing(tmp_path: Path, line: bytes) -> None:
    """NULs, bytes that are no text, digits of other scripts, megabytes: no runner, and no error."""
    process(tmp_path, 10, children="20 ")
    (process(tmp_path, 20, 10) / "cmdline").write_bytes(line)
    assert runners(10, str(tmp_path)) == ()


def test_runners_are_found_below_a_wrapper_and_not_deeper(tmp_path: Path) -> None:
    """Between the server and its runner there may be two processes."""
    process(tmp_path, 10, children="20")
    process(tmp_path, 20, 10, children="30 31")
    process(tmp_path, 30, 20, children="40 ")
    process(tmp_path, 31, 20, b"--port", b"2")
    process(tmp_path, 40, 30, b"--port", b"3", children="50")
    process(tmp_path, 50, 40, b"--port", b"4")
    assert runners(10, str(tmp_path)) == (Runner(31, port=2), Runner(40, port=3))


def test_what_a_runner_starts_is_no_other_runner(tmp_path: Path) -> None:
    """A process below the one that serves the model, with the same command line, does not count twice."""
    model = (b"--model", BLOB.encode())
    process(tmp_path, 10, children="20")
    process(tmp_path, 20, 10, *model, children="30")
    process(tmp_path, 30, 20, *model)
    assert runners(10, str(tmp_path)) == (Runner(20, BLOB),)


def test_without_children_in_proc_the_parents_are_read(tmp_path: Path) -> None:
    """A kernel without task/*/children has the parent in each process's stat, behind a name that may hold anything."""
    for pid, parent in ((10, 1), (20, 10), (30, 20), (40, 1)):
        folder = process(tmp_path, pid, parent, b"--port", str(pid).encode())
        (folder / "task" / str(pid) / "children").unlink()
        (folder / "stat").write_text(f"{pid} (a) S 99 ) R {parent} 1 1\n")
    (tmp_path / "50").mkdir()
    (process(tmp_path, 60) / "stat").write_text("60 (")
    assert [runner.pid for runner in runners(10, str(tmp_path))] == [20, 30]


def test_a_child_that_ends_meanwhile_is_left_out(tmp_path: Path) -> None:
    """A child that is listed and no longer there is no error."""
    process(tmp_path, 10, children="20 21 ")
    process(tmp_path, 21, 10, b"--port", b"5")
    assert runners(10, str(tmp_path)) == (Runner(21, port=5),)


def test_a_server_that_cannot_be_seen_is_an_error(tmp_path: Path) -> None:
    """That it is gone or hidden is not the same as that it has loaded nothing."""
    with pytest.raises(CollectorError, match="process 10 cannot be seen"):
        runners(10, str(tmp_path))


def test_processes_that_are_each_others_children_are_read_once(tmp_path: Path) -> None:
    """A listing that leads in a circle, or names what is no process, ends."""
    process(tmp_path, 10, children="20 10 x -1 0 99999999999 ")
    process(tmp_path, 20, 10, b"--port", b"5", children="10 20 ")
    assert runners(10, str(tmp_path)) == (Runner(20, port=5),)


def test_very_many_children_are_read_in_part(tmp_path: Path) -> None:
    """However many there are, about a thousand are looked at."""
    process(tmp_path, 10, children=" ".join(str(pid) for pid in range(20, 1500)))
    for pid in range(20, 1500):
        process(tmp_path, pid, 10, b"--port", b"5")
    assert 1000 < len(runners(10, str(tmp_path))) < 1100


# -- its cgroup --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("0::/system.slice/ollama.service\n", {"": "/system.slice/ollama.service"}),
        (
            "4:memory:/a\n2:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/d\n",
            {"memory": "/a", "cpu": "/b", "cpuacct": "/b", "name=systemd": "/c", "": "/d"},
        ),
        ("0::/\n", {"": "/"}),
        ("0::/../other\n", {"": "/../other"}),
        ("0::/odd:name\u2028 x\n", {"": "/odd:name\u2028 x"}),
        ("nonsense\n0::/x\n7:memory\n8:cpu:relative\n", {"": "/x"}),
    ],
)
def test_the_cgroups_of_a_process(tmp_path: Path, text: str, paths: dict[str, str]) -> None:
    """Each controller has its hierarchy's path, the unified hierarchy has the empty name."""
    (process(tmp_path, 10) / "cgroup").write_text(text, "utf-8")
    assert cgroup_paths(10, str(tmp_path)) == paths


def test_a_cgroup_whose_name_is_no_text_keeps_its_bytes(tmp_path: Path) -> None:
    """A path that is not UTF-8 comes so that the files below it can be opened."""
    (process(tmp_path, 10) / "cgroup").write_bytes(b"0::/\xff\n")
    assert os.fsencode(cgroup_paths(10, str(tmp_path))[""]) == b"/\xff"


@pytest.mark.parametrize("text", [None, "", "nonsense\n"])
def test_a_process_without_cgroups_is_an_error(tmp_path: Path, text: str | None) -> None:
    """A process that is gone has none, nor has one on a kernel without them."""
    folder = process(tmp_path, 10)
    if text is not None:
        (folder / "cgroup").write_text(text)
    with pytest.raises(CollectorError, match="10/cgroup"):
        cgroup_paths(10, str(tmp_path))


def test_this_process_has_a_cgroup() -> None:
    """On the machine that runs the tests the reading goes through."""
    if not Path("/proc/self/cgroup").exists():
        pytest.skip("a kernel without cgroups")
    assert all(path.startswith("/") for path in cgroup_paths(os.getpid()).values())
