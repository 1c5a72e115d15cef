"""Takes one `GpuReading` a cycle, out of an NVML session that is opened again when it is lost.

`GpuCollector.collect` is called by one thread, its own, for a driver call may never return. What a
device does not report is None and, in its session, not asked for again.
"""

from __future__ import annotations

import time

from .backoff import LONGEST_SECONDS, backed_off
from .errors import (
    CollectorError,
    DeviceLost,
    DriverFailure,
    DriverReplaced,
    NoDriver,
    NoLibrary,
    NoPermission,
    NotReported,
    ReadingFailed,
)
from .gpu import GpuReading, GpuSample, LostGpu, MigInstance
from .nvml import Session
from .nvml_device import THROTTLE_REASONS, Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from .expectation import Expectation

# Without these a GPU cannot be weighed: one that fails to answer them (and does not merely lack
# them) is broken.
VITAL = ("utilization_ratio", "memory_used_bytes", "memory_total_bytes")
# A GPU that does not report one of them is asked again this often; the rest is not asked again.
VITAL_AGAIN_SECONDS = 60.0
LONGEST_REOPEN_SECONDS = 300.0

_READERS: tuple[tuple[str, Callable[..., Any]], ...] = tuple(
    (name, field.metadata["metric"].read)
    for name, field in GpuSample.__dataclass_fields__.items()
    if "metric" in field.metadata and field.metadata["metric"].read is not None
)


