"""The samplers and the pages that come of them, wired; the daemon's and `once`'s common half."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from .drain import DrainFile
    from .handover import Handover
    from .log import Log
    from .log_follower import Follower
    from .ollama_collector import OllamaCollector, OllamaLog
    from .ollama_expectation import OllamaExpectation
    from .ollama_url import OllamaUrl
    from .sampler import Sampler
    from .settings import Config
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
    `on_driver` with whether the driver was replaced under this process. `before` is what a program
    before this one has left in the same process.
    """

    def __init__(
        self, config: Config, log: Log, read_only: bool, before: Optional[Handover] = None
    ) -> None:
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
        self._drains: Optional[DrainFile] = None
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
        if before is not None:
            # A program that is executed anew must not take a host that has lost its GPUs for one that
            # never had any.
            expectation.saw(before.gpus_seen)
        self._expectation = expectation
        from .devices import SECONDS, DeviceCollector

        self._devices = Sampler("devices", DeviceCollector(), SECONDS, log)
        self._devices.start()
        self._gpu: Optional[Sampler] = None
        if config.expected_gpus != 0:
            from .gpu_collector import GpuCollector

            # Whose the GPUs' processes are, only Ollama's collector asks.
            every = config.ollama_interval if config.ollama is not None else None
            collector = GpuCollector(expectation, log, processes_every=every)
            self._gpu = Sampler(
                "gpu",
                collector,
                config.interval,
                log,
                after=lambda: self.on_driver(collector.driver_replaced),
            )
            self._gpu.start()
        self._ollama: Optional[Sampler] = None
        self._ollama_collector: Optional[OllamaCollector] = None
        self._ollama_log: Optional[OllamaLog] = None
        self._ollama_expectation: Optional[OllamaExpectation] = None
        if config.ollama is not None:
            self._start_ollama(config, config.ollama, read_only, before)

        from .drain import DrainFile
        from .endpoints import Endpoints
        from .status_log import StatusLog

        drains = DrainFile(config.state_dir)
        drains.look()
        self._drains = drains  # from now on the host's sampler looks, and nobody else
        self.endpoints: Endpoints = Endpoints(
            self._host,
            self._gpu,
            expectation,
            interval=config.interval,
            window=max(config.window, config.interval),
            on_failure=config.on_failure,
            log=log,
            ollama=self._ollama,
            ollama_expectation=self._ollama_expectation,
            ollama_ignore=config.ollama_ignore,
            weighting=config.weighting,
            queue_aware=config.queue_aware,
            drains=drains,
            agent_check_window=max(config.agent_check_window, config.interval),
            devices=self._devices,
            orca=config.orca,
        )
        self._status = StatusLog(
            self._host,
            self._gpu,
            self.endpoints.judge_now,
            log,
            ollama=self._ollama,
            drain=lambda: drains.current,
        )

    def _start_ollama(
        self, config: Config, url: OllamaUrl, read_only: bool, before: Optional[Handover]
    ) -> None:
        from .ollama_collector import AGAIN_SECONDS, CYCLE_SECONDS, OllamaCollector
        from .ollama_expectation import OllamaExpectation
        from .ollama_processes import OllamaProcesses, is_of_this_host
        from .sampler import Sampler

        self._ollama_expectation = expectation = OllamaExpectation(
            str(url), config.ollama_expected, config.state_dir, self._log, read_only=read_only
        )
        # A dead Ollama stays dead when the agent is executed anew: there is no grace for it then.
        failures = None
        if before is not None and before.ollama_url == str(url):
            failures = before.ollama_failures
        if failures is not None:
            expectation.expected = True
        processes = None
        if is_of_this_host(url.host):
            processes = OllamaProcesses(url.port, config.ollama_cgroup, keep=True)
        kind, name = config.ollama_log
        if kind != "none":
            from .log_tally import LogTally
            from .ollama_collector import OllamaLog

            self._ollama_log = OllamaLog(_follower(kind, name), LogTally())
        self._ollama_collector = OllamaCollector(
            url,
            expectation,
            config.ollama_interval,
            config.ollama_grace,
            config.ollama_slots,
            processes,
            self._ollama_log,
            failures,
            self._log,
        )
        self._ollama = Sampler(
            "ollama", self._ollama_collector, AGAIN_SECONDS, self._log, patience=CYCLE_SECONDS
        )
        self._ollama.start()

    @property
    def to_be_remembered(self) -> dict[str, Any]:
        """What a program that is executed anew in this process is to know: fields of Handover."""
        known: dict[str, Any] = {"gpus_seen": self._expectation.seen}
        collector = self._ollama_collector
        if collector is not None and collector.seen:
            known.update(ollama_url=collector.url, ollama_failures=collector.failures)
        return known

    def release(self) -> None:
        """End what runs beside this process for it: a follower of a journal. It is begun again when it is needed."""
        if self._ollama_log is not None:
            self._ollama_log.close()

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
        if self._ollama is not None:
            # What has not answered by then is waited for by the verdict.
            self._ollama.first.wait(self._patience)

    def stop(self) -> None:
        """Let the threads end."""
        self._host.stop()
        self._devices.stop()
        if self._gpu is not None:
            self._gpu.stop()
        if self._ollama is not None:
            self._ollama.stop()
        self.release()

    def _note(self) -> None:
        # By this thread, for a file system that hangs has this sampler be overdue, and the host failing.
        if self._drains is not None:
            self._drains.look()
        if self._status is not None:
            self._status.note()
        self.on_host()


def _follower(kind: str, name: str) -> Follower:
    """Of a journal or of a file; only what is needed is imported."""
    if kind == "journal":
        from .log_journal import JournalFollower

        return JournalFollower(name)
    from .log_follower import FileFollower

    return FileFollower(name)
