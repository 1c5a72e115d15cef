"""How the event loop is woken."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator

import pytest

from ollama_metrics.waker import Waker


@pytest.fixture
def waker() -> Iterator[Waker]:
    waker = Waker()
    yield waker
    waker.close()


def awake(waker: Waker, seconds: float = 0.0) -> bool:
    """Whether a loop that waits for it is woken."""
    return bool(select.select([waker], [], [], seconds)[0])


def test_it_wakes_until_it_is_cleared(waker: Waker) -> None:
    """Before it is woken and after it is cleared the loop sleeps; however often it was woken, once is enough."""
    assert not awake(waker)
    for _ in range(3):
        waker.wake()
    assert awake(waker)
    assert awake(waker)
    waker.clear()
    assert not awake(waker)
    waker.wake()
    assert awake(waker)


def test_another_thread_wakes_it(waker: Waker) -> None:
    """A loop that waits already is woken."""
    timer = threading.Timer(0.05, waker.wake)
    timer.start()
    assert awake(waker, 10.0)
    timer.join()


def test_a_byte_of_a_signal_wakes_it(waker: Waker) -> None:
    """Its descriptor is what signal.set_wakeup_fd asks for: one that never blocks."""
    before = signal.set_wakeup_fd(waker.wakeup_fd)
    handler = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert awake(waker, 10.0)
    finally:
        signal.signal(signal.SIGUSR1, handler)
        signal.set_wakeup_fd(before)


def test_a_loop_that_is_held_up_blocks_nobody(waker: Waker) -> None:
    """A signal storm fills the pair and goes on; it is cleared at once or in a few turns."""
    for _ in range(10_000):
        waker.wake()
    turns = 0
    while awake(waker):
        waker.clear()
        turns += 1
    assert 0 < turns < 10


def test_clearing_what_was_not_woken_does_not_wait(waker: Waker) -> None:
    """Whoever clears too often is not held up."""
    waker.clear()
    waker.clear()


def test_a_closed_one_can_still_be_woken() -> None:
    """A thread that comes late, when the loop has ended, does no harm; both sockets are given back."""
    files = set(os.listdir("/proc/self/fd"))
    waker = Waker()
    waker.close()
    waker.wake()
    assert set(os.listdir("/proc/self/fd")) == files
