"""A peer: prometheus_client's own server, with CPU and RAM read by psutil. Run as a script."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator

import prometheus_client
import psutil  # type: ignore[import-untyped,unused-ignore]
from prometheus_client.core import REGISTRY, GaugeMetricFamily
from prometheus_client.registry import Collector


class HostCollector(Collector):
    """Reads at each scrape, as the library's manual proposes."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("host_cpu_percent", "CPU in use.", psutil.cpu_percent())
        yield GaugeMetricFamily("host_ram_percent", "RAM in use.", psutil.virtual_memory().percent)


def sample(every: float) -> None:
    """Sets two gauges every `every` seconds, for ever."""
    cpu = prometheus_client.Gauge("host_cpu_percent", "CPU in use.")
    ram = prometheus_client.Gauge("host_ram_percent", "RAM in use.")
    while True:
        cpu.set(psutil.cpu_percent())
        ram.set(psutil.virtual_memory().percent)
        time.sleep(every)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sample-every", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    if options.sample_every:
        threading.Thread(target=sample, args=(options.sample_every,), daemon=True).start()
    else:
        REGISTRY.register(HostCollector())
    prometheus_client.start_http_server(options.port, addr="127.0.0.1")
    threading.Event().wait()


if __name__ == "__main__":
    main()
