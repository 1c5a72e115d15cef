"""One reading of Ollama a cycle, over the stand-in: what each part gives, and that none of them harms another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Callable, Optional, Union

import pytest
from ollama_process import OllamaProcess, model

from ollama_metrics.errors import CollectorError
from ollama_metrics.log_tally import LogTally
from ollama_metrics.ollama import CgroupUsage, OllamaReading, Runner
from ollama_metrics.ollama_collector import AGAIN_SECONDS, OllamaCollector, OllamaLog
from ollama_metrics.ollama_expectation import OllamaExpectation
from ollama_metrics.ollama_url import parse_url
from ollama_metrics.snapshot import CollectorHealth

LINE = b'[GIN] 2026/11/20 - 10:11:12 | 200 | 1.2s | 127.0.0.1 | POST     "/api/chat"\n'
RUNNER = Runner(4711, "sha256-" + "3f" * 32)
CGROUP = CgroupUsage(path="/ollama", memory_used_bytes=1 << 30)


class Processes:
    """Plays `OllamaProcesses`: each method gives what its attribute holds, or raises it."""

    def __init__(self, has_cgroup: bool = True) -> None:
        self.has_cgroup = has_cgroup
        self.outcomes: dict[str, Any] = {"connections": 2, "runners": (RUNNER,), "cgroup": CGROUP}

    def connections(self) -> Any:
        return self._outcome("connections")

    def runners(self) -> Any:
        return self._outcome("runners")

    def cgroup(self) -> Any:
        return self._outcome("cgroup")

    def _outcome(self, name: str) -> Any:
        outcome = self.outcomes[name]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Script:
    """Plays a follower: each read gives the next of `reads`, blocks and at last maybe an error."""

    def __init__(self, *reads: list[Union[bytes, Exception]]) -> None:
        self.reads = list(reads)
        self.closed = 0

    def read(self) -> Iterator[bytes]:
        for one in self.reads.pop(0):
            if isinstance(one, Exception):
                raise one
            yield one

    def close(self) -> None:
        self.closed += 1


class House:
    """A stand-in for Ollama and collectors of it, on a clock that the test turns."""

    def __init__(self, ollama: OllamaProcess) -> None:
        self.ollama, self.now = ollama, 1000.0
        self.processes = Processes()

    def collector(self, expected: bool = True, **options: Any) -> OllamaCollector:
        url = parse_url(self.ollama.url)
        options.setdefault("processes", self.processes)
        expectation = OllamaExpectation(str(url), expected, None, lambda level, sentence: None)
        return OllamaCollector(
            url, expectation, clock=lambda: self.now, wall=lambda: self.now + 1e9, **options
        )


@pytest.fixture
def house() -> Iterator[House]:
    with OllamaProcess() as ollama:
        yield House(ollama)


def healths(reading: OllamaReading) -> dict[str, CollectorHealth]:
    """The health of each part, by its name."""
    return {part.health.collector: part.health for part in reading.parts}


def failed(reading: OllamaReading) -> dict[str, Optional[str]]:
    """The errors of the parts that fail."""
    return {name: health.error for name, health in healths(reading).items() if not health.success}


# -- well --------------------------------------------------------------------------------------------------------------


def test_an_ollama_that_is_well(house: House) -> None:
    """All parts are read, their health is good, and the reading has what each gave."""
    house.ollama.models([model("a:1b"), model("b:1b")])
    collector = house.collector(log=OllamaLog(Script([LINE]), LogTally()))
    reading = collector.collect()
    assert (reading.url, reading.up, reading.expected, reading.seen) == (
        house.ollama.url,
        True,
        True,
        True,
    )
    assert (reading.version, reading.failures, reading.error) == ("0.33.0", 0, "")
    assert reading.rtt_seconds is not None
    assert 0 < reading.rtt_seconds < 5
    assert (reading.active_requests, reading.runners, reading.cgroup) == (2, (RUNNER,), CGROUP)
    assert [one.name for one in reading.models] == ["a:1b", "b:1b"]
    assert reading.models_loaded == 2
    assert reading.log is not None
    assert reading.log.log_lines_total == 1
    assert list(healths(reading)) == [
        *("ollama", "ollama_models", "ollama_connections", "ollama_processes"),
        *("ollama_cgroup", "ollama_log"),
    ]
    assert failed(reading) == {}
    assert {part.read_at for part in reading.parts} == {house.now}
    health = healths(reading)["ollama_models"]
    assert (health.last_success_timestamp_seconds, health.failures_total) == (house.now + 1e9, 0)


def test_an_ollama_of_another_host(house: House) -> None:
    """Without processes neither connections nor runners nor a cgroup are read, nor what models are made of."""
    reading = house.collector(processes=None).collect()
    assert list(healths(reading)) == ["ollama", "ollama_models"]
    assert (reading.active_requests, reading.runners, reading.cgroup) == (None, None, None)
    assert (reading.blobs, reading.log) == ((), None)
    assert [one["target"] for one in house.ollama.tell()["requests"]] == ["/api/version", "/api/ps"]


def test_without_a_cgroup_there_is_no_such_part(house: House) -> None:
    """`--ollama-cgroup none` is no failure."""
    house.processes = Processes(has_cgroup=False)
    house.processes.outcomes["cgroup"] = ZeroDivisionError()
    reading = house.collector().collect()
    assert reading.cgroup is None
    assert "ollama_cgroup" not in healths(reading)


def test_an_ollama_that_answers_is_expected_from_then_on(house: House) -> None:
    """The expectation learns of the first answer."""
    collector = house.collector(expected=False)
    house.ollama.kill()
    assert collector.collect().expected is False
    house.ollama.restart()
    assert collector.collect().expected is True
    house.ollama.kill()
    reading = collector.collect()
    assert (reading.expected, reading.seen) == (True, True)


def test_what_models_are_made_of_is_asked_one_a_cycle(house: House) -> None:
    """Each model on a GPU once; where it fails it is asked again, and one that is unloaded is forgotten."""
    weights = {name: digit * 64 for name, digit in (("a:1b", "a"), ("b:1b", "b"), ("cpu:1b", "c"))}
    entries = [
        model(name, size_vram=0 if name == "cpu:1b" else 1, weights=digest, digest=digest)
        for name, digest in weights.items()
    ]
    house.ollama.models(entries)
    house.ollama.fault("/api/show", "status", times=1, status=500)
    collector = house.collector()
    a, b = ((name, f"sha256-{weights[name]}") for name in ("a:1b", "b:1b"))
    blobs = [collector.collect().blobs for _ in range(4)]
    assert blobs == [(), (a,), (a, b), (a, b)]
    targets = [one["target"] for one in house.ollama.tell()["requests"]]
    assert targets.count("/api/show") == 3
    house.ollama.models([])
    assert collector.collect().blobs == ()
    house.ollama.models(entries[:1])
    assert collector.collect().blobs == (a,)
    targets = [one["target"] for one in house.ollama.tell()["requests"]]
    assert targets.count("/api/show") == 4


# -- the pace ----------------------------------------------------------------------------------------------------------


def test_from_begin_to_begin_it_is_the_interval(house: House) -> None:
    """Which is what a sampler counts a pause by: how long a cycle took changes nothing."""
    collector = house.collector(interval=7.0, grace=30.0)
    assert collector.collect().waits_until == 1030.0
    assert collector.pause == 7.0

    class Slow(Processes):
        def connections(self) -> Any:
            house.now += 3.0
            return 0

    collector = house.collector(interval=7.0, processes=Slow())
    collector.collect()
    assert collector.pause == 7.0


def test_the_cgroup_is_read_every_fifteen_seconds(house: House) -> None:
    """Its figures are for graphs: between two readings the last one stands; one that failed is made up for at once."""
    collector = house.collector()
    collector.collect()
    later = replace(CGROUP, memory_used_bytes=2 << 30)
    house.processes.outcomes["cgroup"] = later
    house.now += 14.0
    assert collector.collect().cgroup == CGROUP
    house.now += 1.0
    assert collector.collect().cgroup == later
    house.now += 15.0
    house.processes.outcomes["cgroup"] = CollectorError("it is gone")
    reading = collector.collect()
    assert reading.cgroup == later
    assert failed(reading) == {"ollama_cgroup": "it is gone"}
    house.now += 1.0
    house.processes.outcomes["cgroup"] = CGROUP
    assert collector.collect().cgroup == CGROUP


# -- what is said ------------------------------------------------------------------------------------------------------


def test_a_part_that_fails_is_told_once(house: House) -> None:
    """One warning with the reason, one line when it is back; nothing while Ollama does not answer."""
    said: list[tuple[str, str]] = []
    collector = house.collector(say=lambda *line: said.append(line))
    collector.collect()
    house.processes.outcomes["runners"] = CollectorError("process 4711 cannot be seen")
    for _ in range(3):
        collector.collect()
    assert said == [("warning", "ollama_processes: process 4711 cannot be seen")]
    house.processes.outcomes["runners"] = (RUNNER,)
    collector.collect()
    assert said[1:] == [("info", "ollama_processes: readings are back")]
    house.ollama.kill()
    house.processes.outcomes["connections"] = CollectorError("nothing listens")
    collector.collect()
    house.processes.outcomes["connections"] = 0
    house.ollama.restart()
    collector.collect()
    assert len(said) == 2


def test_a_dead_ollama_that_is_expected_is_asked_again_soon(house: House) -> None:
    """A second later; one that nobody expects, and one that is back, after the interval."""
    house.ollama.kill()
    collector = house.collector(interval=7.0)
    collector.collect()
    assert collector.pause == AGAIN_SECONDS
    unexpected = house.collector(expected=False, interval=7.0)
    unexpected.collect()
    assert unexpected.pause == 7.0
    house.ollama.restart()
    collector.collect()
    assert collector.pause == 7.0


# -- dead --------------------------------------------------------------------------------------------------------------


def test_failed_checks_are_counted(house: House) -> None:
    """In a row, in the reading and in the health; the first answer begins anew."""
    collector = house.collector()
    house.ollama.kill()
    for number in (1, 2, 3):
        reading = collector.collect()
        assert (reading.up, reading.failures, reading.seen) == (False, number, False)
        assert "connection refused" in reading.error
        health = healths(reading)["ollama"]
        assert (health.consecutive_failures, health.failures_total) == (number, number)
        assert (reading.version, reading.rtt_seconds) == (None, None)
        # What was never there is asked for nothing else.
        assert list(healths(reading)) == ["ollama"]
    house.ollama.restart()
    reading = collector.collect()
    assert (reading.up, reading.failures) == (True, 0)
    health = healths(reading)["ollama"]
    assert (health.consecutive_failures, health.failures_total, health.error) == (0, 3, None)


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 500}, {"kind": "body", "body": b"{}"}, {"kind": "close"}]
)
def test_what_is_no_answer_of_ollamas_is_a_failed_check(house: House, fault: Any) -> None:
    """Another status, another document or a connection that breaks: it is not up."""
    house.ollama.fault("/api/version", **fault)
    reading = house.collector().collect()
    assert (reading.up, reading.failures) == (False, 1)
    assert reading.error


@pytest.mark.parametrize(
    ("left", "seen", "failures"), [(None, False, 1), (0, True, 1), (2, True, 3)]
)
def test_what_a_program_before_has_seen_goes_on(
    house: House, left: Optional[int], seen: bool, failures: int
) -> None:
    """Checks that failed before the program was executed anew count; an Ollama that was seen was."""
    house.ollama.kill()
    reading = house.collector(failures=left).collect()
    assert (reading.seen, reading.failures) == (seen, failures)


def test_the_last_good_values_are_kept_for_two_minutes(house: House) -> None:
    """The models that were loaded stay for 120 s after they were read, with their age, and are gone then."""
    collector = house.collector()
    models = collector.collect().models
    assert len(models) == 1
    house.ollama.kill()
    for later in (1.0, 119.0, 120.0):
        house.now = 1000.0 + later
        reading = collector.collect()
        assert reading.models == models
        assert reading.models_loaded is None  # how many there are now is not known
        (part,) = [one for one in reading.parts if one.health.collector == "ollama_models"]
        assert (part.read_at, part.health.error) == (1000.0, "Ollama does not answer")
    house.now = 1120.1
    assert collector.collect().models == ()
    house.now = 1001.0  # once gone it does not come back by itself
    assert collector.collect().models == ()


def test_what_changes_all_the_time_is_not_kept(house: House) -> None:
    """Connections and runners of a cycle that could not read them are unknown at once; the cgroup's are kept."""
    collector = house.collector()
    collector.collect()
    for name in house.processes.outcomes:
        house.processes.outcomes[name] = CollectorError("gone")
    reading = collector.collect()
    assert (reading.active_requests, reading.runners) == (None, None)
    assert reading.cgroup == CGROUP
    house.now += 121.0
    assert collector.collect().cgroup is None


