"""By when each connection has to have done something."""

from __future__ import annotations

import pytest

from ollama_metrics.deadlines import Deadlines

BUSY, IDLE = 10.0, 100.0
A, B, C = 4, 5, 6


@pytest.fixture
def deadlines() -> Deadlines:
    return Deadlines(BUSY, IDLE)


def test_nothing_is_late_where_nothing_is_open(deadlines: Deadlines) -> None:
    """Without connections there is no deadline, nobody is late and nobody the oldest."""
    assert deadlines.first() is None
    assert deadlines.late(1e9) == []
    assert deadlines.oldest() is None


def test_a_request_has_its_time_from_its_first_byte(deadlines: Deadlines) -> None:
    """What comes of it later does not put the deadline off."""
    deadlines.expect(A, 0.0)
    deadlines.expect(A, 9.0)
    assert deadlines.first() == BUSY
    assert deadlines.late(BUSY - 0.001) == []
    assert deadlines.late(BUSY) == [(A, True)]


def test_between_two_requests_there_is_more_time(deadlines: Deadlines) -> None:
    """A connection that has nothing to do has the longer one, from when it last had something."""
    deadlines.expect(A, 0.0)
    deadlines.rest(A, 5.0)
    assert deadlines.first() == 5.0 + IDLE
    deadlines.rest(A, 6.0)
    assert deadlines.late(5.0 + IDLE) == []
    assert deadlines.late(6.0 + IDLE) == [(A, False)]


def test_the_next_request_has_a_deadline_of_its_own(deadlines: Deadlines) -> None:
    """After an answer, with the next request begun already, the time begins anew."""
    deadlines.expect(A, 0.0)
    deadlines.met(A)
    assert deadlines.first() is None
    deadlines.expect(A, 7.0)
    assert deadlines.first() == 7.0 + BUSY


def test_a_connection_is_in_one_queue_at_most(deadlines: Deadlines) -> None:
    """Going from one to the other leaves nothing behind, and what is forgotten is in neither."""
    deadlines.rest(A, 0.0)
    deadlines.expect(A, 1.0)
    assert (list(deadlines.busy), list(deadlines.idle)) == ([A], [])
    deadlines.rest(A, 2.0)
    assert (list(deadlines.busy), list(deadlines.idle)) == ([], [A])
    deadlines.expect(B, 3.0)
    for fd in (A, B, C):
        deadlines.forget(fd)
    assert deadlines.first() is None


def test_the_first_deadline_is_that_of_either_kind(deadlines: Deadlines) -> None:
    """Whichever is the sooner is what the loop waits for; all that have passed are late."""
    deadlines.rest(A, 0.0)
    deadlines.expect(B, 80.0)
    assert deadlines.first() == 80.0 + BUSY
    deadlines.met(B)
    deadlines.expect(C, 95.0)
    assert deadlines.first() == IDLE
    deadlines.rest(B, 95.0)
    assert sorted(deadlines.late(95.0 + BUSY)) == [(A, False), (C, True)]


def test_the_oldest_is_an_idle_one_if_there_is_any(deadlines: Deadlines) -> None:
    """Who has been idle for longest gives way first, then who has been busy for longest."""
    for fd, now in ((A, 0.0), (B, 1.0)):
        deadlines.expect(fd, now)
    assert deadlines.oldest() == A
    deadlines.rest(C, 5.0)
    deadlines.rest(B, 6.0)
    assert deadlines.oldest() == C
    deadlines.rest(C, 7.0)
    assert deadlines.oldest() == B
