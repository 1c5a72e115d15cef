"""The weight out of the five fields: coefficients, capacity, load and the queue's share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_metrics.weight import DEFAULT, Balance, Weighting, bounded, queue_share, with_queue

PERCENT = st.floats(0, 100).map(lambda value: round(value, 1))
BALANCES = st.builds(Balance, PERCENT, PERCENT, st.integers(0, 16), PERCENT, PERCENT)
EXAMPLE = Balance(20.0, 30.0, 1, 80.0, 70.0)
CPU_ONLY = Balance(20.0, 30.0, 0, 0.0, 0.0)


def test_the_balancers_own_examples() -> None:
    """The two of the contract: 275 and 195, of which the second wins."""
    assert EXAMPLE.weight == 275.0
    assert Balance(40.0, 50.0, 2, 30.0, 40.0).weight == 195.0


@given(BALANCES)
def test_by_default_it_is_the_balancers_formula(balance: Balance) -> None:
    """cpu + ram + 1.5 utilization + 1.5 memory, the latter two only with GPUs."""
    gpus = 1.5 * balance.gpu_avg_utilization_percent + 1.5 * balance.gpu_avg_memory_percent
    expected = balance.cpu_percent + balance.ram_percent + (gpus if balance.gpu_count > 0 else 0)
    assert balance.weight == pytest.approx(expected, abs=0.011)
    told = DEFAULT.weight(bounded(balance), 7, broken=False)
    assert told == pytest.approx(min(expected, 499.9), abs=0.011)


def test_components_add_up_to_the_weight() -> None:
    """Each field by itself, before capacity; requests in flight count by their coefficient."""
    weighting = Weighting(in_flight=2.5, capacity=2.0)
    parts = weighting.components(EXAMPLE, 4)
    assert parts == {
        "cpu": 20.0,
        "ram": 30.0,
        "gpu_util": 120.0,
        "gpu_mem": 105.0,
        "in_flight": 10.0,
    }
    assert weighting.weight(EXAMPLE, 4, broken=False) == sum(parts.values()) / 2


def test_what_is_in_flight_and_not_known_is_not_idle() -> None:
    """Where it counts, a host that cannot tell is just below a broken one; where it does not count, it is no matter."""
    assert Weighting(in_flight=0.1).weight(EXAMPLE, None, broken=False) == 499.9
    assert DEFAULT.weight(EXAMPLE, None, broken=False) == 275.0
    assert with_queue(CPU_ONLY, None, 4).cpu_percent == 60.0


def test_a_queue_counts_on_hosts_without_gpus_too() -> None:
    """There it is in the CPU's field, for no balancer reads the other; gpu_count stays 0 and so does that."""
    assert with_queue(CPU_ONLY, 4, 4) == Balance(35.0, 30.0, 0, 0.0, 0.0)


def test_a_broken_host_is_never_lighter_than_500() -> None:
    """Whatever the coefficients: hosts of one pool may have unlike ones."""
    for weighting in (Weighting(gpu_util=0.0, gpu_mem=0.0), Weighting(0.00001, 0.0, 0.0, 0.0)):
        assert weighting.weight(EXAMPLE, 0, broken=True) == 500
        assert 0 <= weighting.weight(EXAMPLE, 0, broken=False) < 500
    assert Weighting(cpu=100.0).highest == 10_400


@given(BALANCES, st.none() | st.integers(0, 10**6), st.floats(0.01, 100))
def test_only_a_broken_host_has_the_highest_weight(
    balance: Balance, in_flight: int, capacity: float
) -> None:
    """Whatever is measured and however weak the host is, it stays below one that is broken, and at 0 or above."""
    weighting = Weighting(in_flight=3.0, capacity=capacity)
    assert 0 <= weighting.weight(balance, in_flight, broken=False) < weighting.highest == 500
    assert weighting.weight(balance, in_flight, broken=True) == 500
    assert 0 <= weighting.load(balance, in_flight, broken=False) <= 1
    assert weighting.load(balance, in_flight, broken=True) == 1


def test_load_compares_unlike_hosts() -> None:
    """A share of what this kind of host can have: 275 of 500 with GPUs, 50 of 200 without; capacity is no load."""
    assert DEFAULT.load(EXAMPLE, 0, broken=False) == 0.55
    assert DEFAULT.load(CPU_ONLY, 0, broken=False) == 0.25
    assert Weighting(capacity=4.0).load(EXAMPLE, 0, broken=False) == 0.55


def test_a_longer_queue_is_always_worse() -> None:
    """0 without a queue, a half with as many as there are slots, below 1 with any; every request more is felt."""
    shares = [queue_share(count, 4) for count in range(2000)]
    assert shares[0] == 0
    assert shares[4] == 0.5
    assert shares == sorted(set(shares))
    assert shares[-1] < 1


@given(BALANCES, st.none() | st.integers(0, 10**9), st.none() | st.integers(0, 10**6))
def test_a_queue_stays_below_the_worst(balance: Balance, in_flight: int, slots: int) -> None:
    """No queue reaches the weight of a dead host, and with a longer one no host gets lighter."""
    queued = with_queue(bounded(balance), in_flight, slots)
    assert 0 <= queued.weight < 500
    assert queued.weight >= with_queue(bounded(balance), 0, slots).weight
    assert queued.gpu_count == balance.gpu_count


def test_of_two_full_hosts_the_shorter_queue_wins() -> None:
    """Where GPUs are full, utilization says nothing more: what tells them apart is who waits there."""
    full = Balance(20.0, 30.0, 1, 100.0, 70.0)
    one, nine = (with_queue(full, count, 4) for count in (5, 9))
    assert one.weight < nine.weight < 500