# -- one part that fails -----------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[House, Exception], Any]] = {
    "ollama_connections": lambda house, error: house.processes.outcomes.update(connections=error),
    "ollama_processes": lambda house, error: house.processes.outcomes.update(runners=error),
    "ollama_cgroup": lambda house, error: house.processes.outcomes.update(cgroup=error),
    "ollama_models": lambda house, error: house.ollama.fault("/api/ps", "status", status=500),
    "ollama_log": lambda house, error: None,
}


@pytest.mark.parametrize("error", [CollectorError("it is broken"), ZeroDivisionError("a bug")])
@pytest.mark.parametrize("name", list(PARTS))
def test_a_part_that_fails_harms_no_other(house: House, name: str, error: Exception) -> None:
    """Whatever it raises: its health says so, all other parts are read, and Ollama is up."""
    PARTS[name](house, error)
    log = OllamaLog(Script([error] if name == "ollama_log" else [LINE]), LogTally())
    reading = house.collector(log=log).collect()
    assert reading.up
    assert list(failed(reading)) == [name]
    said = failed(reading)[name]
    assert said is not None
    if name != "ollama_models":
        expected = "it is broken" if isinstance(error, CollectorError) else f"unexpected {error!r}"
        assert said == expected
    assert len(healths(reading)) == 6
    values = {
        "ollama_connections": reading.active_requests,
        "ollama_processes": reading.runners,
        "ollama_cgroup": reading.cgroup,
        "ollama_models": reading.models_loaded,
        "ollama_log": reading.log,
    }
    assert [part for part, value in values.items() if value is None] == [name]


