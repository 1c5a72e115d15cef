"""Which limits count, read from folders of files as the kernel writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Optional

import pytest

from ollama_metrics.cgroup import Cgroup, Limits

GIB = 1 << 30
V1_UNLIMITED = "9223372036854771712\n"
V2_MARK = {"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids\n"}
# The root of a whole v2 tree has neither limits nor a memory.current.
V2_HOST = {
    **V2_MARK,
    "sys/fs/cgroup/cpu.stat": "usage_usec 5000000\nuser_usec 4000000\nsystem_usec 1000000\n",
    "sys/fs/cgroup/memory.stat": "anon 1\nfile 2\n",
    "sys/fs/cgroup/cpuset.cpus.effective": "0-7\n",
}
V2_CONTAINER = {
    **V2_HOST,
    "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
    "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
    "proc/self/cgroup": "0::/\n",
}
V1_HOST = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_UNLIMITED,
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{10 * GIB}\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpuset/cpuset.cpus": "0-7\n",
    "sys/fs/cgroup/cpuacct/cpuacct.usage": "7000000000\n",
    "proc/self/cgroup": "4:memory:/\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n",
}
V1_CONTAINER = {
    **V1_HOST,
    ".dockerenv": "",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
    "proc/self/cgroup": "4:memory:/docker/0123\n2:cpu,cpuacct:/docker/0123\n0::/docker/0123\n",
}


def cgroup(root: Path, files: Mapping[str, str], cpus: int = 8) -> Cgroup:
    write(root, files)
    return Cgroup(str(root), cpus)


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


# -- which cgroup counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [V2_HOST, V1_HOST, V2_MARK, {}], ids=["v2", "v1", "bare", "none"])
def test_a_host_has_no_limits(tmp_path: Path, files: Mapping[str, str]) -> None:
    """The root of a host's tree limits nothing, nor does a system without cgroups."""
    assert cgroup(tmp_path, files).limits() == Limits(None, None)


def test_a_v2_containers_limits_are_on_its_root(tmp_path: Path) -> None:
    """A v2 container sees its own cgroup as the root: memory.max and cpu.max count there."""
    assert cgroup(tmp_path, V2_CONTAINER).limits() == Limits(4 * GIB, 1.5)


def test_a_v2_container_without_limits_has_none(tmp_path: Path) -> None:
    """`max` is no limit."""
    files = {
        **V2_CONTAINER,
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
    }
    assert cgroup(tmp_path, files).limits() == Limits(None, None)


def test_a_v1_containers_limits_are_on_its_controllers_roots(tmp_path: Path) -> None:
    """Docker on v1 mounts the container's cgroup as the root of each controller; its path elsewhere is no matter."""
    assert cgroup(tmp_path, V1_CONTAINER).limits() == Limits(2 * GIB, 2.0)


def test_v1_beside_an_unused_unified_tree_is_v1(tmp_path: Path) -> None:
    """systemd's hybrid layout has v2 under `unified` and is read as v1."""
    files = {**V1_CONTAINER, "sys/fs/cgroup/unified/cgroup.controllers": "\n"}
    group = cgroup(tmp_path, files)
    assert not group.v2
    assert group.limits() == Limits(2 * GIB, 2.0)


def test_a_services_own_limit_on_a_v2_host_does_not_count(tmp_path: Path) -> None:
    """A systemd service with a MemoryMax and a CPUQuota of its own answers for the host."""
    own = "sys/fs/cgroup/system.slice/ollama-metrics.service"
    files = {
        **V2_HOST,
        "proc/self/cgroup": "0::/system.slice/ollama-metrics.service\n",
        f"{own}/memory.max": "67108864\n",
        f"{own}/memory.current": "20000000\n",
        f"{own}/cpu.max": "10000 100000\n",
    }
    assert cgroup(tmp_path, files).limits() == Limits(None, None)


