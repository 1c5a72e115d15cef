"""The table of what broke and what a balancer is told then."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Optional

import pytest
from balancer import Poll, decode, pick
from hypothesis import given
from hypothesis import strategies as st

from ollama_metrics.agent import AgentBuild, AgentStats
from ollama_metrics.drain import Drain
from ollama_metrics.exposition_json import render_json
from ollama_metrics.gpu import GpuReading, GpuSample, LostGpu, MigInstance
from ollama_metrics.host import HostSample
from ollama_metrics.ollama import LogReading, Model, OllamaReading, RequestSpan
from ollama_metrics.policy import LAST_GOOD, ON_FAILURE, PESSIMISTIC
from ollama_metrics.snapshot import CollectorHealth, Snapshot, State
from ollama_metrics.verdict import DEGRADED, DRAINING, FAILING, OK, judge
from ollama_metrics.weight import Weighting
from ollama_metrics.window import Span

NOW = 1000.0
INTERVAL = 1.0
WINDOW = 15.0
WORST = (100.0, 100.0, 100.0, 100.0)


def host_sample(cpu: float = 0.2, ram: float = 0.3) -> HostSample:
    return HostSample(
        cpu_ratio=cpu,
        memory_used_ratio=ram,
        memory_total_bytes=1 << 36,
        memory_available_bytes=1 << 35,
        cpus=16.0,
        cpu_busy_seconds_total=1e6,
        container_limited=False,
    )


def gpu_sample(index: int = 0, **readings: Any) -> GpuSample:
    defaults = {"utilization_ratio": 0.8, "memory_used_ratio": 0.7, "power_ratio": 0.5}
    return GpuSample(index=index, uuid=f"GPU-{index}", name="a GPU", **{**defaults, **readings})


def state(
    sample: Any,
    *,
    name: str = "host",
    age: float = 0.5,
    error: Optional[str] = None,
    good: Any = None,
) -> State[Any]:
    """A state whose last good reading was `age` seconds ago; `error` when the cycle after it failed."""
    last_good = good if error is not None else sample
    return State(
        health=CollectorHealth(
            collector=name,
            success=error is None,
            consecutive_failures=0 if error is None else 3,
            failures_total=0,
            error=error,
        ),
        overdue_at=(NOW if error is not None else NOW - age) + 3 * INTERVAL,
        sample=None if error is not None else sample,
        last_good=last_good,
        read_at=NOW - age if last_good is not None else None,
        read_timestamp=1.7e9 - age if last_good is not None else None,
        ring=(Span(NOW - age - 1, NOW - age, last_good.levels()),) if last_good is not None else (),
    )


def reading(*gpus: GpuSample, **more: Any) -> GpuReading:
    return GpuReading(gpus=gpus, **{"enumerated": len(gpus), "driver_version": "1", **more})


HOST = state(host_sample())
TWO = reading(gpu_sample(0), gpu_sample(1))
NO_DRIVER = GpuReading(absence="there is no driver")
UNIFIED = {"memory_used_ratio": None, "unified_memory": True}
MIG = {"utilization_ratio": None, "mig_enabled": True}


def gpus(sample: Any, **kwargs: Any) -> State[Any]:
    return state(sample, name="gpu", **kwargs)


def failed(error: str = "gone", good: Any = TWO, age: float = 5.0) -> State[Any]:
    return gpus(None, error=error, good=good, age=age)


def hung(good: Any = TWO, age: float = 3.5) -> State[Any]:
    return gpus(good, age=age)


NEVER_READ = State[Any](
    health=CollectorHealth(collector="x", success=False, consecutive_failures=0, failures_total=0),
    overdue_at=NOW + 1,
)

# what broke, host, GPUs, expected; status, (cpu, ram, gpu_count, util, mem), a word of the reasons
CASES = [
    ("all is well", HOST, gpus(TWO), 2, OK, (20.0, 30.0, 2, 80.0, 70.0), ""),
    ("fewer GPUs expected than there are", HOST, gpus(TWO), 1, OK, (20.0, 30.0, 2, 80.0, 70.0), ""),
    ("no GPU ever, no driver", HOST, gpus(NO_DRIVER), 0, OK, (20.0, 30.0, 0, 0.0, 0.0), "no driver"),
    ("GPUs are left alone", HOST, None, 0, OK, (20.0, 30.0, 0, 0.0, 0.0), ""),
    ("NVML gone", HOST, failed(), 2, FAILING, (100.0, 100.0, 2, 100.0, 100.0), "gone"),
    ("NVML gone since the start", HOST, failed(good=None), 4, FAILING, (*WORST[:2], 4, *WORST[2:]), "4 expected"),
    ("NVML hung", HOST, hung(), 2, FAILING, (*WORST[:2], 2, *WORST[2:]), "hangs"),
    ("NVML hung in its very first call", HOST, replace(NEVER_READ, overdue_at=NOW - 1), 0, FAILING,
     (*WORST[:2], 1, *WORST[2:]), "hangs"),
    ("the first GPU reading is under way", HOST, NEVER_READ, 2, FAILING,
     (*WORST[:2], 2, *WORST[2:]), "not been read yet"),
    ("a driver that fails where no GPU was ever seen", HOST, failed(good=None), 0, FAILING,
     (*WORST[:2], 1, *WORST[2:]), "gone"),
    ("one of two GPUs lost", HOST,
     gpus(reading(gpu_sample(0), lost=(LostGpu("GPU 1", "off the bus"),), enumerated=2)), 2, DEGRADED,
     (20.0, 30.0, 2, 90.0, 85.0), "off the bus"),
    ("a GPU that is named no more", HOST, gpus(reading(gpu_sample(0))), 4, DEGRADED, (20.0, 30.0, 4, 95.0, 92.5),
     "3 of 4 GPUs lost"),
    ("a GPU lost that was never expected", HOST,
     gpus(reading(gpu_sample(0), lost=(LostGpu("GPU 1", "off the bus"),), enumerated=2)), 0, DEGRADED,
     (20.0, 30.0, 2, 90.0, 85.0), "1 of 2"),
    ("the host sampler stuck", state(host_sample(), age=3.1), gpus(TWO), 2, FAILING,
     (*WORST[:2], 2, *WORST[2:]), "stuck"),
    ("the host sampler stuck, no GPU", state(host_sample(), age=3.1), gpus(NO_DRIVER), 0, FAILING,
     (*WORST[:2], 1, *WORST[2:]), "stuck"),
    ("the host sampler stuck, GPUs left alone", state(host_sample(), age=3.1), None, 0, FAILING,
     (*WORST[:2], 1, *WORST[2:]), "stuck"),
    ("CPU and RAM cannot be read", state(None, error="no /proc", good=host_sample()), gpus(TWO), 2, FAILING,
     (*WORST[:2], 2, *WORST[2:]), "no /proc"),
    ("nothing has been read yet", NEVER_READ, NEVER_READ, 0, FAILING, (*WORST[:2], 1, *WORST[2:]), "cannot be read"),
    ("MIG: no utilization; power stands in", HOST, gpus(reading(gpu_sample(0, **MIG))), 1, OK,
     (20.0, 30.0, 1, 50.0, 70.0), "power draw stands in for utilization (in MIG mode)"),
    ("MIG: no utilization, no power; memory stands in", HOST, gpus(reading(gpu_sample(0, power_ratio=None, **MIG))),
     1, OK, (20.0, 30.0, 1, 70.0, 70.0), "memory in use stands in"),
    ("MIG: the parent's memory needs a permission", HOST,
     gpus(reading(gpu_sample(0, **MIG, memory_used_ratio=None, mig_instances=(
         MigInstance("0", "MIG-1", None, 100, 90), MigInstance("0", "MIG-2", None, 100, 10))))), 1, OK,
     (20.0, 30.0, 1, 50.0, 50.0), "MIG instances"),
    ("MIG: an instance cannot be read, so their sum would be a guess", HOST,
     gpus(reading(gpu_sample(0, **MIG, memory_used_ratio=None, mig_instances=(
         MigInstance("0", "MIG-1", None, 100, 1), MigInstance("0", "MIG-2", None, None, None))))), 1, OK,
     (20.0, 30.0, 1, 50.0, 50.0), "utilization stands in for memory"),
    ("unified memory: RAM is counted once", HOST, gpus(reading(gpu_sample(0, **UNIFIED))), 1, OK,
     (20.0, 30.0, 1, 80.0, 80.0), "utilization stands in for memory (it uses the host's RAM)"),
    ("unified memory and idle: never 0", HOST, gpus(reading(gpu_sample(0, utilization_ratio=0.0, **UNIFIED))), 1, OK,
     (20.0, 30.0, 1, 0.0, 1.0), "stands in for memory"),
    ("a GPU that reports nothing: the CPU stands in", HOST,
     gpus(reading(gpu_sample(0, utilization_ratio=None, memory_used_ratio=None, power_ratio=None))), 1, OK,
     (20.0, 30.0, 1, 20.0, 20.0), "the CPU stands in"),
    ("a GPU that reports nothing on an idle host: never 0", state(host_sample(cpu=0.0)),
     gpus(reading(gpu_sample(0, utilization_ratio=None, memory_used_ratio=None, power_ratio=None))), 1, OK,
     (0.0, 30.0, 1, 1.0, 1.0), "the CPU stands in"),
    ("saturated, and healthy", state(host_sample(1.0, 1.0)),
     gpus(reading(gpu_sample(0, utilization_ratio=1.0, memory_used_ratio=1.0))), 1, OK,
     (99.9, 100.0, 1, 100.0, 100.0), ""),
    ("saturated by a hair", state(host_sample(0.99999, 0.99999)),
     gpus(reading(gpu_sample(0, utilization_ratio=0.99999, memory_used_ratio=0.99999))), 1, OK,
     (99.9, 100.0, 1, 100.0, 100.0), ""),
    ("saturated, with a GPU lost", state(host_sample(1.0, 1.0)),
     gpus(reading(gpu_sample(0, utilization_ratio=1.0, memory_used_ratio=1.0))), 2, DEGRADED,
     (99.9, 100.0, 2, 100.0, 100.0), "lost"),
]  # fmt: skip
IDS = [case[0] for case in CASES]


def ollama(age: float = 0.5, error: Optional[str] = None, **more: Any) -> State[Any]:
    """A state of the Ollama collector: Ollama answers, is expected and was seen, unless said otherwise."""
    known = {
        "url": "http://ollama",
        "up": True,
        "expected": True,
        "seen": True,
        "rtt_seconds": 0.001,
    }
    return state(OllamaReading(**{**known, **more}), name="ollama", age=age, error=error)


def silent(failures: int, **more: Any) -> State[Any]:
    known = ollama(up=False, rtt_seconds=None, failures=failures, **more)
    return replace(known, sample=replace(known.sample, error="refused"))


def model(size: int, vram: int, name: str = "llama3.2:latest") -> Model:
    return Model(name=name, size_bytes=size, vram_bytes=vram, gpu_ratio=vram / size)


def log(requests: int, failed: int) -> LogReading:
    return LogReading(
        model_loads_total=0,
        model_load_seconds_total=0.0,
        log_lines_total=requests,
        log_lines_unparsed_total=0,
        spans=(RequestSpan(NOW - 5, NOW - 1, requests, failed, {0: requests}),),
    )


WELL = (20.0, 30.0, 2, 80.0, 70.0)
DEAD = (100.0, 100.0, 2, 100.0, 100.0)
WAITING = (99.9, 100.0, 2, 100.0, 100.0)
# what of Ollama broke, its state, rules ignored; status, the five fields, a word of the reasons. Two GPUs at 80 and 70
# %, an Ollama expected.
OLLAMA_CASES = [
    ("Ollama answers", ollama(models=(model(100, 100),)), (), OK, WELL, ""),
    ("Ollama answers with nothing loaded", ollama(), (), OK, WELL, ""),
    ("two checks were not answered", silent(2), (), OK, WELL, "refused"),
    ("three checks were not answered", silent(3), (), FAILING, DEAD, "refused (3 checks in a row)"),
    ("three checks, and that is ignored", silent(3), ("down",), OK, WELL, "refused"),
    ("not seen since the start, within the grace", silent(9, seen=False, waits_until=NOW + 1), (), DEGRADED, WAITING,
     "may be starting"),
    ("not seen since the start, after the grace", silent(9, seen=False, waits_until=NOW), (), FAILING, DEAD, "refused"),
    ("not seen since the start, without a grace", silent(1, seen=False, waits_until=NOW), (), DEGRADED, WAITING,
     "may be starting"),
    ("not seen, and that is ignored", silent(9, seen=False, waits_until=NOW + 1), ("down",), OK, WELL, "refused"),
    ("not expected and not there", silent(99, seen=False, expected=False), (), OK, WELL, "none is expected"),
    ("the first check is under way", replace(NEVER_READ), (), DEGRADED, WAITING, "not been checked yet"),
    ("the collector is stuck", ollama(age=3.1), (), FAILING, DEAD, "not checked any more"),
    ("the collector is stuck, and that is ignored", ollama(age=3.1), ("down",), OK, WELL, "not being checked"),
    ("the collector fails", ollama(error="a fault"), (), FAILING, DEAD, "a fault"),
    ("a slow answer", ollama(rtt_seconds=2.1), (), DEGRADED, WELL, "2.1 s"),
    ("an answer that is not slow yet", ollama(rtt_seconds=2.0), (), OK, WELL, ""),
    ("a slow answer, and that is ignored", ollama(rtt_seconds=2.1), ("slow",), OK, WELL, ""),
    ("most requests fail", ollama(log=log(10, 6)), (), DEGRADED, WELL, "6 of 10"),
    ("half of the requests fail", ollama(log=log(10, 5)), (), OK, WELL, ""),
    ("all of too few requests fail", ollama(log=log(9, 9)), (), OK, WELL, ""),
    ("most requests fail, and that is ignored", ollama(log=log(10, 6)), ("errors",), OK, WELL, ""),
    ("a model wholly on the CPU", ollama(models=(model(100, 0),)), (), DEGRADED, (20.0, 30.0, 2, 100.0, 100.0),
     "llama3.2:latest 100 %"),
    ("a model half on the CPU", ollama(models=(model(100, 50),)), (), DEGRADED, (20.0, 30.0, 2, 90.0, 85.0), "50 %"),
    ("one of two models on the CPU", ollama(models=(model(300, 300), model(100, 0, "b:1"))), (), DEGRADED,
     (20.0, 30.0, 2, 85.0, 77.5), "b:1 100 %"),
    ("a model on the CPU, and that is ignored", ollama(models=(model(100, 0),)), ("on-cpu",), OK, WELL, ""),
    ("a model that has no size", ollama(models=(Model("m", size_bytes=0, vram_bytes=0),)), (), OK, WELL, ""),
    ("more in GPU memory than its size", ollama(models=(replace(model(100, 110), gpu_ratio=1.0),)), (), OK, WELL, ""),
]  # fmt: skip


def snapshot(
    host: State[Any],
    gpu: Optional[State[Any]],
    expected: int,
    ollama: Optional[State[Any]] = None,
    ollama_expected: bool = True,
) -> Snapshot:
    return Snapshot(host, gpu, expected, "ask the operator", ollama, ollama_expected)


def served(
    host: State[Any],
    gpu: Optional[State[Any]],
    expected: int,
    policy: str = PESSIMISTIC,
    ollama: Optional[State[Any]] = None,
    ignored: tuple[str, ...] = (),
) -> bytes:
    """The JSON document of one case."""
    shot = snapshot(host, gpu, expected, ollama)
    verdict = judge(shot, WINDOW, policy, NOW, ignored)
    return render_json(shot, verdict, WINDOW, AgentBuild("1", "3"), AgentStats(), NOW)


# The document of each case, and whether the host fails in it.
ALL = [
    *((what, gone == FAILING, (host, gpu, n), {}) for what, host, gpu, n, gone, *_ in CASES),
    *((what, gone == FAILING, (HOST, gpus(TWO), 2), {"ollama": known, "ignored": ignored})
      for what, known, ignored, gone, *_ in OLLAMA_CASES),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "host", "gpu", "expected", "status", "fields", "word"), CASES, ids=IDS
)
def test_what_broke_decides_what_a_balancer_is_told(
    what: str, host: Any, gpu: Any, expected: int, status: str, fields: tuple[Any, ...], word: str
) -> None:
    """Each row of the table: the verdict, the five fields as a strict balancer decodes them, and the reason."""
    body = served(host, gpu, expected)
    document = json.loads(body)
    assert document["status"] == status
    assert tuple(decode(body)) == fields
    assert word in " ".join(document["reasons"])
    assert bool(document["reasons"]) or status == OK
    assert document["weight"] == pytest.approx(decode(body).weight)


@pytest.mark.parametrize(
    ("what", "known", "ignored", "status", "fields", "word"),
    OLLAMA_CASES,
    ids=[case[0] for case in OLLAMA_CASES],
)
def test_what_is_wrong_with_ollama_decides_it_too(
    what: str, known: Any, ignored: Any, status: str, fields: tuple[Any, ...], word: str
) -> None:
    """Each row of Ollama's table: the verdict, the five fields, and the reason."""
    body = served(HOST, gpus(TWO), 2, ollama=known, ignored=ignored)
    document = json.loads(body)
    assert document["status"] == status
    assert tuple(decode(body)) == fields
    assert word in " ".join(document["reasons"])
    assert bool(document["reasons"]) or status == OK