def test_a_part_that_recovers(house: House) -> None:
    """Its failures are counted, and its health is good again with the next reading."""
    collector = house.collector()
    house.processes.outcomes["connections"] = CollectorError("busy")
    collector.collect()
    collector.collect()
    house.processes.outcomes["connections"] = 5
    reading = collector.collect()
    health = healths(reading)["ollama_connections"]
    assert (health.success, health.consecutive_failures, health.failures_total) == (True, 0, 2)
    assert (health.error, reading.active_requests) == (None, 5)


# -- slots -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def runner_house() -> Iterator[House]:
    """An Ollama with a llama-server that has four slots, one of them busy."""
    with OllamaProcess(0, "--llama-server", "127.0.0.1:0") as ollama:
        house = House(ollama)
        ollama.slots(busy=1, total=4)
        house.processes.outcomes["runners"] = (Runner(1, port=ollama.slots_port), Runner(2))
        yield house


def test_slots_are_added_up(runner_house: House) -> None:
    """Those of all runners that have a port; with `--ollama-slots off` nobody is asked."""
    port = runner_house.ollama.slots_port
    reading = runner_house.collector().collect()
    assert (reading.slots_busy, reading.slots) == (1, 4)
    runner_house.processes.outcomes["runners"] = (Runner(1, port=port), Runner(2, port=port))
    reading = runner_house.collector().collect()
    assert (reading.slots_busy, reading.slots) == (2, 8)
    reading = runner_house.collector(ask_slots=False).collect()
    assert (reading.slots_busy, reading.slots) == (None, None)
    assert "ollama_slots" not in healths(reading)


