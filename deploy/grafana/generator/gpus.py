"""The dashboard of GPUs."""

from __future__ import annotations

from panels import (
    GPUS_UID,
    OF_SERIES,
    RED,
    Json,
    Line,
    Query,
    Variable,
    above,
    dashboard,
    graph,
    limit_line,
    stat,
    states,
    steps,
)
from shared import (
    FULL_RATIO,
    GPUS_LOST,
    HOT_CELSIUS,
    INSTANCES,
    JOB,
    NO_AGENT,
    NO_GPU,
    THROTTLE,
    THROTTLES,
    verdicts,
)


def gpus() -> Json:
    """Each GPU of the hosts that are chosen, and all of them together."""
    each = "{{instance}} GPU {{gpu}}"
    glance = [
        stat(
            4,
            "GPUs lost",
            "GPUs that the hosts should have less those that answer. A host whose agent does not answer is in neither"
            " number: see beside.",
            Query(GPUS_LOST, "lost"),
            no_value=NO_AGENT,
            thresholds=above(1),
            filled=True,
        ),
        stat(
            4,
            "Agents down",
            "Hosts that Prometheus cannot scrape. Of their GPUs nothing is known, and nothing is shown here.",
            Query("sum(1 - up{here})", "down"),
            no_value="no host",
            thresholds=above(1),
            filled=True,
        ),
        stat(
            4,
            "Utilization, mean",
            "Mean over the GPUs that are shown, now.",
            Query("avg(ollama_gpu_utilization_ratio{gpu})", "utilization"),
            unit="percentunit",
            no_value=NO_GPU,
            decimals=0,
        ),
        stat(
            4,
            "Memory, mean",
            "Mean over the GPUs that are shown, now. An alert fires where one is above 90 %.",
            Query("avg(ollama_gpu_memory_used_ratio{gpu})", "memory"),
            unit="percentunit",
            no_value=NO_GPU,
            thresholds=above(FULL_RATIO, 0.8),
            decimals=0,
        ),
        stat(
            4,
            "Hottest",
            "The hottest of the GPUs that are shown. An alert fires above 85 °C.",
            Query("max(ollama_gpu_temperature_celsius{gpu})", "hottest"),
            unit="celsius",
            no_value=NO_GPU,
            thresholds=above(HOT_CELSIUS, 80),
        ),
        stat(
            4,
            "Power, all",
            "What the GPUs that are shown draw together, and may draw.",
            Query("sum(ollama_gpu_power_draw_watts{gpu})", "drawn"),
            Query("sum(ollama_gpu_power_limit_watts{gpu})", "limit"),
            unit="watt",
            no_value=NO_GPU,
        ),
    ]
    use = [
        graph(
            12,
            "Utilization",
            "Share of the driver's last sample period in which a kernel ran. In MIG mode no GPU reports it.",
            Query("ollama_gpu_utilization_ratio{gpu}", each),
            unit="percentunit",
            maximum=1,
            no_value=NO_GPU,
            table=True,
            links=OF_SERIES,
        ),
        graph(
            12,
            "Averages",
            "Means over the GPUs that are shown and answer.",
            Query("avg(ollama_gpu_utilization_ratio{gpu})", "utilization"),
            Query("avg(ollama_gpu_memory_used_ratio{gpu})", "memory"),
            Query("avg(ollama_gpu_power_ratio{gpu})", "power of its limit"),
            unit="percentunit",
            maximum=1,
            no_value=NO_GPU,
            table=True,
        ),
    ]
    memory = [
        graph(
            8,
            "Memory used, share",
            "Memory in use over the board's. An alert fires above 90 %.",
            Query("ollama_gpu_memory_used_ratio{gpu}", each),
            unit="percentunit",
            maximum=1,
            no_value=NO_GPU,
            thresholds=steps((None, "transparent"), (FULL_RATIO, RED)),
            links=OF_SERIES,
        ),
        graph(
            8,
            "Memory used",
            "Memory in use, by whatever uses it.",
            Query("ollama_gpu_memory_used_bytes{gpu}", each),
            unit="bytes",
            no_value=NO_GPU,
            links=OF_SERIES,
        ),
        graph(
            8,
            "Memory free",
            "Memory that is free. A model that does not fit into one GPU is split, or sits on the CPU.",
            Query("ollama_gpu_memory_free_bytes{gpu}", each),
            unit="bytes",
            no_value=NO_GPU,
            links=OF_SERIES,
        ),
    ]
    heat = [
        graph(
            8,
            "Temperature",
            "Of the GPU's own sensor. An alert fires when one is above 85 °C for five minutes.",
            Query("ollama_gpu_temperature_celsius{gpu}", each),
            unit="celsius",
            no_value=NO_GPU,
            minimum=None,
            thresholds=steps((None, "transparent"), (HOT_CELSIUS, RED)),
            links=OF_SERIES,
        ),
        graph(
            8,
            "Power",
            "What each board draws, and the limit that is enforced (dashed).",
            Query("ollama_gpu_power_draw_watts{gpu}", each),
            Query("ollama_gpu_power_limit_watts{gpu}", f"{each} limit"),
            unit="watt",
            no_value=NO_GPU,
            links=OF_SERIES,
            overrides=[limit_line("/ limit$/")],
        ),
        graph(
            8,
            "Power of its limit",
            "What each board draws over the limit that is enforced.",
            Query("ollama_gpu_power_ratio{gpu}", each),
            unit="percentunit",
            no_value=NO_GPU,
            links=OF_SERIES,
        ),
    ]
    throttling = states(
        24,
        "Throttling",
        "What holds the clocks back: a power cap or brake, the temperature, or the hardware's own slowdown (which is a"
        " fault of the supply or the cooling).",
        Query(THROTTLE, each),
        meanings=THROTTLES,
        no_value=NO_GPU,
        links=OF_SERIES,
    )
    clocks = [
        graph(
            12,
            "SM clock",
            "Clock of the streaming multiprocessors; low under load: look at the throttling.",
            Query("ollama_gpu_sm_clock_hertz{gpu}", each),
            unit="hertz",
            no_value=NO_GPU,
            links=OF_SERIES,
        ),
        graph(
            12,
            "Memory clock",
            "Clock of the memory; it is low while the GPU rests.",
            Query("ollama_gpu_memory_clock_hertz{gpu}", each),
            unit="hertz",
            no_value=NO_GPU,
            links=OF_SERIES,
        ),
    ]
    trust = [
        graph(
            8,
            "GPUs that answer, and should",
            "For each host. Where both lines part a GPU is lost, and its lines above end.",
            Query("ollama_host_gpu_devices{here}", "{{instance}} answer"),
            Query("ollama_host_gpu_devices_expected{here}", "{{instance}} expected"),
            unit="short",
            decimals=0,
            no_value=NO_AGENT,
            links=OF_SERIES,
            overrides=[limit_line("/ expected$/")],
        ),
        graph(
            8,
            "Memory errors",
            "Errors that ECC has corrected, and those that it could not: the latter corrupt what runs.",
            Query(
                "increase(ollama_gpu_ecc_corrected_errors_total{gpu}[$__rate_interval])",
                f"{each} corrected",
            ),
            Query(
                "increase(ollama_gpu_ecc_uncorrected_errors_total{gpu}[$__rate_interval])",
                f"{each} NOT corrected",
            ),
            unit="short",
            no_value="no GPU with ECC",
            links=OF_SERIES,
        ),
        graph(
            8,
            "Age of the readings",
            "Time since each host's GPUs have last been read. It grows while a call of the driver hangs, for one; the"
            " lines above have ended then.",
            Query(
                "time() - ollama_agent_collector_last_success_timestamp_seconds"
                '{here,collector="gpu"}',
                "{{instance}}",
            ),
            unit="s",
            no_value=NO_AGENT,
            thresholds=steps((None, "transparent"), (120, RED)),
            links=OF_SERIES,
        ),
    ]
    return dashboard(
        GPUS_UID,
        "Ollama: GPUs",
        "Each GPU of the hosts that are chosen, and their means.",
        (
            JOB,
            Variable("instance", "Hosts", INSTANCES),
            Variable(
                "gpu",
                "GPUs",
                'label_values(ollama_gpu_info{job=~"$job",instance=~"$instance"}, gpu)',
            ),
        ),
        (
            Line(4, glance),
            Line(6, [verdicts(24)]),
            Line(9, use, "Use"),
            Line(8, memory, "Memory"),
            Line(8, heat, "Heat and power"),
            Line(7, [throttling]),
            Line(8, clocks, "Clocks"),
            Line(8, trust, "Can this be trusted?"),
        ),
    )
