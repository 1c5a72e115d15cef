"""What a cgroup has used, read from folders of files as the kernel writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from ollama_metrics.errors import CollectorError
from ollama_metrics.ollama import CgroupUsage
from ollama_metrics.ollama_cgroup import fixed, usage

OWN = "/system.slice/ollama.service"
MOUNT = "sys/fs/cgroup"
V2_MARK = {f"{MOUNT}/cgroup.controllers": "cpuset cpu io memory pids\n"}
V2_FILES = {
    "memory.current": "6442450944\n",
    "memory.max": "8589934592\n",
    "memory.events": "low 0\nhigh 7\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n",
    "cpu.stat": (
        "usage_usec 12500000\nuser_usec 10000000\nsystem_usec 2500000\n"
        "nr_periods 400\nnr_throttled 25\nthrottled_usec 1500000\n"
    ),
    "io.stat": (
        "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n"
        "8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021\n"
    ),
}
V2 = {**V2_MARK, **{f"{MOUNT}{OWN}/{name}": text for name, text in V2_FILES.items()}}
V1 = {
    f"{MOUNT}/memory{OWN}/memory.usage_in_bytes": "6442450944\n",
    f"{MOUNT}/memory{OWN}/memory.limit_in_bytes": "8589934592\n",
    f"{MOUNT}/memory{OWN}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    f"{MOUNT}/cpu{OWN}/cpu.stat": "nr_periods 400\nnr_throttled 25\nthrottled_time 1500000000\n",
    f"{MOUNT}/cpuacct{OWN}/cpuacct.usage": "12500000000\n",
    f"{MOUNT}/blkio{OWN}/blkio.throttle.io_service_bytes_recursive": (
        "8:16 Read 1459200\n8:16 Write 314773504\n8:16 Sync 5\n8:16 Async 6\n8:16 Total 316232704\n"
        "8:0 Read 90430464\n8:0 Write 299008000\n8:0 Sync 0\n8:0 Async 0\n8:0 Total 389438464\n"
        "Total 705671168\n"
    ),
}
V1_PATHS = dict.fromkeys(("memory", "cpu", "cpuacct", "blkio", "name=systemd", ""), OWN)
ALL = CgroupUsage(
    path=OWN,
    memory_used_bytes=6 << 30,
    memory_limit_bytes=8 << 30,
    cpu_seconds_total=12.5,
    throttled_periods_total=25,
    throttled_seconds_total=1.5,
    oom_kills_total=2,
    io_read_bytes_total=1459200 + 90430464,
    io_written_bytes_total=314773504 + 299008000,
)


def read(root: Path, files: Mapping[str, str], paths: Mapping[str, str]) -> CgroupUsage:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return usage(paths, str(root))


def v2(root: Path, **texts: str) -> CgroupUsage:
    """A cgroup of v2 with these files alone; `_` in a name is a dot."""
    files = {f"{MOUNT}{OWN}/{name.replace('_', '.')}": text for name, text in texts.items()}
    return read(root, {**V2_MARK, **files}, {"": OWN})


def test_v2(tmp_path: Path) -> None:
    """On v2 everything is in the one folder of the cgroup."""
    assert read(tmp_path, V2, {"": OWN}) == ALL


def test_v1(tmp_path: Path) -> None:
    """On v1 each controller has its hierarchy; times are nanoseconds there."""
    assert read(tmp_path, V1, V1_PATHS) == ALL


def test_v1_may_have_another_path_in_each_hierarchy(tmp_path: Path) -> None:
    """Each controller is read by its own path."""
    cpu = f"{MOUNT}/cpuacct{OWN}/cpuacct.usage"
    files = {**V1, f"{MOUNT}/cpuacct/elsewhere/cpuacct.usage": "3000000000\n"}
    del files[cpu]
    paths = {**V1_PATHS, "cpuacct": "/elsewhere"}
    found = read(tmp_path, files, paths)
    assert found.cpu_seconds_total == 3.0
    assert found.memory_used_bytes == 6 << 30


def test_a_hybrid_host_has_some_controllers_in_v2(tmp_path: Path) -> None:
    """What is in no hierarchy of v1 is read below `unified`; the process's own paths say which is which."""
    files = {name: text for name, text in V1.items() if "/blkio/" not in name}
    files[f"{MOUNT}/unified/other/io.stat"] = "8:0 rbytes=5 wbytes=6\n"
    paths = {**V1_PATHS, "": "/other"}
    del paths["blkio"]
    found = read(tmp_path, files, paths)
    assert (found.io_read_bytes_total, found.io_written_bytes_total) == (5, 6)
    assert found.memory_used_bytes == 6 << 30
    assert found.path == OWN