def test_a_collector_that_is_stuck_where_none_is_expected_is_no_failure() -> None:
    """Where no Ollama is expected, that it is not being checked is a reason and nothing more."""
    shot = snapshot(HOST, gpus(TWO), 2, ollama(age=99), ollama_expected=False)
    verdict = judge(shot, WINDOW, PESSIMISTIC, NOW)
    assert (verdict.status, verdict.balance.weight) == (OK, 275)
    assert "not being checked" in verdict.summary


@pytest.mark.parametrize("gpu", [None, gpus(NO_DRIVER)], ids=["left alone", "none"])
def test_models_on_the_cpu_of_a_host_without_gpus_are_as_they_should_be(gpu: Any) -> None:
    """A CPU-only host that serves from its CPU is ok."""
    shot = snapshot(HOST, gpu, 0, ollama(models=(model(100, 0),)))
    verdict = judge(shot, WINDOW, PESSIMISTIC, NOW)
    assert (verdict.status, verdict.balance.weight) == (OK, 50)


def test_a_dead_ollama_on_a_host_without_gpus_is_500() -> None:
    """Its highest would be 200, which beats a host with GPUs that works: so it is 500 as well."""
    assert decode(served(HOST, None, 0, ollama=silent(3))).weight == 500
    assert (
        decode(served(HOST, None, 0, ollama=silent(1, seen=False, waits_until=NOW + 9))).weight
        == 499.9
    )


