"""A peer: the standard library's threaded server, the straightforward way. Run as a script."""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]


class Handler(BaseHTTPRequestHandler):
    """Reads CPU and RAM for each request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        reading = {
            "cpu_percent": psutil.cpu_percent(),
            "ram_percent": psutil.virtual_memory().percent,
        }
        body = json.dumps(reading).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet: none of the peers writes an access log."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Handler).serve_forever()


if __name__ == "__main__":
    main()