def test_a_cgroup_of_v2_named_like_a_controller_is_none(tmp_path: Path) -> None:
    """On v2 a folder `memory` at the root is somebody's cgroup."""
    files = {**V2, f"{MOUNT}/memory{OWN}/memory.usage_in_bytes": "1\n"}
    assert read(tmp_path, files, fixed(OWN)) == ALL


def test_a_controller_that_is_off_is_not_reported(tmp_path: Path) -> None:
    """Without the memory, io or cpu controller their numbers are None, and CPU time is there all the same."""
    found = v2(tmp_path, cpu_stat="usage_usec 2000000\nuser_usec 1\nsystem_usec 1\n")
    assert found == CgroupUsage(path=OWN, cpu_seconds_total=2.0)


def test_no_limit_is_not_reported(tmp_path: Path) -> None:
    """v2's `max` and v1's largest number mean that there is no limit."""
    assert v2(tmp_path / "v2", memory_current="5\n", memory_max="max\n") == CgroupUsage(
        path=OWN, memory_used_bytes=5
    )
    limit = f"{MOUNT}/memory{OWN}/memory.limit_in_bytes"
    found = read(tmp_path / "v1", {**V1, limit: "9223372036854771712\n"}, V1_PATHS)
    assert found.memory_limit_bytes is None


def test_a_cgroup_that_has_not_used_a_disk_has_read_nothing(tmp_path: Path) -> None:
    """An empty io.stat is zero bytes, for the kernel lists only devices that were used; an absent one is unknown."""
    found = v2(tmp_path, io_stat="")
    assert (found.io_read_bytes_total, found.io_written_bytes_total) == (0, 0)


def test_an_older_kernel_has_no_recursive_io_in_v1(tmp_path: Path) -> None:
    """Where v1 does not sum over the cgroups below, its own number is read."""
    folder = f"{MOUNT}/blkio{OWN}/blkio.throttle.io_service_bytes"
    files = {**V1, folder: "8:0 Read 7\n8:0 Write 8\nTotal 15\n"}
    del files[f"{folder}_recursive"]
    found = read(tmp_path, files, V1_PATHS)
    assert (found.io_read_bytes_total, found.io_written_bytes_total) == (7, 8)


@pytest.mark.parametrize(
    ("files", "paths"), [(V2, {"": "/gone"}), (V1, {"memory": "/gone"}), (V2, {}), ({}, {"": OWN})]
)
def test_a_cgroup_without_a_file_is_an_error(
    tmp_path: Path, files: Mapping[str, str], paths: Mapping[str, str]
) -> None:
    """A cgroup that was removed, or a path that is none, is told."""
    with pytest.raises(
        CollectorError, match=r"no file of the cgroup /\S* can be read in .*sys/fs/cgroup"
    ):
        read(tmp_path, files, paths)


def test_a_cgroup_outside_of_the_namespace_is_an_error(tmp_path: Path) -> None:
    """A path that leads out of the mount is not followed, wherever it would lead."""
    files = {**V2, "sys/fs/memory.current": "1\n"}
    with pytest.raises(CollectorError, match=r"the cgroup /\.\./x cannot be seen from here"):
        read(tmp_path, files, {"": "/../x"})