def test_last_good_numbers_do_not_hide_a_dead_ollama() -> None:
    """Under last-good the numbers of a host whose Ollama is dead would be fresh ones, and idle: it gets 500."""
    assert decode(served(HOST, gpus(TWO), 2, LAST_GOOD, ollama=silent(3))).weight == 500
    assert decode(served(HOST, failed(), 2, LAST_GOOD, ollama=ollama())).weight == 275


@pytest.mark.parametrize("sick", [case for case in ALL if case[1]], ids=lambda case: case[0])
@pytest.mark.parametrize("well", [case for case in ALL if not case[1]], ids=lambda case: case[0])
@pytest.mark.parametrize("policy", ON_FAILURE[:2])
def test_a_balancer_picks_the_working_host_over_the_broken_one(
    policy: str, well: Any, sick: Any
) -> None:
    """Of a host that works (saturated, or with GPUs lost) and one that fails, the former wins: in every pair."""
    polls: dict[str, Optional[Poll]] = {
        "sick": decode(served(*sick[2], policy=policy, **sick[3])),
        "well": decode(served(*well[2], policy=policy, **well[3])),
    }
    assert pick(polls) == "well"
    assert polls["sick"] is not None
    assert polls["sick"].weight == 500


def test_a_lost_gpu_makes_a_host_heavier_than_its_healthy_twin() -> None:
    """Of two hosts alike, the one that has lost a GPU is not picked."""
    well = decode(served(HOST, gpus(TWO), 2))
    sick = decode(served(HOST, gpus(reading(gpu_sample(0))), 2))
    assert pick({"sick": sick, "well": well}) == "well"


