"""The dashboard of all hosts."""

from __future__ import annotations

from panels import (
    BLUE,
    FLEET_UID,
    GREEN,
    GREY,
    OF_SERIES,
    RED,
    YELLOW,
    Code,
    Json,
    Line,
    Query,
    Variable,
    above,
    codes,
    dashboard,
    graph,
    override,
    stat,
    states,
    steps,
    table,
    to_host,
)
from shared import (
    FULL_RATIO,
    HOST_FULL_RATIO,
    HOT_CELSIUS,
    INSTANCES,
    JOB,
    NO_AGENT,
    NO_GPU,
    NO_LOG,
    NO_OLLAMA,
    NO_REQUESTS,
    OLLAMA,
    OLLAMAS,
    OUT_OF_ROTATION,
    REQUESTS,
    VERDICT,
    VERDICT_MEANS,
    VERDICTS,
    failed_share,
    p95_latency,
    request_rate,
    response_times,
    verdicts,
)


def fleet() -> Json:
    """All hosts: who is well, who works, what is loaded where."""
    ratio, size = {"unit": "percentunit"}, {"unit": "bytes"}

    def count(status: str, legend: str) -> Query:
        return Query(f'sum(ollama_host_status{{here,status="{status}"}})', legend)

    def lit(name: str, color: str) -> Json:
        return override(name, thresholds=steps((None, GREY), (1, color)))

    glance = [
        stat(
            12,
            "Hosts by verdict",
            f"How many hosts there are of each verdict. {VERDICT_MEANS}",
            count("ok", "ok"),
            count("degraded", "degraded"),
            count("failing", "FAILING"),
            count("draining", "draining"),
            Query("sum(1 - up{here})", "AGENT DOWN"),
            no_value=NO_AGENT,
            overrides=[
                lit("ok", GREEN),
                lit("degraded", YELLOW),
                lit("FAILING", RED),
                lit("draining", BLUE),
                lit("AGENT DOWN", RED),
            ],
        ),
        stat(
            4,
            "In flight, and slots",
            "Connections to all Ollamas now, and how many requests their loaded models' runners work on at once.",
            Query("sum(ollama_active_requests{here})", "in flight"),
            Query("sum(ollama_slots{here})", "slots"),
            no_value=NO_OLLAMA,
        ),
        p95_latency(4),
        failed_share(4),
    ]

    def cell(name: str, *meanings: Code) -> Json:
        return override(
            name,
            mappings=codes(*meanings),
            custom__cellOptions={"type": "color-background", "mode": "basic"},
            custom__width=130,
        )

    def of_host(family: str, by: str = "max") -> str:
        return f"{by} by (instance) ({family}{{here}})"

    hosts = table(
        24,
        "Hosts",
        "A line for each host that Prometheus is to scrape; click on a name for its dashboard. An empty field is not"
        f" known. {VERDICT_MEANS}",
        {"instance": "Host"},
        Query(VERDICT, "Verdict"),
        Query(of_host("ollama_host_weight"), "Weight"),
        Query(f"max by (instance) ({OLLAMA})", "Ollama"),
        Query(of_host("ollama_active_requests"), "In flight"),
        Query(of_host("ollama_slots"), "Slots"),
        Query(of_host("ollama_models_loaded"), "Models"),
        Query(of_host("ollama_host_gpu_devices"), "GPUs"),
        Query(of_host("ollama_host_gpu_devices_expected"), "GPUs expected"),
        Query(of_host("ollama_gpu_utilization_ratio", "avg"), "GPU utilization"),
        Query(of_host("ollama_gpu_memory_used_ratio", "avg"), "GPU memory"),
        Query(of_host("ollama_gpu_temperature_celsius"), "Hottest"),
        Query(of_host("ollama_host_cpu_ratio"), "CPU"),
        Query(of_host("ollama_host_memory_used_ratio"), "RAM"),
        no_value="?",
        sort_by="Verdict",
        overrides=[
            override("Host", links=[to_host("__value.text")]),
            cell("Verdict", *VERDICTS),
            cell("Ollama", *OLLAMAS),
            override("Weight", decimals=1),
            *(override(name, decimals=0, **ratio) for name in ("GPU utilization", "CPU")),
            *(
                override(
                    name,
                    decimals=0,
                    thresholds=above(limit, limit - 0.1),
                    custom__cellOptions={"type": "color-text"},
                    **ratio,
                )
                for name, limit in (("GPU memory", FULL_RATIO), ("RAM", HOST_FULL_RATIO))
            ),
            override(
                "Hottest",
                unit="celsius",
                thresholds=above(HOT_CELSIUS, 80),
                custom__cellOptions={"type": "color-text"},
            ),
        ],
    )
    balance = [
        graph(
            8,
            "Weight",
            "The host of the lowest weight gets the next request; 500 gets none. The line of a host without an agent"
            " ends.",
            Query(of_host("ollama_host_weight"), "{{instance}}"),
            unit="none",
            maximum=OUT_OF_ROTATION,
            decimals=0,
            no_value=NO_AGENT,
            links=OF_SERIES,
        ),
        graph(
            8,
            "In flight",
            "Connections to each Ollama, and all of them together.",
            Query(of_host("ollama_active_requests"), "{{instance}}"),
            unit="short",
            decimals=0,
            stacked=True,
            no_value=NO_OLLAMA,
            links=OF_SERIES,
        ),
        graph(
            8,
            "Share of the requests",
            "Who serves how much of all requests, from the Ollamas' logs. Without requests there is nothing to share.",
            Query(
                f"sum by (instance) ({REQUESTS}) / on () group_left () (sum({REQUESTS}) > 0)",
                "{{instance}}",
            ),
            unit="percentunit",
            maximum=1,
            stacked=True,
            no_value=f"{NO_REQUESTS}, or {NO_LOG}",
            links=OF_SERIES,
        ),
    ]
    models = [
        table(
            14,
            "Models",
            "Which model is loaded on which host, how much memory it takes, and how much of it the CPU works on: on a"
            " host with GPUs that should be nothing. Unloaded in: if nobody asks for it.",
            {"model": "Model", "instance": "Host"},
            Query(_of_model("ollama_model_size_bytes{here}"), "Size"),
            Query(_of_model("ollama_model_vram_bytes{here}"), "On GPUs"),
            Query(_of_model("ollama_model_cpu_ratio{here}"), "On the CPU"),
            Query(_of_model("ollama_model_context_length{here}"), "Context"),
            Query(
                _of_model("ollama_model_expires_timestamp_seconds{here} - time()"), "Unloaded in"
            ),
            no_value="?",
            sort_by="Model",
            descending=False,
            overrides=[
                override("Host", links=[to_host("__value.text")]),
                override("Size", **size),
                override("On GPUs", **size),
                override(
                    "On the CPU",
                    decimals=0,
                    thresholds=above(0.5, 0.01),
                    custom__cellOptions={"type": "color-text"},
                    **ratio,
                ),
                override("Context", unit="short"),
                override("Unloaded in", unit="s", decimals=0),
            ],
        ),
        table(
            10,
            "Where they sit",
            "The GPUs that each model sits on, with its memory there. A model that is not listed here is on the CPU, or"
            " the agent does not know where it is.",
            {"model": "Model", "instance": "Host", "gpu": "GPU"},
            Query("max by (model, instance, gpu) (ollama_model_gpu_memory_bytes{here})", "Memory"),
            no_value="?",
            sort_by="Model",
            descending=False,
            overrides=[
                override("Host", links=[to_host("__value.text")]),
                override("Memory", **size),
            ],
        ),
    ]
    room = [
        states(
            12,
            "Drains",
            "Hosts that an operator has taken out of rotation (`ollama-metrics drain`). One that is broken besides is"
            " FAILING in the panels above, and not drained here.",
            Query('max by (instance) (ollama_host_status{here,status="draining"})', "{{instance}}"),
            meanings=(Code(0, "in rotation", GREEN), Code(1, "drained", BLUE)),
            no_value=NO_AGENT,
            links=OF_SERIES,
        ),
        graph(
            12,
            "Room for a model",
            "The largest free memory of one GPU, for each host: what fits here needs no eviction and no split.",
            Query(of_host("ollama_vram_largest_free_bytes"), "{{instance}}"),
            unit="bytes",
            no_value=NO_GPU,
            links=OF_SERIES,
        ),
    ]
    return dashboard(
        FLEET_UID,
        "Ollama: Fleet",
        "All hosts: who is well, who works, what is loaded where.",
        (JOB, Variable("instance", "Hosts", INSTANCES)),
        (
            Line(4, glance),
            Line(9, [hosts]),
            Line(7, [verdicts(24)]),
            Line(8, balance, "Balance"),
            Line(8, [response_times(12), request_rate(12)], "Requests"),
            Line(8, models, "Models"),
            Line(7, room, "Drains and room"),
        ),
    )


def _of_model(expression: str) -> str:
    return f"max by (model, instance) ({expression})"