NONSENSE = [
    "",
    "\n",
    "x",
    "max max",
    "-5",
    "1e3",
    "\x00\u00ff",
    "9" * 4000,
    "9" * 5000,
    "=\n =",
    "8:0 Read",
]


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_nonsense_is_not_reported(tmp_path: Path, files: Mapping[str, str], text: str) -> None:
    """What is no number is None (for bytes of disks nothing, 0), and breaks nothing."""
    texts = {name: text if OWN in name else keep for name, keep in files.items()}
    found = read(tmp_path, texts, {"": OWN} if files is V2 else V1_PATHS)
    assert found == CgroupUsage(path=OWN, io_read_bytes_total=0, io_written_bytes_total=0)


def test_huge_files_are_read_in_part(tmp_path: Path) -> None:
    """A file of megabytes does not cost its size."""
    assert v2(tmp_path, memory_current="5\n" + "\n" * 3_000_000).memory_used_bytes == 5


def test_a_name_that_is_no_text_is_shown_without_it(tmp_path: Path) -> None:
    """The files of a cgroup whose name is not UTF-8 are read; its path can be written into a page all the same."""
    own = os.fsdecode(b"/\xff\x1b[2J")
    (tmp_path / MOUNT).mkdir(parents=True)
    folder = os.fsencode(tmp_path / MOUNT) + os.fsencode(own)
    os.mkdir(folder)
    with open(folder + b"/memory.current", "w") as file:
        file.write("5\n")
    assert read(tmp_path, V2_MARK, {"": own}) == CgroupUsage(path="/??[2J", memory_used_bytes=5)


@pytest.mark.parametrize(
    "text",
    [
        "system.slice/ollama.service",
        "/system.slice/ollama.service",
        "/sys/fs/cgroup/system.slice/ollama.service",
        "/sys/fs/cgroup/memory/system.slice/ollama.service/",
        "/sys/fs/cgroup/cpu,cpuacct/system.slice/ollama.service",
        "/sys/fs/cgroup/unified/system.slice/ollama.service",
        "//system.slice/./ollama.service//",
    ],
)
def test_the_setting_may_be_given_in_each_usual_way(tmp_path: Path, text: str) -> None:
    """As `systemctl show -p ControlGroup` has it, as a path of the file system, of v1 too: v1 and v2 read the same."""
    assert read(tmp_path / "v2", V2, fixed(text)) == ALL
    assert read(tmp_path / "v1", V1, fixed(text)) == ALL


def test_the_setting_may_be_the_root(tmp_path: Path) -> None:
    """In a container the mount is the container's own cgroup."""
    files = {**V2_MARK, f"{MOUNT}/memory.current": "5\n"}
    for text in ("/", "/sys/fs/cgroup", "/sys/fs/cgroup/"):
        assert read(tmp_path, files, fixed(text)) == CgroupUsage(path="/", memory_used_bytes=5)


@pytest.mark.parametrize(
    "text", ["", "..", "../x", "/sys/fs/cgroup/../../etc", "a/../b", "/a/..", "a\0b"]
)
def test_a_setting_that_leads_upwards_is_refused(text: str) -> None:
    """Nothing outside of the cgroups' file system can be named."""
    with pytest.raises(ValueError):
        fixed(text)


def test_a_name_with_dots_is_a_name() -> None:
    """Two dots within a name lead nowhere."""
    assert fixed("a..b/...")[""] == "/a..b/..."


def test_this_process_can_be_read() -> None:
    """On the machine that runs the tests the memory or CPU of the hierarchies' roots can be read."""
    if not Path("/sys/fs/cgroup/memory").exists() and not Path("/sys/fs/cgroup/cpu.stat").exists():
        pytest.skip("no cgroups are mounted")
    found = usage(fixed("/"))
    assert found.memory_used_bytes or found.cpu_seconds_total