def test_a_services_own_limit_on_a_v1_host_does_not_count(tmp_path: Path) -> None:
    """The same on v1."""
    own = "system.slice/ollama-metrics.service"
    files = {
        **V1_HOST,
        "proc/self/cgroup": f"4:memory:/{own}\n2:cpu,cpuacct:/{own}\n0::/{own}\n",
        f"sys/fs/cgroup/memory/{own}/memory.limit_in_bytes": "67108864\n",
        f"sys/fs/cgroup/cpu/{own}/cpu.cfs_quota_us": "10000\n",
        f"sys/fs/cgroup/cpu/{own}/cpu.cfs_period_us": "100000\n",
    }
    assert cgroup(tmp_path, files).limits() == Limits(None, None)


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv"])
def test_a_container_with_the_hosts_tree_is_found_by_its_path(tmp_path: Path, mark: str) -> None:
    """With `--cgroupns=host` the container's limits are at its path in the host's tree."""
    own = "sys/fs/cgroup/system.slice/docker-0123.scope"
    files = {
        **V2_HOST,
        mark: "",
        "proc/self/cgroup": "0::/system.slice/docker-0123.scope\n",
        f"{own}/memory.max": f"{GIB}\n",
        f"{own}/memory.current": f"{GIB // 2}\n",
        f"{own}/memory.stat": "inactive_file 0\n",
        f"{own}/cpu.max": "50000 100000\n",
        f"{own}/cpu.stat": "usage_usec 2500000\n",
        f"{own}/cpuset.cpus.effective": "0-7\n",
    }
    group = cgroup(tmp_path, files)
    assert group.limits() == Limits(GIB, 0.5)
    assert group.cpu_seconds() == 2.5
    assert group.memory_available(GIB) == GIB // 2


@pytest.mark.parametrize(
    "proc", ["", "0::/\n", "nonsense\n", "0::/../../elsewhere\n", "4:memory:/x\n"]
)
def test_a_container_that_cannot_be_placed_uses_the_mounts_root(tmp_path: Path, proc: str) -> None:
    """Without a usable path in /proc/self/cgroup the root of the mount is all there is to go by."""
    files = {**V2_HOST, ".dockerenv": "", "proc/self/cgroup": proc}
    assert cgroup(tmp_path, files).limits() == Limits(None, None)


# -- CPUs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "cpuset", "cpus"),
    [
        ("150000 100000", "0-7", 1.5),
        ("25000 50000", "0-7", 0.5),
        ("max 100000", "0-1,4", 3.0),
        ("max 100000", "3", 1.0),
        ("200000 100000", "5", 1.0),
        ("50000 100000", "0-3", 0.5),
        ("800000 100000", "0-7", None),
        ("1600000 100000", "0-7", None),
        ("max 100000", "0-7", None),
        ("max 100000", "0-15", None),
        ("max 100000", "", None),
        ("max 100000", "0-,x", None),
        ("max 100000", "7-0", None),
    ],
)
def test_cpus_are_the_tighter_of_quota_and_cpuset(
    tmp_path: Path, quota: str, cpuset: str, cpus: float
) -> None:
    """A quota may be a fraction, a cpuset counts its CPUs, the tighter wins; as much as the host has is no limit."""
    files = {
        **V2_CONTAINER,
        "sys/fs/cgroup/cpu.max": f"{quota}\n",
        "sys/fs/cgroup/cpuset.cpus.effective": f"{cpuset}\n",
    }
    assert cgroup(tmp_path, files).limits().cpus == cpus


def test_a_v1_cpuset_limits(tmp_path: Path) -> None:
    """v1's cpuset counts like v2's."""
    files = {**V1_HOST, "sys/fs/cgroup/cpuset/cpuset.cpus": "0,2-3\n"}
    assert cgroup(tmp_path, files).limits() == Limits(None, 3.0)


