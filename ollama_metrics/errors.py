"""Every error that this package raises on purpose, but for `answer.Refused`, the event loop's own.

    OllamaMetricsError
    |-- ConfigError          an option or variable is wrong           (exit 2)
    |-- ListenError          an address cannot be listened on         (exit 1)
    `-- CollectorError       a source of readings gave none
        |-- NoDriver         no NVIDIA library or driver: what a host without GPUs shows
        |   `-- NoLibrary    not even the library
        |-- DriverFailure    there is a driver and it fails
        |   `-- DriverReplaced   it is not the one that the loaded library belongs to
        `-- OllamaError      Ollama gave no usable answer
            |-- OllamaDown       nobody answers in time, or the connection breaks
            `-- OllamaAnswer     there is an answer, and it is not what Ollama answers

What a single call to the driver can answer stays inside the GPU collector:

    NotReported              the device or the driver does not have this reading
    ReadingFailed            this call failed, for a reason that may pass
    `-- NoPermission         the driver keeps this reading for root
    DeviceLost               the device no longer answers
"""

from __future__ import annotations


class OllamaMetricsError(Exception):
    """Base of this package's errors; its text is one sentence for a person."""


class ConfigError(OllamaMetricsError):
    """A setting that cannot be used.

    `source` is the option or the environment variable as the user wrote it, `value` what it held,
    `accepted` what would do.
    """

    def __init__(self, source: str, value: str, accepted: str) -> None:
        self.source, self.value, self.accepted = source, value, accepted
        super().__init__(f"{source}: {value!r} is not usable; {accepted}")


class ListenError(OllamaMetricsError):
    """An address that cannot be bound; the text names the address and the way out."""


class CollectorError(OllamaMetricsError):
    """A collector could not take a reading; its data of this cycle are dropped."""


class NoDriver(CollectorError):
    """There is no `libnvidia-ml.so.1`, or no NVIDIA kernel module behind it."""


class NoLibrary(NoDriver):
    """There is no `libnvidia-ml.so.1`: nothing will change before somebody installs one."""


class DriverFailure(CollectorError):
    """The NVIDIA driver is there and does not work: mismatch, permission, unknown error, no GPU left."""


class DriverReplaced(DriverFailure):
    """The kernel module and the library that this process has loaded are of different versions."""


class OllamaError(CollectorError):
    """Ollama, or whatever is in its place, gave no usable answer; the text says what was asked of whom."""


class OllamaDown(OllamaError):
    """Nobody answers: refused, out of time, closed before the end. To ask again may help."""


class OllamaAnswer(OllamaError):
    """The answer is not Ollama's: another status, no JSON, a key that is missing or makes no sense.

    `status` is that of HTTP. To ask again may help after a 5xx or a 429, else not.
    """

    def __init__(self, text: str, status: int = 200) -> None:
        self.status = status
        super().__init__(text)


class NotReported(Exception):
    """The device or the driver does not have this reading."""


class ReadingFailed(Exception):
    """One call failed for a reason that may pass; the text is the driver's."""


class NoPermission(ReadingFailed):
    """The driver keeps this reading for root (the memory of a MIG parent, say)."""


class DeviceLost(Exception):
    """The device no longer answers; the text is the driver's."""