@pytest.mark.parametrize(
    ("age", "fields"),
    [
        (5.0, (20.0, 30.0, 2, 80.0, 70.0)),
        (119.0, (20.0, 30.0, 2, 80.0, 70.0)),
        (121.0, (100.0, 100.0, 2, 100.0, 100.0)),
    ],
)
def test_last_good_numbers_are_served_for_two_minutes(age: float, fields: tuple[Any, ...]) -> None:
    """Policy last-good keeps the last numbers, their age growing, and is pessimistic after 120 s."""
    verdict = judge(snapshot(HOST, failed(age=age), 2), WINDOW, LAST_GOOD, NOW)
    assert verdict.status == FAILING
    assert verdict.age_seconds == pytest.approx(age)
    balance = verdict.balance
    assert (
        balance.cpu_percent,
        balance.ram_percent,
        balance.gpu_count,
        balance.gpu_avg_utilization_percent,
        balance.gpu_avg_memory_percent,
    ) == fields


@pytest.mark.parametrize("good", [None, NO_DRIVER], ids=["never read", "no driver before"])
def test_last_good_needs_something_good(good: Any) -> None:
    """A driver that fails and never showed a GPU has no last good numbers: 500 also under that policy."""
    verdict = judge(snapshot(HOST, failed(good=good), 0), WINDOW, LAST_GOOD, NOW)
    assert verdict.balance.weight == 500


