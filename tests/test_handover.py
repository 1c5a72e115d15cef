"""What a process leaves to the program that is executed anew in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_metrics.config import HANDOVER_VARIABLE as VARIABLE
from ollama_metrics.handover import Handover, handed_over

PID = 4711
URL = "http://127.0.0.1:11434"
LEFT = Handover(PID, (("0.0.0.0:11435", 3), ("[::]:11435", 4)), (7, 9), 2, 123.5, 4, URL, 2)


def written(**changes: Any) -> Mapping[str, str]:
    """The variable, with some of its fields changed."""
    fields = json.loads(LEFT.environment({})[VARIABLE])
    return {VARIABLE: json.dumps({**fields, **changes})}


@pytest.mark.parametrize(
    "left",
    [
        LEFT,
        Handover(PID),
        Handover(PID, connections=(5,)),
        Handover(PID, ollama_url=URL),  # never seen to answer
        Handover(PID, ollama_url="http://[::1]:1/base", ollama_failures=0),
    ],
)
def test_what_is_left_is_found(left: Handover) -> None:
    """It comes through the environment as it was, with everything else that was in there."""
    environ = left.environment({"A": "b", VARIABLE: "that of the time before"})
    assert environ["A"] == "b"
    assert handed_over(environ, PID) == left


def test_it_is_for_one_process() -> None:
    """A variable that another process has written is nothing, be it inherited or forged."""
    environ = LEFT.environment({})
    assert handed_over(environ, 1, PID) == LEFT
    assert handed_over(environ, PID + 1) is None
    assert handed_over(environ) is None


def test_ten_thousand_connections_are_few_enough() -> None:
    """execve(2) takes 128 KiB in a variable; as many connections as are ever open are half of that."""
    many = Handover(PID, connections=tuple(range(10_000)))
    assert len(many.environment({})[VARIABLE]) < 1 << 16
    assert handed_over(many.environment({}), PID) == many


@pytest.mark.parametrize(
    "environ",
    [
        {},
        *[
            {VARIABLE: text}
            for text in (
                "",
                "x",
                "1",
                "null",
                "[]",
                "{}",
                '"pid"',
                "[" * 100_000,
                f'{{"pid": {PID}',
            )
        ],
        *[written(pid=pid) for pid in (None, "x", [], {}, float("nan"), float("inf"), 10**400)],
        *[written(listeners=value) for value in (None, 3, [3], [["a"]], [["a", "b"]], [[1, 2, 3]])],
        *[written(connections=value) for value in (None, 3, ["x"], [None], [float("inf")])],
        written(driver_renewals="x"),
        written(driver_renewed_at=[]),
        *[
            written(ollama_failures=value)
            for value in ("x", "", [], {}, float("nan"), float("inf"))
        ],
    ],
)
def test_what_is_not_whole_is_nothing(environ: Mapping[str, str]) -> None:
    """Garbage in the variable does not keep the agent from starting."""
    assert handed_over(environ, PID) is None


def test_an_earlier_version_leaves_nothing_of_ollama() -> None:
    """A version without these two fields is taken over by one that has them: all else is found."""
    fields = json.loads(LEFT.environment({})[VARIABLE])
    del fields["ollama_url"], fields["ollama_failures"]
    found = handed_over({VARIABLE: json.dumps(fields)}, PID)
    assert found == Handover(*list(vars(LEFT).values())[:6])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(
            [
                *("pid", "listeners", "connections", "driver_renewals", "driver_renewed_at"),
                *("gpus_seen", "ollama_url", "ollama_failures"),
            ]
        ),
        json_values,
    )
)
def test_whatever_is_in_the_variable_it_is_read_or_nothing(changes: Mapping[str, Any]) -> None:
    """Any JSON of the right shape or of another is a handover or none."""
    found = handed_over(written(**changes), PID)
    assert found is None or found.pid == PID
    if found is not None:
        assert isinstance(found.ollama_url, (str, type(None)))
        assert isinstance(found.ollama_failures, (int, type(None)))


def test_a_new_program_gets_what_is_kept_and_no_more() -> None:
    """Of all that a process has open, however it was opened, the next program has what is kept and standard streams."""
    code = """
import os, sys
from ollama_metrics.handover import close_all_but
files = [os.open("/", os.O_RDONLY) for _ in range(9)]
for fd in files:
    os.set_inheritable(fd, fd % 2 == 0)
close_all_but({files[3], files[4]})
print(files[3], files[4], flush=True)
listing = (
    "import os; fds = sorted(map(int, os.listdir('/proc/self/fd')));"
    "print(*(fd for fd in fds if os.path.exists(f'/proc/self/fd/{fd}')))"
)
os.execv(sys.executable, [sys.executable, "-c", listing])
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert process.stderr == ""
    kept, listed = process.stdout.splitlines()
    assert listed == f"0 1 2 {kept}"


def test_nothing_kept_is_everything_closed() -> None:
    """After an execve(2) that failed all descriptors are the process's own again."""
    code = """
import os
from ollama_metrics.handover import close_all_but
files = [os.open("/", os.O_RDONLY) for _ in range(4)]
close_all_but(set(files))
close_all_but(set())
print([os.get_inheritable(fd) for fd in files])
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert (process.stdout, process.stderr) == (f"{[False] * 4}\n", "")
