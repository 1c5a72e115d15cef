"""Who listens on Ollama's port, and what is its own: real sockets and processes, and folders for what is rare."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Optional

import pytest

from ollama_metrics import ollama_processes
from ollama_metrics.errors import CollectorError
from ollama_metrics.ollama import Runner
from ollama_metrics.ollama_processes import OllamaProcesses, is_of_this_host
from ollama_metrics.processes import owner_of

BLOB = "sha256-" + "3f" * 32


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes the sockets and ends the processes of a test."""
    with ExitStack() as stack:
        yield stack


def listen(stack: ExitStack, port: int = 0) -> tuple[socket.socket, int]:
    server = stack.enter_context(socket.create_server(("127.0.0.1", port)))
    return server, server.getsockname()[1]


def process(
    proc: Path, pid: int, server: Optional[socket.socket] = None, children: str = ""
) -> Path:
    """The folder of a process, with `server` among its descriptors."""
    folder = proc / str(pid)
    (folder / "task" / str(pid)).mkdir(parents=True)
    (folder / "task" / str(pid) / "children").write_text(children)
    (folder / "fd").mkdir()
    (folder / "cgroup").write_text(f"0::/of/{pid}\n")
    (folder / "cmdline").write_bytes(f"ollama\0--model\0/blobs/{BLOB}\0--port\0{pid}\0".encode())
    if server is not None:
        inode = os.fstat(server.fileno()).st_ino
        (folder / "fd" / "3").symlink_to(f"socket:[{inode}]")
    return folder


def cgroup(root: Path, path: str, used: int) -> None:
    """A cgroup of version 2 that uses so much memory."""
    mount = root / "sys/fs/cgroup"
    (mount / path).mkdir(parents=True)
    (mount / "cgroup.controllers").write_text("memory\n")
    (mount / path / "memory.current").write_text(f"{used}\n")


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """For which sockets all processes were looked through."""
    made: list[tuple[int, ...]] = []

    def search(inodes: Collection[int], proc: str) -> Optional[int]:
        made.append(tuple(inodes))
        return owner_of(inodes, proc)

    monkeypatch.setattr(ollama_processes, "owner_of", search)
    return made


# -- this very host ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("192.0.2.1", False),  # of nobody, RFC 5737
        ("2001:db8::1", False),
        ("nothing.invalid", False),
        ("h\u00f6st", False),
    ],
)
def test_which_addresses_are_of_this_host(host: str, own: bool) -> None:
    """Those that a socket can be bound to; what cannot be looked up is none."""
    assert is_of_this_host(host) is own


def test_the_connections_and_runners_of_this_host(stack: ExitStack) -> None:
    """Connections to the port are counted, and the runners are children of the process that listens there."""
    server, port = listen(stack)
    processes = OllamaProcesses(port)
    assert processes.connections() == 0
    for number in (1, 2, 3):
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        stack.enter_context(server.accept()[0])
        assert processes.connections() == number
    child = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()", "--model", f"/blobs/{BLOB}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    assert child.stdout is not None
    child.stdout.readline()  # before, it may have a command line of its own or not yet
    assert Runner(child.pid, BLOB) in processes.runners()


def test_nobody_listens(stack: ExitStack) -> None:
    """Each question is an error that says so, not a 0; when somebody listens there it is answered."""
    server, port = listen(stack)
    server.close()
    processes = OllamaProcesses(port)
    with pytest.raises(CollectorError, match=f"nothing listens on port {port} in this network"):
        processes.connections()
    for ask in (processes.runners, processes.cgroup):
        with pytest.raises(CollectorError, match=f"nothing listens on port {port}"):
            ask()
    listen(stack, port)
    assert processes.connections() == 0
    processes.runners()


# -- the search for the owner ------------------------------------------------------------------------------------------