def test_a_stuck_host_sampler_keeps_its_last_good_numbers_under_that_policy() -> None:
    """Policy last-good holds for a sampler that is stuck, too."""
    verdict = judge(snapshot(state(host_sample(), age=10), gpus(TWO), 2), WINDOW, LAST_GOOD, NOW)
    assert verdict.status == FAILING
    assert verdict.balance.weight == 275


def test_the_weights_of_the_contract_come_out() -> None:
    """consumers.md's two worked examples: 275 and 195, and the second host wins."""
    first = decode(served(HOST, gpus(TWO), 2))
    second = decode(
        served(
            state(host_sample(0.4, 0.5)),
            gpus(reading(gpu_sample(0, utilization_ratio=0.3, memory_used_ratio=0.4))),
            1,
        )
    )
    assert (first.weight, second.weight) == (275, 195)
    assert pick({"first": first, "second": second}) == "second"


def test_a_collector_is_stuck_after_three_intervals_and_not_before() -> None:
    """The verdict turns at the moment the state says, to a hair."""
    shot = snapshot(HOST, None, 0)
    assert judge(shot, WINDOW, PESSIMISTIC, HOST.overdue_at).status == OK
    assert judge(shot, WINDOW, PESSIMISTIC, HOST.overdue_at + 1e-6).status == FAILING