def test_slots_of_some_runners_are_none(runner_house: House) -> None:
    """A sum without the runner that does not answer would be too small: unknown, with the error."""
    ollama = runner_house.ollama
    runners = (Runner(1, port=ollama.slots_port), Runner(2, port=ollama.port))  # which has no slots
    runner_house.processes.outcomes["runners"] = runners
    reading = runner_house.collector().collect()
    assert (reading.slots_busy, reading.slots) == (None, None)
    assert "404" in str(failed(reading)["ollama_slots"])


def test_slots_are_a_part_only_while_there_is_a_runner(runner_house: House) -> None:
    """When the last model is unloaded the part ends, and its failure with it."""
    collector = runner_house.collector()
    runner_house.ollama.fault("/slots", "status", status=500)
    assert "ollama_slots" in failed(collector.collect())
    runner_house.processes.outcomes["runners"] = ()
    reading = collector.collect()
    assert "ollama_slots" not in healths(reading)
    assert (reading.slots_busy, reading.slots) == (None, None)


# -- the log -----------------------------------------------------------------------------------------------------------


def counted(reading: OllamaReading) -> Optional[int]:
    """The requests in the log that the reading knows of."""
    return sum(one.requests_total for one in reading.log.requests) if reading.log else None


def test_lines_before_a_failure_are_shown(house: House) -> None:
    """What was read before the follower raised is in this reading, not in the next good one; health has the error."""
    error = CollectorError("the file is gone")
    script = Script([LINE], [LINE, LINE, error], [error], [LINE])
    collector = house.collector(log=OllamaLog(script, LogTally()))
    assert counted(collector.collect()) == 1
    house.now += 5.0
    reading = collector.collect()
    assert counted(reading) == 3
    assert reading.log is not None
    assert [span.end for span in reading.log.spans] == [1000.0, 1005.0]
    assert failed(reading) == {"ollama_log": "the file is gone"}
    (part,) = [one for one in reading.parts if one.health.collector == "ollama_log"]
    assert part.read_at == 1005.0
    house.now += 120.0
    assert counted(collector.collect()) == 3
    assert counted(collector.collect()) == 4


def test_a_log_that_cannot_be_read_counts_nothing(house: House) -> None:
    """One that was never read is unknown, and not no requests; one that was is kept for two minutes."""
    error = CollectorError("no such file")
    script = Script([error], [error, LINE], [LINE], [error], [error])
    collector = house.collector(log=OllamaLog(script, LogTally()))
    assert [counted(collector.collect()) for _ in range(4)] == [None, None, 1, 1]
    house.now += 120.1
    assert counted(collector.collect()) is None


def test_the_log_is_followed_while_ollama_is_dead(house: House) -> None:
    """Its last words are in there."""
    house.ollama.kill()
    log = OllamaLog(Script([LINE]), LogTally())
    reading = house.collector(log=log).collect()
    assert (reading.up, counted(reading)) == (False, 1)


def test_what_runs_beside_for_the_log_can_be_ended() -> None:
    """`close` reaches the follower."""
    script = Script()
    OllamaLog(script, LogTally()).close()
    assert script.closed == 1
