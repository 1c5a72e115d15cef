"""Where a loaded model sits, and how much room is left: Ollama's, the kernel's and the driver's words, joined; pure.

Ollama's API names no GPU and no process. The way from a model to its GPUs: its weights (POST /api/show) are
on the command line of one of Ollama's runners, and the runner's process is in the driver's list of each
GPU that it uses. Where a link is missing the answer is `unknown` with the reason, never a guess.
"""

from __future__ import annotations

from .frozen import dataclass
from .metrics import gauge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Optional

    from .gpu import GpuSample
    from .ollama import Model, Runner


@dataclass(frozen=True)
class GpuShare:
    """What one loaded model has of one GPU.

    Source: NVML's list of the GPU's processes, nvmlDeviceGetComputeRunningProcesses_v3.
    """

    PREFIX = "ollama_model"
    LABELS = (("model", "model"), ("gpu", "gpu"), ("uuid", "uuid"))

    model: str
    gpu: int
    uuid: str
    gpu_memory_bytes: Optional[int] = gauge("Memory of the GPU that the model's runner uses.")


@dataclass(frozen=True)
class Placement:
    """Where one loaded model sits.

    `gpus` are those that its runner uses; `unknown` is why that, or how much of them, is not known.
    """

    PREFIX = "ollama_model"
    LABELS = (("model", "model"),)

    model: str
    gpus: tuple[GpuShare, ...] = ()
    cpu_ratio: Optional[float] = gauge("Share of the loaded model that the CPU works on.")
    placement_known: bool = gauge("Whether the GPUs that the model sits on are known.")
    unknown: Optional[str] = None


@dataclass(frozen=True)
class VideoMemory:
    """How much room the GPUs have left for models.

    Source: the GPUs' free memory, NVML. Not reported while any GPU's is not known.
    """

    PREFIX = "ollama_vram"
    LABELS = ()

    free_bytes: Optional[int] = gauge("Free memory of all GPUs together.")
    largest_free_bytes: Optional[int] = gauge(
        "Largest free memory of one GPU: what fits here needs no eviction and no split."
    )


@dataclass(frozen=True)
class VideoMemoryUse:
    """What Ollama's runners have of one GPU.

    Source: NVML's list of the GPU's processes.
    """

    PREFIX = "ollama_vram"
    LABELS = (("gpu", "gpu"), ("uuid", "uuid"))

    gpu: int
    uuid: str
    used_bytes: int = gauge("Memory of the GPU that Ollama's runners use.")


def place(
    models: Iterable[Model],
    blobs: Mapping[str, str],
    runners: Optional[Sequence[Runner]],
    gpus: Optional[Sequence[GpuSample]],
) -> tuple[Placement, ...]:
    """The placement of each model, in their order.

    `blobs` has the digest of each model's weights as far as it is known, `runners` is None where
    Ollama's processes cannot be seen, `gpus` is None where no GPU could be read.
    """
    models = tuple(models)
    sharing: dict[str, int] = {}
    for model in models:
        blob = blobs.get(model.name)
        if blob is not None:
            sharing[blob] = sharing.get(blob, 0) + 1
    return tuple(_place(model, blobs.get(model.name), sharing, runners, gpus) for model in models)


def _place(
    model: Model,
    blob: Optional[str],
    sharing: Mapping[str, int],
    runners: Optional[Sequence[Runner]],
    gpus: Optional[Sequence[GpuSample]],
) -> Placement:
    on_cpu = 1 - model.gpu_ratio if model.gpu_ratio is not None else None

    def unknown(why: str, shares: tuple[GpuShare, ...] = ()) -> Placement:
        return Placement(model.name, shares, on_cpu, False, why)

    if not model.vram_bytes:
        return Placement(model.name, (), on_cpu, True)
    if not gpus:
        return unknown("no GPU can be read")
    if runners is None:
        return unknown("the agent cannot see Ollama's processes")
    if blob is None:
        return unknown("Ollama does not say what weights it is made of")
    own = [runner for runner in runners if runner.blob == blob]
    if not own:
        return unknown("no process of Ollama's has its weights on its command line")
    if len(own) > 1 or sharing[blob] > 1:
        return unknown("other models or runners have the same weights")
    silent = [gpu.index for gpu in gpus if gpu.processes is None]
    if silent:
        return unknown(f"GPU {silent[0]} does not tell its processes")
    pid = own[0].pid
    shares = tuple(
        GpuShare(model.name, gpu.index, gpu.uuid, used)
        for gpu in gpus
        for process, used in gpu.processes or ()
        if process == pid
    )
    if not shares:
        return unknown(f"its process {pid} is on no GPU's list")
    if any(share.gpu_memory_bytes is None for share in shares):
        return unknown("the driver does not tell how much memory a process uses", shares)
    return Placement(model.name, shares, on_cpu, True)


def room(gpus: Sequence[GpuSample]) -> Optional[VideoMemory]:
    """What is left on these GPUs; None without any."""
    if not gpus:
        return None
    free = [gpu.memory_free_bytes for gpu in gpus]
    known = [one for one in free if one is not None]
    if len(known) < len(free):
        return VideoMemory(None, None)
    return VideoMemory(sum(known), max(known))


def used_by(
    runners: Optional[Sequence[Runner]], gpus: Sequence[GpuSample]
) -> tuple[VideoMemoryUse, ...]:
    """What the runners have of each GPU that tells it of all of them."""
    if runners is None:
        return ()
    pids = {runner.pid for runner in runners}
    found = []
    for gpu in gpus:
        if gpu.processes is None:
            continue
        own = [used for pid, used in gpu.processes if pid in pids]
        if None not in own:
            found.append(VideoMemoryUse(gpu.index, gpu.uuid, sum(used or 0 for used in own)))
    return tuple(found)