def test_utilization_is_averaged_and_memory_is_not() -> None:
    """CPU and GPU utilization are means over the window; RAM and GPU memory are as last read."""
    now_host, now_gpus = (
        host_sample(0.8, 0.9),
        reading(gpu_sample(0, utilization_ratio=1.0, memory_used_ratio=0.9)),
    )
    old_host, old_gpus = (
        host_sample(0.2, 0.1),
        reading(gpu_sample(0, utilization_ratio=0.0, memory_used_ratio=0.1)),
    )
    host, gpu = state(now_host), gpus(now_gpus)
    host = replace(host, ring=(Span(NOW - 2.5, NOW - 1.5, old_host.levels()), *host.ring))
    gpu = replace(gpu, ring=(Span(NOW - 4.5, NOW - 1.5, old_gpus.levels()), *gpu.ring))
    balance = judge(snapshot(host, gpu, 1), WINDOW, PESSIMISTIC, NOW).balance
    assert (balance.cpu_percent, balance.ram_percent) == (50.0, 90.0)
    assert (balance.gpu_avg_utilization_percent, balance.gpu_avg_memory_percent) == (25.0, 90.0)


ratios = st.one_of(st.none(), st.floats(0, 1))


@given(
    cpu=st.floats(0, 1),
    ram=st.floats(0, 1),
    readings=st.lists(st.tuples(ratios, ratios, ratios), max_size=4),
    expected=st.integers(0, 6),
    policy=st.sampled_from(ON_FAILURE),
    broken=st.sampled_from(["nothing", "host stuck", "gpu hung", "gpu gone"]),
)
def test_no_reading_whatsoever_makes_an_answer_that_a_balancer_cannot_use(
    cpu: float, ram: float, readings: Any, expected: int, policy: str, broken: str
) -> None:
    """Any reading gives five fields in range, a healthy weight below 500 and, pessimistically, a broken one at 500."""
    sample = reading(
        *(
            gpu_sample(i, utilization_ratio=u, memory_used_ratio=m, power_ratio=p)
            for i, (u, m, p) in enumerate(readings)
        )
    )
    host = state(host_sample(cpu, ram), age=9 if broken == "host stuck" else 0.5)
    gpu = (
        failed(good=sample)
        if broken == "gpu gone"
        else gpus(sample, age=9 if broken == "gpu hung" else 0.5)
    )
    poll = decode(served(host, gpu, expected, policy))
    percents = (
        poll.cpu_percent,
        poll.ram_percent,
        poll.gpu_avg_utilization_percent,
        poll.gpu_avg_memory_percent,
    )
    assert all(0 <= percent <= 100 for percent in percents)
    assert poll.gpu_count >= max(expected, len(readings))
    if broken == "nothing" or policy == LAST_GOOD:
        assert poll.weight < 500
    else:
        assert poll.weight == 500