def test_processes_are_looked_through_for_a_new_socket_alone(
    stack: ExitStack, tmp_path: Path, searches: list[tuple[int, ...]]
) -> None:
    """However many cycles there are: once for each socket that listens there."""
    server, port = listen(stack)
    process(tmp_path, 10, server, children="20 ")
    process(tmp_path, 20)
    processes = OllamaProcesses(port, proc=str(tmp_path))
    for _ in range(3):
        processes.connections()
        assert processes.runners() == (Runner(20, BLOB, 20),)
    assert len(searches) == 1
    server.close()
    other, _ = listen(stack, port)
    process(tmp_path, 30, other, children="40 ")
    process(tmp_path, 40)
    for _ in range(3):
        processes.connections()
        assert processes.runners() == (Runner(40, BLOB, 40),)
    assert len(searches) == 2
    assert searches[0] != searches[1]


def test_an_owner_that_cannot_be_seen_is_looked_for_once_a_minute(
    stack: ExitStack, tmp_path: Path, searches: list[tuple[int, ...]]
) -> None:
    """Another user's process is an error with the remedy, at no cost; connections are counted all the same."""
    now = 1000.0
    server, port = listen(stack)
    tmp_path.joinpath("10").mkdir()
    processes = OllamaProcesses(port, proc=str(tmp_path), clock=lambda: now)
    for later in (0.0, 5.0, 59.9):
        now = 1000.0 + later
        assert processes.connections() == 0
        for ask in (processes.runners, processes.cgroup):
            with pytest.raises(CollectorError, match=r"run the agent as Ollama's user$"):
                ask()
    assert len(searches) == 1
    process(tmp_path, 20, server)
    now = 1060.0
    processes.connections()
    assert processes.runners() == ()
    assert len(searches) == 2


def test_an_owner_that_has_gone_is_looked_for_anew(
    stack: ExitStack, tmp_path: Path, searches: list[tuple[int, ...]]
) -> None:
    """A server may leave its socket to another process: it is found within a minute, at one search."""
    now = 1000.0
    server, port = listen(stack)
    owner = process(tmp_path, 10, server)
    processes = OllamaProcesses(port, proc=str(tmp_path), clock=lambda: now)
    processes.connections()
    assert processes.runners() == ()
    owner.rename(tmp_path / "gone")
    process(tmp_path, 30, server, children="40 ")
    process(tmp_path, 40)
    for _ in range(3):
        processes.connections()
        with pytest.raises(CollectorError, match="cannot be seen"):
            processes.runners()
    now = 1060.0
    processes.connections()
    assert processes.runners() == (Runner(40, BLOB, 40),)
    assert len(searches) == 2


# -- the cgroup --------------------------------------------------------------------------------------------------------


def test_the_cgroup_is_that_of_the_owner(stack: ExitStack, tmp_path: Path) -> None:
    """By itself the cgroup is the one that the process that listens is in."""
    server, port = listen(stack)
    process(tmp_path / "proc", 10, server)
    cgroup(tmp_path, "of/10", 4096)
    processes = OllamaProcesses(port, proc=str(tmp_path / "proc"), root=str(tmp_path))
    assert processes.has_cgroup
    processes.connections()
    found = processes.cgroup()
    assert (found.path, found.memory_used_bytes) == ("/of/10", 4096)


def test_a_cgroup_that_is_set_needs_no_process(
    tmp_path: Path, searches: list[tuple[int, ...]]
) -> None:
    """`--ollama-cgroup PATH` is read also where nobody listens or the process cannot be seen."""
    cgroup(tmp_path, "system.slice/ollama.service", 8192)
    processes = OllamaProcesses(
        1, "/sys/fs/cgroup/system.slice/ollama.service", str(tmp_path / "none"), str(tmp_path)
    )
    assert processes.has_cgroup
    found = processes.cgroup()
    assert (found.path, found.memory_used_bytes) == ("/system.slice/ollama.service", 8192)
    assert searches == []


def test_a_cgroup_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """One that is set wrongly, or gone."""
    cgroup(tmp_path, "here", 1)
    processes = OllamaProcesses(1, "/elsewhere", str(tmp_path), str(tmp_path))
    with pytest.raises(CollectorError, match="no file of the cgroup"):
        processes.cgroup()


def test_without_a_cgroup() -> None:
    """`none` has no cgroup to be read."""
    assert not OllamaProcesses(1, "none").has_cgroup