def test_a_v1_quota_may_be_a_fraction(tmp_path: Path) -> None:
    """v1's quota over its period: one and a half CPUs."""
    files = {**V1_CONTAINER, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n"}
    assert cgroup(tmp_path, files).limits().cpus == 1.5


def test_cpu_seconds(tmp_path: Path) -> None:
    """CPU time is in microseconds in v2's cpu.stat and in nanoseconds in v1's cpuacct.usage."""
    assert cgroup(tmp_path / "v2", V2_CONTAINER).cpu_seconds() == 5.0
    assert cgroup(tmp_path / "v1", V1_CONTAINER).cpu_seconds() == 7.0


@pytest.mark.parametrize("text", ["", "user_usec 5\n", "usage_usec x\n", "usage_usec\n"])
def test_a_cpu_stat_without_usage_is_an_error(tmp_path: Path, text: str) -> None:
    """CPU time that cannot be read is an error (never 0)."""
    group = cgroup(tmp_path, {**V2_CONTAINER, "sys/fs/cgroup/cpu.stat": text})
    with pytest.raises(ValueError):
        group.cpu_seconds()


# -- memory ------------------------------------------------------------------------------------------------------------


def test_page_cache_counts_as_available_in_v2(tmp_path: Path) -> None:
    """What the kernel can drop (file pages, reclaimable slabs) is available; shared memory is not."""
    stat = (
        "anon 700\nfile 600\nshmem 100\ninactive_file 300\nactive_file 200\nslab_reclaimable 50\n"
    )
    files = {
        **V2_CONTAINER,
        "sys/fs/cgroup/memory.current": "1500\n",
        "sys/fs/cgroup/memory.stat": stat,
    }
    assert cgroup(tmp_path, files).memory_available(2000) == 2000 - 1500 + 550


def test_page_cache_counts_as_available_in_v1(tmp_path: Path) -> None:
    """v1's totals (with the children) are what usage_in_bytes is about, not the cgroup's own."""
    stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\n"
    files = {
        **V1_CONTAINER,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500\n",
        "sys/fs/cgroup/memory/memory.stat": stat,
    }
    assert cgroup(tmp_path, files).memory_available(2000) == 2000 - 1500 + 500


@pytest.mark.parametrize(
    ("current", "cache", "available"), [(2500, 0, 0), (100, 900, 2000), (0, 0, 2000)]
)
def test_available_memory_stays_within_the_limit(
    tmp_path: Path, current: int, cache: int, available: int
) -> None:
    """Use above a limit that was lowered leaves nothing, and cache never makes more than the limit."""
    files = {
        **V2_CONTAINER,
        "sys/fs/cgroup/memory.current": f"{current}\n",
        "sys/fs/cgroup/memory.stat": f"inactive_file {cache}\n",
    }
    assert cgroup(tmp_path, files).memory_available(2000) == available


@pytest.mark.parametrize("name", ["memory.current", "memory.stat"])
@pytest.mark.parametrize("text", ["inactive_file x\n", None])
def test_memory_use_that_cannot_be_read_is_an_error(
    tmp_path: Path, name: str, text: Optional[str]
) -> None:
    """Use that cannot be read is an error (never 0)."""
    group = cgroup(tmp_path, V2_CONTAINER)
    path = tmp_path / "sys/fs/cgroup" / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises((OSError, ValueError)):
        group.memory_available(GIB)


# -- what no kernel writes ---------------------------------------------------------------------------------------------

NONSENSE = [
    *("", "\n", "x", "max max", "-5", "1e3", "\x00\xff", "0", "0 0", "5 -5", "-5 -5"),
    *("9" * 4000, "9" * 5000, "9" * 4000 + " 1", "9" * 19 + "9 0"),
]


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_in_a_v2_limit_is_no_limit(tmp_path: Path, text: str) -> None:
    """A limit that cannot be understood limits nothing and breaks nothing."""
    files = {
        **V2_CONTAINER,
        "sys/fs/cgroup/memory.max": text,
        "sys/fs/cgroup/cpu.max": text,
        "sys/fs/cgroup/cpuset.cpus.effective": text,
    }
    limits = cgroup(tmp_path, files).limits()
    assert not limits.memory_bytes
    assert limits.cpus in (None, 1.0)  # "0" is a cpuset of one CPU


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_in_a_v1_limit_is_no_limit(tmp_path: Path, text: str) -> None:
    """The same on v1."""
    files = {
        **V1_CONTAINER,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": text,
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": text,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": text,
        "sys/fs/cgroup/cpuset/cpuset.cpus": text,
    }
    limits = cgroup(tmp_path, files).limits()
    assert not limits.memory_bytes
    assert limits.cpus in (None, 1.0)


def test_a_folder_where_a_file_should_be_is_no_limit(tmp_path: Path) -> None:
    """What cannot be opened limits nothing."""
    files = {name: text for name, text in V2_CONTAINER.items() if not name.endswith(".max")}
    (tmp_path / "sys/fs/cgroup/memory.max").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").mkdir()
    assert cgroup(tmp_path, files).limits() == Limits(None, None)


def test_huge_files_are_read_in_part(tmp_path: Path) -> None:
    """A file of megabytes costs neither its size in memory nor the agent."""
    files = {
        **V2_CONTAINER,
        "sys/fs/cgroup/memory.max": f"{GIB}\n" + "\n" * 2_000_000,
        "sys/fs/cgroup/cpuset.cpus.effective": "0," * 1_000_000,
    }
    assert cgroup(tmp_path, files).limits().memory_bytes == GIB


def test_limits_are_read_anew_each_time(tmp_path: Path) -> None:
    """A limit that is changed while the container runs is seen at the next look."""
    group = cgroup(tmp_path, V2_CONTAINER)
    assert group.limits() == Limits(4 * GIB, 1.5)
    write(
        tmp_path,
        {"sys/fs/cgroup/memory.max": f"{8 * GIB}\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
    )
    assert group.limits() == Limits(8 * GIB, None)


def test_this_machine_can_be_read() -> None:
    """On the machine that runs the tests limits can be asked for, whatever it is."""
    limits = Cgroup().limits()
    assert limits.memory_bytes is None or limits.memory_bytes > 0
    assert limits.cpus is None or limits.cpus > 0