# -- drained by the operator -------------------------------------------------------------------------------------------

DRAIN = Drain("a new disk", 1.7e9, None)


@pytest.mark.parametrize(("what", "fails", "arguments", "more"), ALL, ids=[case[0] for case in ALL])
@pytest.mark.parametrize("policy", ON_FAILURE)
def test_a_drained_host_gets_nothing(
    what: str, fails: bool, arguments: Any, more: dict[str, Any], policy: str
) -> None:
    """Whatever else is so: the highest weight, and the drain among the reasons; a failing host goes on failing."""
    known = {key: value for key, value in more.items() if key != "ignored"}
    shot = replace(snapshot(*arguments, **known), drain=DRAIN)
    verdict = judge(shot, WINDOW, policy, NOW, more.get("ignored", ()))
    assert verdict.status == (FAILING if fails else DRAINING)
    assert verdict.drained
    assert "drained: a new disk" in verdict.reasons
    body = render_json(shot, verdict, WINDOW, AgentBuild("1", "3"), AgentStats(), NOW)
    assert decode(body).weight == json.loads(body)["weight"] == verdict.weight == 500
    assert json.loads(body)["load"] == 1.0


# -- requests in flight ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_flight", "slots", "utilization"),
    [
        (0, 4, 40.0),
        (4, 4, 65.0),
        (12, 4, 77.5),
        (1, None, 65.0),
        (10**9, 4, 90.0),
        (None, 4, 90.0),
    ],
)
def test_the_queue_takes_its_share_of_the_gpus(
    in_flight: Optional[int], slots: Optional[int], utilization: float
) -> None:
    """--queue-aware: half the utilization, half n of n + slots; a count that is not known is any number."""
    known = ollama(active_requests=in_flight, slots=slots)
    shot = snapshot(HOST, gpus(TWO), 2, known)
    plain, aware = (judge(shot, WINDOW, PESSIMISTIC, NOW, queue_aware=on) for on in (False, True))
    assert plain.balance.gpu_avg_utilization_percent == 80.0
    assert aware.balance.gpu_avg_utilization_percent == utilization
    assert aware.weight == aware.balance.weight < 500
    assert ("requests in flight are not known" in " ".join(aware.reasons)) == (in_flight is None)


