"""ollama-metrics: how busy an Ollama host really is, for the balancer in front of it.

`OllamaGPUMonitor` is the same for other programs (docs/LIBRARY.md). It is loaded when it is asked for, so
that the import of this package costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .errors import CollectorError, DriverFailure, OllamaAnswer, OllamaDown, OllamaError
    from .monitor import OllamaGPUMonitor
    from .monitor_values import (
        GpuStatus,
        GpuUsage,
        LostGpu,
        ModelGpuUsage,
        MonitorStatus,
        OllamaProcess,
    )
if not TYPE_CHECKING:  # or else any name would be one to a type checker

    def __getattr__(name):
        """A name of the library, by its module."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import errors, monitor, monitor_values

        for module in (monitor, monitor_values, errors):
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(name)

    def __dir__():
        return sorted({*globals(), *__all__})


__version__ = "0.1.0"
__all__ = [
    "CollectorError",
    "DriverFailure",
    "GpuStatus",
    "GpuUsage",
    "LostGpu",
    "ModelGpuUsage",
    "MonitorStatus",
    "OllamaAnswer",
    "OllamaDown",
    "OllamaError",
    "OllamaGPUMonitor",
    "OllamaProcess",
    "__version__",
]
