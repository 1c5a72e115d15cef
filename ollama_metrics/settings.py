"""Every setting: its option, its environment variable, its default and what is accepted.

`SETTINGS` is the one list: the parser, `--help`, the environment and docs/CONFIGURATION.md come from it.
"""

from __future__ import annotations

from dataclasses import replace

from .expectation import MOST_GPUS
from .frozen import dataclass
from .log import LEVELS
from .ollama_url import DEFAULT as DEFAULT_OLLAMA
from .option_values import (
    Address,
    one_of,
    parse_address,
    parse_agent_check,
    parse_cgroup,
    parse_gpus,
    parse_log,
    parse_ollama,
    parse_on_or_off,
    parse_path,
    parse_weight,
    seconds,
)
from .policy import OLLAMA_RULES, ON_FAILURE
from .weight import DEFAULT as DEFAULT_WEIGHTING
from .window import LONGEST_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from .ollama_url import OllamaUrl
    from .weight import Weighting

VARIABLE_PREFIX = "OLLAMA_METRICS_"
LEAST_INTERVAL, LONGEST_INTERVAL = 0.1, 60.0


@dataclass(frozen=True)
class Setting:
    """One setting.

    `parse` turns the text of an option or a variable into the value and raises ValueError
    otherwise; `accepted` is the end of the sentence that the user gets then. A `repeatable` option
    may be given several times, its variable holds several values apart by commas or spaces.
    """

    option: str
    metavar: str
    default: Any
    default_text: str
    help: str
    accepted: str
    parse: Callable[[str], Any]
    repeatable: bool = False
    serve_only: bool = False

    @property
    def name(self) -> str:
        """The attribute of Config that holds it."""
        return self.option[2:].replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that is its twin."""
        return VARIABLE_PREFIX + self.name.upper()


@dataclass(frozen=True)
class Config:
    """All settings, valid by themselves and together."""

    config: Optional[str] = None
    listen: tuple[Address, ...] = (Address("0.0.0.0", 11435),)
    interval: float = 1.0
    window: float = 15.0
    expected_gpus: Optional[int] = None
    state_dir: Optional[str] = None
    on_failure: str = ON_FAILURE[0]
    log_level: str = "info"
    ollama: Optional[OllamaUrl] = DEFAULT_OLLAMA
    ollama_interval: float = 5.0
    ollama_grace: float = 60.0
    ollama_slots: bool = True
    ollama_log: tuple[str, str] = ("none", "")
    ollama_cgroup: str = "auto"
    ollama_ignore: tuple[str, ...] = ()
    weight: Weighting = DEFAULT_WEIGHTING
    capacity: float = 1.0
    queue_aware: bool = False
    agent_check: Optional[Address] = None
    agent_check_window: float = 5.0
    orca: bool = False
    # Whether Ollama was named, not looked for: then it has to be there.
    ollama_expected: bool = False

    @property
    def weighting(self) -> Weighting:
        """How this host is weighed, all in all."""
        return replace(self.weight, capacity=self.capacity)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "--config",
        "FILE",
        Config.config,
        "none",
        "file of settings, a NAME=VALUE in each line, with the names of the environment variables.",
        "give the path of a file of settings",
        parse_path,
    ),
    Setting(
        "--listen",
        "ADDR:PORT",
        Config.listen,
        "0.0.0.0:11435",
        "address to serve on; may be repeated. [::]:11435 is IPv6, and IPv4 too where the system allows. "
        "Port 0 picks a free one, which the log names. 11434 is Ollama's own port.",
        "give ADDR:PORT with a port from 0 to 65535, such as 0.0.0.0:11435 or [::]:11435",
        parse_address,
        repeatable=True,
        serve_only=True,
    ),
    Setting(
        "--interval",
        "SECONDS",
        Config.interval,
        "1",
        "time between two samples.",
        f"give seconds from {LEAST_INTERVAL:g} to {LONGEST_INTERVAL:g}, such as 1",
        seconds(LEAST_INTERVAL, LONGEST_INTERVAL),
    ),
    Setting(
        "--window",
        "SECONDS",
        Config.window,
        "15",
        "time over which utilization is averaged.",
        f"give seconds from the interval to {LONGEST_SECONDS:g}, such as 15",
        seconds(LEAST_INTERVAL, LONGEST_SECONDS),
        serve_only=True,
    ),
    Setting(
        "--expected-gpus",
        "auto|N",
        Config.expected_gpus,
        "auto",
        "GPUs that this host should have; one that is missing looks busy. auto remembers the most ever seen, "
        "across restarts. 0 leaves GPUs alone.",
        f"give auto or a number from 0 to {MOST_GPUS}",
        parse_gpus,
    ),
    Setting(
        "--state-dir",
        "DIR",
        Config.state_dir,
        "systemd's STATE_DIRECTORY, else ~/.local/state/ollama-metrics",
        "where the number of GPUs is remembered, that Ollama has answered, and a drain.",
        "give the path of a directory",
        parse_path,
    ),
    Setting(
        "--on-failure",
        "POLICY",
        Config.on_failure,
        ON_FAILURE[0],
        "what a balancer gets from a failing host: pessimistic (the highest weight, 500), error (the same with "
        "status 503) or last-good (the last good numbers for two minutes, then pessimistic).",
        f"give one of {', '.join(ON_FAILURE)}",
        one_of(ON_FAILURE),
    ),
    Setting(
        "--log-level",
        "LEVEL",
        Config.log_level,
        "info",
        f"least urgent messages to log: {', '.join(LEVELS)}.",
        f"give one of {', '.join(LEVELS)}",
        one_of(tuple(LEVELS)),
    ),
    Setting(
        "--ollama",
        "auto|none|URL",
        "auto",
        "auto",
        "where Ollama is. A URL means that it has to be there: while it does not answer, the host is failing. "
        "auto looks where OLLAMA_HOST says, else at http://127.0.0.1:11434, and expects Ollama once it has "
        "answered there. none leaves it alone.",
        "give auto, none or Ollama's own address, such as http://127.0.0.1:11434",
        parse_ollama,
    ),
    Setting(
        "--ollama-interval",
        "SECONDS",
        Config.ollama_interval,
        "5",
        "time between two checks of Ollama; one that does not answer is checked each second.",
        "give seconds from 1 to 60, such as 5",
        seconds(1.0, 60.0),
    ),
    Setting(
        "--ollama-grace",
        "SECONDS",
        Config.ollama_grace,
        "60",
        "how long an expected Ollama that has not answered since the agent started may still be starting.",
        "give seconds from 0 to 3600, such as 60",
        seconds(0.0, 3600.0),
    ),
    Setting(
        "--ollama-slots",
        "on|off",
        Config.ollama_slots,
        "on",
        "whether llama-server runners are asked how many of their slots are busy.",
        "give on or off",
        parse_on_or_off,
    ),
    Setting(
        "--ollama-log",
        "none|journal:UNIT|file:/PATH",
        Config.ollama_log,
        "none",
        "Ollama's log, to count its requests and errors: the journal of its unit (journal:ollama.service) or a file.",
        "give none, journal:UNIT or file:/PATH, such as journal:ollama.service",
        parse_log,
    ),
    Setting(
        "--ollama-cgroup",
        "auto|none|PATH",
        Config.ollama_cgroup,
        "auto",
        "cgroup that Ollama runs in, such as /sys/fs/cgroup/system.slice/ollama.service. "
        "auto looks for the process that listens on Ollama's port.",
        "give auto, none or the path of a cgroup, without ..",
        parse_cgroup,
    ),
    Setting(
        "--ollama-ignore",
        "RULE",
        Config.ollama_ignore,
        "none",
        "what of Ollama's state does not count in the verdict; may be repeated: down (it does not answer), "
        "on-cpu (models sit on the CPU though GPUs work), slow (an answer takes over 2 s), "
        "errors (most requests fail).",
        f"give none or one of {', '.join(OLLAMA_RULES)}",
        one_of((*OLLAMA_RULES, "none")),
        repeatable=True,
    ),
    Setting(
        "--weight",
        "NAME=N,...",
        Config.weight,
        "cpu=1,ram=1,gpu_util=1.5,gpu_mem=1.5,in_flight=0",
        "what a percent of each, and each request in flight, adds to `weight` and `load`; what is not named stays. "
        "The five fields of the contract are not changed by it.",
        "give NAME=N with names of cpu, ram, gpu_util, gpu_mem, in_flight and numbers from 0 to 100, "
        "cpu and ram not both 0",
        parse_weight,
    ),
    Setting(
        "--capacity",
        "N",
        Config.capacity,
        "1",
        "how strong this host is beside the others: its `weight` is divided by it.",
        "give a number from 0.01 to 100, such as 2",
        seconds(0.01, 100.0),
    ),
    Setting(
        "--queue-aware",
        "on|off",
        Config.queue_aware,
        "off",
        "whether half of gpu_avg_utilization_percent (without GPUs: of cpu_percent) is the requests in flight, n of "
        "n + slots, for balancers that read nothing else. The same on all hosts of a pool.",
        "give on or off",
        parse_on_or_off,
    ),
    Setting(
        "--agent-check",
        "ADDR:PORT",
        Config.agent_check,
        "none",
        "address on which HAProxy's agent-check is answered (docs/ROUTING.md).",
        "give ADDR:PORT, such as 0.0.0.0:11437, or none",
        parse_agent_check,
        serve_only=True,
    ),
    Setting(
        "--agent-check-window",
        "SECONDS",
        Config.agent_check_window,
        "5",
        "time over which utilization is averaged for HAProxy.",
        f"give seconds from the interval to {LONGEST_SECONDS:g}, such as 5",
        seconds(LEAST_INTERVAL, LONGEST_SECONDS),
        serve_only=True,
    ),
    Setting(
        "--orca",
        "on|off",
        Config.orca,
        "off",
        "whether answers of /metrics have ORCA's header endpoint-load-metrics (Envoy, Google Cloud).",
        "give on or off",
        parse_on_or_off,
        serve_only=True,
    ),
)
