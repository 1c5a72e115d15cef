"""What can be wrong between NVIDIA's driver and the agent: versions, devices, permissions, the binding.

The files are those of the driver's README (procfs, /dev), of the kernel's sysfs and of pynvml's
distributions; what NVML says is asked apart, for its calls may never return.
"""

from __future__ import annotations

import os
import re
import stat
import sys

from .checkup import OK, PROBLEM, SKIPPED, WARNING, Finding, NoAnswer, User, ask_apart, read_text
from .errors import CollectorError
from .frozen import dataclass
from .nvml import LIBRARY, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any, Callable, Optional

_VERSION = re.compile(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b")
_LIBRARY_VERSION = re.compile(r"\.so\.(\d+\.[\d.]+)$")
_NODES = re.compile(r"nvidia(\d+|ctl|-uvm)")
_NVIDIA = "0x10de"  # its vendor number on the PCI bus; display controllers are of class 0x03....
_ACL = "system.posix_acl_access"
_BINDING, _MARK = "nvidia-ml-py", b"nvmlMemory_v2"
_MOST_SOURCE = 4 << 20
_GONE = ("NoLibrary", "NoDriver")
HANGS = "hangs"
MAKE_NODES = "nvidia-modprobe -u -c 0"
LOAD = "modprobe nvidia; where that fails: dmesg | grep -i nvrm; a new kernel without the module: dkms status"


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML tells of it; `lost` is why it does not answer."""

    index: int
    name: str
    persistent: Optional[bool]
    lost: str = ""


@dataclass(frozen=True)
class Driver:
    """NVML's answer. `failure` is empty or the name of the error whose text is `error`, or HANGS."""

    version: Optional[str] = None
    gpus: tuple[Gpu, ...] = ()
    failure: str = ""
    error: str = ""

    @property
    def works(self) -> bool:
        """Whether NVML could be initialised."""
        return not self.failure


def ask_driver(seconds: float, environ: Mapping[str, str]) -> Driver:
    """What the driver says now, or that it does not say anything within `seconds`."""
    try:
        told = ask_apart("checkup_driver", "tell_driver", seconds=seconds, environ=environ)
    except NoAnswer as error:
        failure = HANGS if str(error).startswith("no answer") else "NoAnswer"
        return Driver(failure=failure, error=str(error))
    if "failure" in told:
        return Driver(failure=told["failure"], error=told["error"])
    return Driver(told["version"], tuple(Gpu(*one) for one in told["gpus"]))


def tell_driver() -> dict[str, Any]:
    """The same, in this process: it may never return."""
    try:
        session = Session()
    except CollectorError as error:
        return {"failure": type(error).__name__, "error": str(error)}
    gpus: list[tuple[int, str, Optional[bool], str]] = []
    for index, device in enumerate(session.devices):
        if isinstance(device, str):
            gpus.append((index, "", None, device))
            continue
        handle = session.maybe("nvmlDeviceGetHandleByIndex", index)
        mode = session.maybe("nvmlDeviceGetPersistenceMode", handle) if handle is not None else None
        gpus.append((index, device.name or "", None if mode is None else bool(mode), ""))
    session.close()
    return {"version": session.driver_version, "gpus": gpus}


# -- versions ----------------------------------------------------------------------------------------------------------


def module_version(root: str = "/") -> Optional[str]:
    """The version of the kernel module that is loaded. Source: /sys/module/nvidia, /proc/driver/nvidia."""
    for name in ("sys/module/nvidia/version", "proc/driver/nvidia/version"):
        found = _VERSION.search(read_text(f"{root}{name}") or "")
        if found:
            return found[1]
    return None


def libraries(root: str = "/", library_path: str = "") -> tuple[str, ...]:
    """The files that the library's name leads to, without the root, in the order of ld.so(8)."""
    machine = os.uname().machine
    folders = [folder.strip("/") for folder in library_path.split(":") if folder.startswith("/")]
    for top in ("", "usr/", "usr/local/"):
        folders += [f"{top}lib/{machine}-linux-gnu", f"{top}lib64", f"{top}lib"]
    found: dict[str, None] = {}
    for folder in folders:
        path = os.path.realpath(f"{root}{folder}/{LIBRARY}")
        if os.path.exists(path):
            found[path] = None
    return tuple(found)


def check_versions(
    driver: Driver, expected: Optional[int], root: str = "/", library_path: str = ""
) -> Finding:
    """Whether the library belongs to the module, and whether both are there; `expected` GPUs, None: any number."""
    name = "driver"
    module, files = module_version(root), libraries(root, library_path)
    versions = [found[1] for file in files if (found := _LIBRARY_VERSION.search(file))]
    known = [f"module {module}"] if module is not None else []
    details = (*known, *(f"library {file}" for file in files))
    if driver.works:
        version = module or driver.version or "of an unknown version"
        return Finding(name, OK, f"{version}, module and library fit", details=details)
    wanted = expected or _gpus_on_the_bus(root)
    if module is None and driver.failure in _GONE:
        if not files and not wanted:
            return Finding(name, SKIPPED, "there is no NVIDIA driver and no NVIDIA GPU here")
        whose = f"for {wanted} GPU{'s' if wanted != 1 else ''}" if wanted else "by its library"
        if not files:
            text = f"there is no NVIDIA driver, and one is needed {whose}"
            return Finding(name, PROBLEM, text, "install NVIDIA's driver for this system")
        text = f"the driver's kernel module is not loaded, and it is needed {whose}"
        return Finding(name, PROBLEM if wanted else WARNING, text, LOAD, details)
    if not files and driver.failure == "NoLibrary":
        text = f"module {module} is loaded, and its library {LIBRARY} is not installed"
        remedy = (
            f"install the library of {module}; somewhere else: register its folder with ldconfig"
        )
        return Finding(name, PROBLEM, text, remedy, details)
    if module is not None and versions and module not in versions:
        text = f"the kernel has module {module}, and the library is of {', '.join(versions)}"
    elif driver.failure == "DriverReplaced":
        text = f"the library is not that of the kernel's module {module or ''}".rstrip()
    elif module is None:
        return Finding(name, SKIPPED, "the module's version cannot be seen", details=details)
    else:
        return Finding(name, OK, f"{module}, module and library", details=details)
    return Finding(
        name,
        PROBLEM,
        f"{text}: the driver was updated",
        "reboot; or, with nothing on the GPUs: systemctl stop ollama ollama-metrics nvidia-persistenced; "
        "rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; modprobe nvidia; start them again",
        details,
    )


def _gpus_on_the_bus(root: str) -> int:
    folder, count = f"{root}sys/bus/pci/devices", 0
    try:
        names = os.listdir(folder)
    except OSError:
        return 0
    for name in names:
        if (read_text(f"{folder}/{name}/vendor") or "").strip() == _NVIDIA:
            count += (read_text(f"{folder}/{name}/class") or "").startswith("0x03")
    return count


# -- what answers ------------------------------------------------------------------------------------------------------


def check_gpus(driver: Driver, expected: Optional[int]) -> Finding:
    """Whether NVML answers, for each GPU, and whether they are as many as `expected` (None: any number)."""
    name = "GPUs"
    if driver.failure in _GONE:
        if expected:
            text = f"none, and {expected} are expected: {driver.error}"
            return Finding(name, PROBLEM, text, "see `driver` above")
        return Finding(name, SKIPPED, driver.error)
    if driver.failure == HANGS:
        return Finding(
            name,
            PROBLEM,
            f"the driver hangs: {driver.error}",
            "dmesg | grep -i -e nvrm -e xid; a driver that hangs takes a reboot",
        )
    if driver.failure:
        remedy = "dmesg | grep -i -e nvrm -e xid; nvidia-smi says the same"
        if driver.failure == "DriverReplaced":
            remedy = "see `driver` above"
        return Finding(name, PROBLEM, driver.error, remedy)
    lost = [f"GPU {gpu.index}: {gpu.lost}" for gpu in driver.gpus if gpu.lost]
    details = tuple(f"GPU {gpu.index}: {gpu.name}" for gpu in driver.gpus if not gpu.lost)
    if lost:
        return Finding(
            name,
            PROBLEM,
            f"{len(lost)} of {len(driver.gpus)} do not answer: {'; '.join(lost)}",
            "dmesg | grep -i xid; nvidia-smi --gpu-reset -i INDEX with nothing on it, else a reboot",
            details,
        )
    count = len(driver.gpus)
    if not count:
        text = "the driver names none"
        return Finding(name, PROBLEM, text, "lspci -d 10de: ; dmesg | grep -i nvrm")
    if expected is not None and count < expected:
        return Finding(
            name,
            PROBLEM,
            f"{count} of {expected} that are expected",
            "lspci -d 10de: ; dmesg | grep -i xid; on purpose: OLLAMA_METRICS_EXPECTED_GPUS, or with auto "
            "rm /var/lib/ollama-metrics/gpus-expected and restart the agent",
            details,
        )
    names = ", ".join(dict.fromkeys(gpu.name or "without a name" for gpu in driver.gpus))
    return Finding(name, OK, f"{count} answer{'s' if count == 1 else ''}: {names}", details=details)


def check_persistence(driver: Driver) -> Finding:
    """Whether the driver keeps each GPU initialised while nobody uses it."""
    name = "persistence"
    asked = [gpu for gpu in driver.gpus if not gpu.lost]
    if not asked:
        return Finding(name, SKIPPED, "no GPU answers")
    off = [gpu.index for gpu in asked if gpu.persistent is False]
    if off:
        which = ", ".join(map(str, off))
        return Finding(
            name,
            WARNING,
            f"off on GPU {which}: it is initialised anew, for seconds, whenever its last user has gone",
            "systemctl enable --now nvidia-persistenced; until the next boot: nvidia-smi -pm 1",
        )
    if all(gpu.persistent is None for gpu in asked):
        return Finding(name, SKIPPED, "the driver does not say")
    return Finding(name, OK, f"on for {'the GPU' if len(asked) == 1 else 'all GPUs'}")


# -- device nodes ------------------------------------------------------------------------------------------------------


def _has_acl(path: str) -> bool:
    try:
        return bool(os.getxattr(path, _ACL))
    except OSError:
        return False


def group_name(gid: int) -> str:
    """The name in /etc/group: a device's group is of this host."""
    for line in (read_text("/etc/group", 1 << 20) or "").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == str(gid):
            return fields[0]
    return str(gid)


def check_nodes(
    user: User,
    root: str = "/",
    group_name: Callable[[int], str] = group_name,
    acl: Callable[[str], bool] = _has_acl,
) -> Finding:
    """Whether a user may read and write what the driver's library opens. Source: /dev/nvidia*."""
    name = "device nodes"
    try:
        nodes = sorted(one for one in os.listdir(f"{root}dev") if _NODES.fullmatch(one))
    except OSError as error:
        return Finding(name, SKIPPED, f"/dev cannot be listed: {error.strerror}", hidden=True)
    if not nodes:
        if module_version(root) is None:
            return Finding(name, SKIPPED, "there are none, and no driver's module is loaded")
        return Finding(name, PROBLEM, "the module is loaded, and there are no nodes", MAKE_NODES)
    shut, details = [], []
    for node in nodes:
        path = f"{root}dev/{node}"
        try:
            seen = os.stat(path)
        except OSError as error:
            details.append(f"/dev/{node}: {error.strerror}")
            continue
        owned = f"{stat.filemode(seen.st_mode)} {seen.st_uid}:{seen.st_gid}"
        details.append(f"/dev/{node} {owned}")
        if not _may(user, seen):
            shut.append((f"/dev/{node}", owned, seen, acl(path)))
    if shut:
        which = " ".join(node for node, *_ in shut)
        _, owned, first, _ = shut[0]
        text = f"the user {user.name} may not read and write {which} ({owned})"
        if any(has_acl for *_, has_acl in shut):
            text += " by their mode; they have access lists, too"
            remedy = f"runuser -u {user.name} -- nvidia-smi -L"
            return Finding(name, WARNING, text, remedy, tuple(details))
        if first.st_gid and first.st_mode & 0o060 == 0o060:
            group = group_name(first.st_gid)
            remedy = f"usermod -a -G {group} {user.name}; systemctl restart ollama-metrics ollama"
        else:
            remedy = (
                "options nvidia NVreg_DeviceFileMode=0666 in /etc/modprobe.d/nvidia.conf, for the next boot; "
                f"until then: chmod 0666 {which}"
            )
        return Finding(name, PROBLEM, text, remedy, tuple(details))
    missing = [node for node in ("nvidiactl", "nvidia-uvm") if node not in nodes]
    if missing:
        which = " and ".join(f"/dev/{node}" for node in missing)
        uvm = "Ollama computes on the CPU without it" if "nvidia-uvm" in missing else ""
        text = f"there is no {which}{': ' if uvm else ''}{uvm}"
        return Finding(name, WARNING, text, MAKE_NODES, tuple(details))
    text = f"the user {user.name} may read and write all {len(nodes)}"
    return Finding(name, OK, text, details=tuple(details))


def _may(user: User, seen: os.stat_result) -> bool:
    """Whether a file's mode lets this user read and write it: of its three parts one counts."""
    if user.uid == 0:
        return True
    mode = seen.st_mode
    if seen.st_uid == user.uid:
        mode >>= 6
    elif seen.st_gid in user.gids:
        mode >>= 3
    return mode & 0o6 == 0o6


# -- the binding -------------------------------------------------------------------------------------------------------


def check_binding(driver_is_here: bool, path: Optional[Sequence[str]] = None) -> Finding:
    """Whether the module pynvml on `path` (sys.path) is that of nvidia-ml-py, and not an older package's."""
    from importlib.machinery import PathFinder

    name = "pynvml"
    found = PathFinder.find_spec("pynvml", path)
    origin = found.origin if found is not None else None
    if not origin:
        return Finding(
            name,
            PROBLEM if driver_is_here else WARNING,
            "the package nvidia-ml-py is not installed",
            _install(()),
        )
    owners = _owners(os.path.realpath(origin), path)
    others = sorted(owner for owner in owners if _plain(owner) != _BINDING)
    details = (f"{origin} of {', '.join(sorted(owners)) or 'no package'}",)
    if not _has_mark(origin):
        whose = f"an old one, of {', '.join(others)}" if others else "an old one"
        return Finding(name, PROBLEM, f"the module is {whose}", _install(others), details)
    if others:
        text = f"nvidia-ml-py's module is also {' and '.join(others)}'s, which may overwrite it"
        return Finding(name, WARNING, text, _install(others), details)
    version = next((text for owner, text in owners.items() if _plain(owner) == _BINDING), "")
    return Finding(name, OK, f"of nvidia-ml-py {version}".rstrip(), details=details)


def _owners(origin: str, path: Optional[Sequence[str]]) -> dict[str, str]:
    """The distributions, with their versions, that have installed the file."""
    from importlib.metadata import distributions

    found = {}
    for one in distributions(path=list(sys.path if path is None else path)):
        for file in one.files or ():
            if file.parts[0] in ("pynvml.py", "pynvml") and (
                os.path.realpath(str(one.locate_file(file))) == origin
            ):
                found[str(one.metadata["Name"])] = one.version
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _has_mark(origin: str) -> bool:
    """Whether the source has what the agent needs; the module is not imported for that."""
    files = [origin]
    if os.path.basename(origin) == "__init__.py":
        folder = os.path.dirname(origin)
        files = [f"{folder}/{file}" for file in os.listdir(folder) if file.endswith(".py")]
    for file in files:
        with open(file, "rb") as source:
            if _MARK in source.read(_MOST_SOURCE):
                return True
    return False


def _install(others: Collection[str]) -> str:
    if os.path.realpath(sys.prefix).startswith("/opt/ollama-metrics/"):
        return "run install.sh of ollama-metrics again"  # pip is not left in its environment
    pip = f"{sys.executable} -m pip"
    away = f"{pip} uninstall -y {' '.join(others)}; " if others else ""
    return f"{away}{pip} install --force-reinstall nvidia-ml-py"