class GpuCollector:
    """Takes `GpuReading`s; owns the NVML session and what each device of it was found not to report.

    `expectation` learns of every GPU that is seen. `log` gets each new cause of trouble once.
    `pause` is how many seconds the next cycle may wait at least: it grows while there is no driver
    to be asked. `driver_replaced` is whether the last cycle failed because the driver and the
    library that this process has loaded are of different versions: only a new process mends that.
    The processes on each GPU are asked for every `processes_every` seconds, None: never.
    """

    def __init__(
        self,
        expectation: Expectation,
        log: Callable[[str, str], None],
        open_session: Callable[[], Session] = Session,
        clock: Callable[[], float] = time.monotonic,
        processes_every: Optional[float] = None,
    ) -> None:
        self._expectation, self._log, self._open, self._clock = (
            expectation,
            log,
            open_session,
            clock,
        )
        self.pause = 0.0
        self.driver_replaced = False
        self._reopen_at = self._reopen_after = 0.0
        self._session: Optional[Session] = None
        self._unreported: dict[str, set[str]] = {}
        self._known: dict[str, str] = {}  # UUID -> label, of every GPU that this process has seen
        self._answered: set[tuple[str, str]] = set()  # the vital readings of this session
        self._vital_again_at = 0.0
        self._processes_every = processes_every
        self._processes_at = float("-inf")
        self._processes: dict[str, Any] = {}
        self._said: set[str] = set()

    def collect(self) -> GpuReading:
        """One reading. A GPU that is lost is in `lost`; now and then the session is opened anew to find it back.

        Raises NoDriver or DriverFailure when no GPU answers on a host that should have one.
        """
        self.driver_replaced = False
        try:
            session = self._session if self._session is not None else self._reopen()
            if session.ask_count() != session.count:
                self.close()
                session = self._reopen()
            reading = self._read(session)
        except NoDriver as error:
            self.close()
            if self._expectation.count:
                raise
            # A module may be loaded at any moment after boot; a library has to be installed.
            no_library = isinstance(error, NoLibrary)
            self.pause = LONGEST_SECONDS if no_library else backed_off(self.pause)
            return GpuReading(absence=str(error))
        except CollectorError as error:
            self.driver_replaced = isinstance(error, DriverReplaced)
            self.close()
            raise
        self._look_for_lost(len(reading.gpus) < max(1, session.count, self._expectation.count))
        if not reading.gpus:
            # Also where no GPU was ever seen: a module that is loaded had a GPU to be loaded for.
            why = (
                "; ".join(f"{gpu.label}: {gpu.reason}" for gpu in reading.lost[:4])
                or "the driver names none"
            )
            raise DriverFailure(f"no GPU answers ({why})")
        return reading

    def _look_for_lost(self, some: bool) -> None:
        """End the session from time to time while some GPUs are lost.

        Only a new session finds one that was reset or has come back, for the driver enumerates when
        it is initialised. That takes seconds where persistence mode is off, hence the longest wait.
        """
        now = self._clock()
        if not some:
            self._reopen_after = 0.0
        elif not self._reopen_after:
            self._reopen_after = backed_off(0.0)
            self._reopen_at = now + self._reopen_after
        elif now >= self._reopen_at:
            self.close()
            self._reopen_after = backed_off(self._reopen_after, LONGEST_REOPEN_SECONDS)
            self._reopen_at = now + self._reopen_after

    def close(self) -> None:
        """End the session, if one is open."""
        session, self._session = self._session, None
        self._unreported.clear()
        self._answered.clear()
        if session is not None:
            session.close()

    def _reopen(self) -> Session:
        self._session = session = self._open()
        self.pause = 0.0
        names: set[str] = set()
        for device in session.devices:
            if not isinstance(device, Device):
                continue
            if device.uuid in names:
                device.uuid += f"#{device.index}"  # each GPU is told apart by it, whatever it says
            names.add(device.uuid)
            if len(self._known) < 1024:
                label = f"GPU {device.index} ({device.name or 'no name'}, {device.uuid})"
                self._known[device.uuid] = label
        return session

    def _read(self, session: Session) -> GpuReading:
        self._expectation.saw(session.count)
        now = self._clock()
        if now >= self._vital_again_at:
            self._vital_again_at = now + VITAL_AGAIN_SECONDS
            for unreported in self._unreported.values():
                unreported.difference_update(VITAL)
        if self._processes_every is not None and now >= self._processes_at + self._processes_every:
            self._processes_at = now
            self._processes.clear()
        gpus: list[GpuSample] = []
        lost: list[LostGpu] = []
        for index, device in enumerate(session.devices):
            if isinstance(device, str):
                labels = [one for one in self._known.values() if one.startswith(f"GPU {index} (")]
                lost.append(LostGpu(labels[-1] if labels else f"GPU {index}", device))
                continue
            try:
                gpus.append(self._sample(device))
            except (DeviceLost, ReadingFailed) as error:
                lost.append(LostGpu(self._known.get(device.uuid, f"GPU {index}"), str(error)))
        here = {device.uuid for device in session.devices if isinstance(device, Device)}
        gone = [label for uuid, label in self._known.items() if uuid not in here]
        unnamed = max(0, self._expectation.count - session.count)
        lost.extend(LostGpu(label, "the driver names it no more") for label in gone[:unnamed])
        return GpuReading(
            gpus=tuple(gpus),
            lost=tuple(lost),
            enumerated=session.count,
            driver_version=session.driver_version,
            cuda_version=session.cuda_version,
            nvml_version=session.nvml_version,
        )

    def _sample(self, device: Device) -> GpuSample:
        """Read one device. Raises DeviceLost, ReadingFailed (a vital reading) or an end of the session."""
        device.refresh()
        unreported = self._unreported.setdefault(device.uuid, set())
        values: dict[str, Any] = {}
        for name, read in _READERS:
            if name not in unreported:
                values[name] = self._reading(device, name, read, unreported)
        instances: tuple[MigInstance, ...] = ()
        if values.get("mig_enabled"):
            instances = tuple(
                MigInstance(str(device.index), uuid, profile, total, used)
                for uuid, profile, total, used in self._reading(
                    device, "mig_instances", Device.mig_instances, unreported
                )
                or ()
            )
        bits = self._reading(device, "throttle_bits", Device.throttle_bits, unreported)
        if bits is not None:
            reasons = tuple(reason for bit, reason in THROTTLE_REASONS if bits & bit)
            values["throttle_reasons"] = reasons
            values["throttled_power"] = bool(bits & 0x084)
            values["throttled_thermal"] = bool(bits & 0x060)
            values["throttled_hardware"] = bool(bits & 0x008)
        values["memory_used_ratio"] = _ratio(
            values.get("memory_used_bytes"), values.get("memory_total_bytes")
        )
        values["power_ratio"] = _ratio(
            values.get("power_draw_watts"), values.get("power_limit_watts")
        )
        return GpuSample(
            index=device.index,
            name=device.name,
            uuid=device.uuid,
            pci_bus_id=device.pci_bus_id,
            unified_memory=device.unified_memory,
            mig_instances=instances,
            processes=self._processes_of(device, unreported),
            **values,
        )

    def _processes_of(self, device: Device, unreported: set[str]) -> Any:
        """The last answer, for it changes only when a model is loaded or unloaded."""
        if self._processes_every is None:
            return None
        if device.uuid not in self._processes:
            answer = self._reading(device, "processes", Device.processes, unreported)
            self._processes[device.uuid] = answer
        return self._processes[device.uuid]

    def _reading(
        self, device: Device, name: str, read: Callable[..., Any], unreported: set[str]
    ) -> Any:
        if name in unreported:
            return None
        try:
            value = read(device)
            if name in VITAL:
                self._answered.add((device.uuid, name))
            return value
        except NotReported as error:
            if (device.uuid, name) in self._answered:
                # It could say so a moment ago: MIG was switched on, or something is broken. A new
                # session will tell.
                raise ReadingFailed(str(error)) from None
            unreported.add(name)
        except ReadingFailed as error:
            if name in VITAL and not isinstance(error, NoPermission):
                raise
            self._say_once(f"{name} of GPU {device.index} cannot be read: {error}")
        return None

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said and len(self._said) < 256:
            self._said.add(sentence)
            self._log("warning", sentence)


def _ratio(part: Optional[float], whole: Optional[float]) -> Optional[float]:
    return part / whole if part is not None and whole else None