def test_no_queue_makes_a_saturated_host_look_dead() -> None:
    """With everything full and any queue the weight stays below a dead host's."""
    full = gpus(reading(gpu_sample(0, utilization_ratio=1.0, memory_used_ratio=1.0)))
    shot = snapshot(state(host_sample(1.0, 1.0)), full, 1, ollama(active_requests=512, slots=1))
    assert 499 < judge(shot, WINDOW, PESSIMISTIC, NOW, queue_aware=True).weight < 500


# -- other weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "fails", "arguments", "more"), ALL, ids=[case[0] for case in ALL])
@pytest.mark.parametrize(
    "weighting",
    [
        Weighting(capacity=4.0),
        Weighting(capacity=0.25),
        Weighting(cpu=0.0, in_flight=50.0),
        Weighting(gpu_util=0.0, gpu_mem=0.0),
    ],
)
def test_no_coefficient_makes_a_broken_host_win(
    what: str, fails: bool, arguments: Any, more: dict[str, Any], weighting: Weighting
) -> None:
    """A failing host has the highest weight of all, whatever its capacity; no other one reaches it."""
    known = {key: value for key, value in more.items() if key != "ignored"}
    shot = snapshot(*arguments, **known)
    verdict = judge(shot, WINDOW, PESSIMISTIC, NOW, more.get("ignored", ()), weighting)
    highest = weighting.highest
    assert verdict.weight == highest if fails else verdict.weight < highest
    assert (verdict.load_ratio == 1.0) >= fails
    assert 0 <= verdict.load_ratio <= 1


@pytest.mark.parametrize("more", [{}, {"queue_aware": True}])
@pytest.mark.parametrize("policy", ON_FAILURE)
def test_a_second_fault_never_makes_a_host_lighter(policy: str, more: dict[str, Any]) -> None:
    """A driver that fails where Ollama is waited for, or has a queue: the weight is no less than before."""
    waiting = silent(1, seen=False, waits_until=NOW + 9)
    queue = ollama(active_requests=20, slots=1)
    for known in (waiting, queue):
        before, after = (
            judge(snapshot(HOST, gpu, 2, known), WINDOW, policy, NOW, **more).weight
            for gpu in (gpus(TWO), failed())
        )
        assert after >= before


def test_a_check_that_is_missed_forgets_no_queue() -> None:
    """Requests in flight are counted by the kernel, whether Ollama answers in time or not."""
    busy = silent(1, active_requests=20, slots=1)
    verdict = judge(snapshot(HOST, gpus(TWO), 2, busy), WINDOW, PESSIMISTIC, NOW, queue_aware=True)
    assert verdict.balance.gpu_avg_utilization_percent == 87.6


@pytest.mark.parametrize("capacity", [0.25, 1.0, 100.0])
def test_a_host_that_waits_for_its_ollama_is_just_below_a_dead_one(capacity: float) -> None:
    """499.9 whatever its capacity, and down for HAProxy: 1 % would be no fence."""
    known = silent(1, seen=False, waits_until=NOW + 9)
    weighting = Weighting(capacity=capacity)
    verdict = judge(snapshot(HOST, gpus(TWO), 2, known), WINDOW, PESSIMISTIC, NOW, (), weighting)
    assert (verdict.status, verdict.weight, verdict.load_ratio) == (DEGRADED, 499.9, 1.0)
    assert verdict.waiting
