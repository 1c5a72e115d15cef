"""Expressions and panels that more than one dashboard has."""

from __future__ import annotations

from panels import (
    BLUE,
    DARK_RED,
    GREEN,
    GREY,
    OF_SERIES,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Code,
    Panel,
    Query,
    Variable,
    above,
    graph,
    override,
    stat,
    states,
    steps,
)

# What the alerts of deploy/prometheus/ fire at.
HOT_CELSIUS, SLOW_SECONDS = 85, 60
FULL_RATIO, HOST_FULL_RATIO, FAILED_RATIO = 0.9, 0.95, 0.05
# Where a host's weight is the highest there is: it gets no request.
OUT_OF_ROTATION = 500

# -- expressions that more than one panel has ------------------------------------------------------

# A host that is drained and broken besides is failing.
VERDICTS = (
    Code(0, "ok", GREEN),
    Code(1, "draining", BLUE),
    Code(2, "degraded", YELLOW),
    Code(3, "FAILING", RED),
    Code(4, "NO VERDICT", PURPLE),
    Code(5, "AGENT DOWN", DARK_RED),
)
# `up` is Prometheus's own: it is there for as long as Prometheus is to scrape the host.
VERDICT = """
    max by (instance) (
      0 * ollama_host_status{here,status="ok"}
      or ollama_host_status{here,status="draining"}
      or 2 * ollama_host_status{here,status="degraded"}
      or 3 * ollama_host_status{here,status="failing"}
    )
    or max by (instance) (5 - up{here})
"""
VERDICT_MEANS = (
    "What each host's agent says of it. AGENT DOWN: Prometheus cannot scrape it, so nothing else is known;"
    " NO VERDICT: what answers there is no agent. Why: `curl HOST:11435/health`, or `ollama-metrics doctor` there."
)
OLLAMAS = (
    Code(0, "none expected", GREY),
    Code(1, "answers", GREEN),
    Code(2, "DOWN", RED),
    Code(3, "answers", GREEN),
)
OLLAMA = "ollama_up{here} + 2 * ollama_expected{here}"
THROTTLES = (
    Code(0, "free", GREEN),
    Code(1, "power", YELLOW),
    Code(2, "HEAT", ORANGE),
    Code(3, "power, HEAT", ORANGE),
    Code(4, "HARDWARE", RED),
    Code(5, "HARDWARE, power", RED),
    Code(6, "HARDWARE, HEAT", RED),
    Code(7, "HARDWARE, power, HEAT", RED),
)
THROTTLE = """
    ollama_gpu_throttled_power{gpu} + 2 * ollama_gpu_throttled_thermal{gpu}
    + 4 * ollama_gpu_throttled_hardware{gpu}
"""
GPUS_LOST = """
    sum(clamp_min(ollama_host_gpu_devices_expected{here} - ollama_host_gpu_devices{here}, 0))
"""
AGE = "time() - ollama_agent_collector_last_success_timestamp_seconds{here}"

# Each kind of error is counted from 0 on, which requests by status are not: the first error shows, too.
_ERRORS = 'rate(ollama_errors_total{here,error_type=~"%s"}[$__rate_interval])'
FAILED = f"sum({_ERRORS % 'server_error|busy|timeout'})"
REFUSED = f"sum({_ERRORS % 'bad_request|forbidden|not_found|client_error|cancelled'})"
REQUESTS = "rate(ollama_request_duration_seconds_count{here}[$__rate_interval])"
GOOD = f"clamp_min(sum({REQUESTS}) - {FAILED} - {REFUSED}, 0)"
TOTAL_REQUESTS = "sum(increase(ollama_request_duration_seconds_count{here}[$__range]))"
ERROR_SHARE = """
    clamp_max(
      sum(rate(ollama_errors_total{here,error_type=~"server_error|busy|timeout"}[5m]))
      / (sum(rate(ollama_request_duration_seconds_count{here}[5m])) > 0),
      1
    )
"""

NO_AGENT = "no agent answers"
NO_OLLAMA = "Ollama is not seen"
NO_LOG = "Ollama's log is not read"
NO_REQUESTS = "no requests"
NO_GPU = "no GPU is read"
NO_CGROUP = "Ollama's cgroup is not read"

JOB = Variable("job", "Job", "label_values(ollama_agent_build_info, job)")
# Of `up`, so that a host whose agent is dead can still be chosen.
INSTANCES = 'label_values(up{job=~"$job"}, instance)'


def quantile(share: float, time: str) -> str:
    """The time that this share of the requests took at most; nothing where there were no requests."""
    buckets = f"sum by (le) (rate(ollama_request_duration_seconds_bucket{{here}}[{time}]))"
    return f"histogram_quantile({share}, {buckets}) >= 0"


def response_times(width: int) -> Panel:
    """Response times of all requests of the hosts that are chosen."""
    return graph(
        width,
        "Response time",
        "Time that Ollama took to answer, from its log: half, 95 % and 99 % of the requests took no longer."
        " Estimated from a histogram that goes up to 10 minutes.",
        *(Query(quantile(share / 100, "$__rate_interval"), f"p{share}") for share in (50, 95, 99)),
        unit="s",
        no_value=f"{NO_REQUESTS}, or {NO_LOG}",
        thresholds=steps((None, "transparent"), (SLOW_SECONDS, RED)),
        table=True,
    )


def p95_latency(width: int) -> Panel:
    """The response time that few requests exceed, as of now."""
    return stat(
        width,
        "p95 latency",
        "95 % of the requests of the last 5 minutes took no longer.",
        Query(quantile(0.95, "5m"), "p95"),
        unit="s",
        no_value=NO_REQUESTS,
        thresholds=above(SLOW_SECONDS, SLOW_SECONDS / 2),
        decimals=2,
    )


def failed_share(width: int) -> Panel:
    """The share of requests that failed, as of now."""
    return stat(
        width,
        "Failed",
        "Share of the requests of the last 5 minutes that ended in a status of 500 and above.",
        Query(ERROR_SHARE, "failed"),
        unit="percentunit",
        no_value=NO_REQUESTS,
        thresholds=above(FAILED_RATIO, 0.01),
        decimals=1,
    )


def request_rate(width: int) -> Panel:
    """Requests by how they ended."""
    return graph(
        width,
        "Requests: good against failed",
        "Requests per second by how they ended, from Ollama's log. Failed: status 500 and above; refused: 4xx, among"
        " them clients that went away (499).",
        Query(GOOD, "good"),
        Query(REFUSED, "refused"),
        Query(FAILED, "failed"),
        unit="reqps",
        no_value=NO_LOG,
        stacked=True,
        overrides=[
            override("good", color={"mode": "fixed", "fixedColor": GREEN}),
            override("refused", color={"mode": "fixed", "fixedColor": YELLOW}),
            override("failed", color={"mode": "fixed", "fixedColor": RED}),
        ],
    )


def verdicts(width: int) -> Panel:
    """The verdicts over time, a bar for each host."""
    return states(
        width,
        "Verdict over time",
        VERDICT_MEANS,
        Query(VERDICT, "{{instance}}"),
        meanings=VERDICTS,
        no_value="Prometheus has no such host",
        links=OF_SERIES,
    )
