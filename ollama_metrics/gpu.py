"""The values of a reading of the host's GPUs; `GpuSample` is the table of every metric of a GPU."""

from __future__ import annotations

from .frozen import dataclass
from .metrics import counter, detail, gauge, info
from .nvml_device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional

    from .window import Levels


@dataclass(frozen=True)
class MigInstance:
    """One instance of a GPU in MIG mode."""

    PREFIX = "ollama_gpu_mig"
    LABELS = (("gpu", "gpu"), ("uuid", "uuid"))

    gpu: str
    uuid: str = detail("UUID of the instance.")
    name: Optional[str] = detail("Profile name of the instance.")
    memory_total_bytes: Optional[int] = gauge("Memory of the MIG instance.")
    memory_used_bytes: Optional[int] = gauge("Memory of the MIG instance that is in use.")


@dataclass(frozen=True)
class GpuSample:
    """One reading of one GPU.

    Source: NVML; the call behind each attribute is named at the method of `nvml_device.Device` that reads
    it.
    """

    PREFIX = "ollama_gpu"
    LABELS = (("gpu", "index"), ("uuid", "uuid"))
    INFO = "Which GPU this is."

    index: int = detail("Index of the GPU in NVML's order.")
    name: Optional[str] = info("Product name.")
    utilization_ratio: Optional[float] = gauge(
        "Share of the driver's last sample period in which a kernel ran.",
        read=Device.utilization_ratio,
    )
    memory_used_bytes: Optional[int] = gauge("Memory in use.", read=Device.memory_used_bytes)
    memory_total_bytes: Optional[int] = gauge(
        "Memory of the board.", read=Device.memory_total_bytes
    )
    memory_used_ratio: Optional[float] = gauge(
        "Memory in use over memory of the board.", json="memory_percent"
    )
    temperature_celsius: Optional[int] = gauge(
        "Temperature of the GPU's own sensor.", read=Device.temperature_celsius
    )
    power_draw_watts: Optional[float] = gauge(
        "Power draw of the board.", read=Device.power_draw_watts
    )
    power_limit_watts: Optional[float] = gauge(
        "Power limit that is enforced.", read=Device.power_limit_watts
    )
    power_ratio: Optional[float] = gauge("Power draw over the enforced limit.")
    uuid: str = detail("UUID of the GPU.")
    pci_bus_id: Optional[str] = info("PCI bus id.")
    memory_free_bytes: Optional[int] = gauge("Memory that is free.", read=Device.memory_free_bytes)
    memory_reserved_bytes: Optional[int] = gauge(
        "Memory that the driver keeps for itself.", read=Device.memory_reserved_bytes
    )
    unified_memory: Optional[bool] = gauge(
        "Whether the GPU's memory is the host's RAM, and so counted there."
    )
    sm_clock_hertz: Optional[int] = gauge(
        "Clock of the streaming multiprocessors.", read=Device.sm_clock_hertz
    )
    memory_clock_hertz: Optional[int] = gauge(
        "Clock of the memory.", read=Device.memory_clock_hertz
    )
    performance_state: Optional[int] = gauge(
        "Performance state: 0 is the fastest, 15 the slowest.",
        json="pstate",
        read=Device.performance_state,
    )
    throttle_reasons: Optional[tuple[str, ...]] = detail(
        "What holds the clocks back now, NVML's clock event reasons."
    )
    throttled_power: Optional[bool] = gauge(
        "Whether a power cap or power brake holds the clocks back.", json=None
    )
    throttled_thermal: Optional[bool] = gauge(
        "Whether the temperature holds the clocks back.", json=None
    )
    throttled_hardware: Optional[bool] = gauge(
        "Whether the hardware's own slowdown is active.", json=None
    )
    energy_joules_total: Optional[float] = counter(
        "Energy used since the driver was loaded.", read=Device.energy_joules_total
    )
    ecc_corrected_errors_total: Optional[int] = counter(
        "Memory errors corrected by ECC since the driver was loaded.",
        json="ecc_corrected",
        read=Device.ecc_corrected_errors_total,
    )
    ecc_uncorrected_errors_total: Optional[int] = counter(
        "Memory errors that ECC could not correct since the driver was loaded.",
        json="ecc_uncorrected",
        read=Device.ecc_uncorrected_errors_total,
    )
    pcie_link_generation: Optional[int] = gauge(
        "PCIe generation of the link now.", json="pcie_generation", read=Device.pcie_link_generation
    )
    pcie_link_width: Optional[int] = gauge(
        "PCIe lanes of the link now.", json="pcie_width", read=Device.pcie_link_width
    )
    fan_speed_ratio: Optional[float] = gauge(
        "Fan speed asked for, of the full speed.", read=Device.fan_speed_ratio
    )
    encoder_utilization_ratio: Optional[float] = gauge(
        "Utilization of the video encoder.", read=Device.encoder_utilization_ratio
    )
    decoder_utilization_ratio: Optional[float] = gauge(
        "Utilization of the video decoder.", read=Device.decoder_utilization_ratio
    )
    mig_enabled: Optional[bool] = gauge(
        "Whether the GPU is split into MIG instances.", read=Device.mig_enabled
    )
    mig_instances: tuple[MigInstance, ...] = ()
    # (pid, bytes used) of each process on it, the bytes None where the driver does not tell them;
    # None: not asked for, or not reported.
    processes: Optional[tuple[tuple[int, Optional[int]], ...]] = None

    def levels(self) -> Levels:
        """Utilization, memory and power as ratios, for the ring; None where not reported."""
        return self.utilization_ratio, self.memory_used_ratio, self.power_ratio


@dataclass(frozen=True)
class LostGpu:
    """A GPU that the driver names and that does not answer, or that was there and is named no more."""

    label: str
    reason: str


@dataclass(frozen=True)
class GpuReading:
    """One reading of the host's GPUs: those that answer, those that do not, and the driver's versions."""

    PREFIX = "ollama_gpu_driver"
    LABELS = ()
    INFO = "Versions of the NVIDIA driver."

    gpus: tuple[GpuSample, ...] = ()
    lost: tuple[LostGpu, ...] = ()
    enumerated: int = 0
    absence: Optional[str] = None  # why a host that never had a GPU has none
    driver_version: Optional[str] = info("Version of the NVIDIA driver.", json="version")
    cuda_version: Optional[str] = info("Highest CUDA version that the driver serves.")
    nvml_version: Optional[str] = info("Version of the driver's NVML library.")

    def levels(self) -> Mapping[str, Levels]:
        """Each GPU's levels by its UUID."""
        return {gpu.uuid: gpu.levels() for gpu in self.gpus}
