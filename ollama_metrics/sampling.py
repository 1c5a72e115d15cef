"""Both samplers and the pages that come of them, wired; the daemon's and `once`'s common half."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

    from .config import Config
    from .log import Log
    from .sampler import Sampler
    from .status_log import StatusLog

# The first CPU reading is over this time, or the interval where that is shorter: a balancer waits
# for it.
FIRST_CPU_SECONDS = 0.5
# A driver that hangs is waited for this long at most, however long the interval.
START_SECONDS = 3.0


class Sampling:
    """The samplers of one agent and what they are asked through.

    The constructor starts the first CPU interval before all else, so that the rest of the program
    is imported within it, and then the threads. `wait` is to be called before the first answer.

    After each sample of the host its thread calls `on_host`, after each of the GPUs theirs calls
    `on_driver` with whether the driver was replaced under this process. `gpus_seen` is how many GPUs
    a program before this one has seen in the same process.
    """

    def __init__(self, config: Config, log: Log, read_only: bool, gpus_seen: int = 0) -> None:
        from .backoff import FIRST_SECONDS
        from .errors import CollectorError
        from .host import HostCollector
        from .sampler import STUCK_INTERVALS, Sampler

        self._log = log
        self.on_host: Callable[[], object] = lambda: None
        self.on_driver: Callable[[bool], object] = lambda _replaced: None
        first_cpu = min(FIRST_CPU_SECONDS, config.interval)
        self._patience = first_cpu + min(START_SECONDS, STUCK_INTERVALS * config.interval)
        self._status: Optional[StatusLog] = None
        host_collector = HostCollector()
        # To ask /proc again costs nothing, and the watchdog waits for this sampler, well or not.
        self._host = Sampler(
            "host",
            host_collector,
            config.interval,
            log,
            after=self._note,
            longest_backoff=FIRST_SECONDS,
        )
        try:
            host_collector.prime()
        except CollectorError as error:
            log("error", f"host: {error}")
        self._host.start(first_after=first_cpu)

        from .expectation import Expectation

        expectation = Expectation(config.expected_gpus, config.state_dir, log, read_only=read_only)
        expectation.saw(gpus_seen)
        self.expectation = expectation
        self._gpu: Optional[Sampler] = None
        if config.expected_gpus != 0:
            from .gpu_collector import GpuCollector

            collector = GpuCollector(expectation, log)
            self._gpu = Sampler(
                "gpu",
                collector,
                config.interval,
                log,
                after=lambda: self.on_driver(collector.driver_replaced),
            )
            self._gpu.start()

        from .endpoints import Endpoints
        from .status_log import StatusLog

        self.endpoints: Endpoints = Endpoints(
            self._host,
            self._gpu,
            expectation,
            interval=config.interval,
            window=max(config.window, config.interval),
            on_failure=config.on_failure,
            log=log,
        )
        self._status = StatusLog(self._host, self._gpu, self.endpoints.judge_now, log)

    def wait(self) -> None:
        """Wait for the first readings.

        The wait is bounded, for a driver may hang: what has not been read by then is served as
        failing, which to a balancer is better than a refused connection (to a host that it never
        reached it gives the weight 0).
        """
        if not self._host.first.wait(self._patience):
            self._log("error", "CPU and RAM cannot be read in time; this host is served as failing")
        if self._gpu is not None and not self._gpu.first.wait(self._patience):
            self._log("error", "the GPUs cannot be read in time; this host is served as failing")

    def stop(self) -> None:
        """Let both threads end."""
        self._host.stop()
        if self._gpu is not None:
            self._gpu.stop()

    def _note(self) -> None:
        if self._status is not None:
            self._status.note()
        self.on_host()
