"""Writes what the cluster is to have of ../prometheus and ../grafana: kustomize takes no file from outside its folder.

python3 deploy/kubernetes/generate.py            write the files anew
python3 deploy/kubernetes/generate.py --check    exit code 1, and their names, where they are not in step
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

DEPLOY = Path(__file__).resolve().parents[1]
COMPONENTS = DEPLOY / "kubernetes" / "components"
HEAD = "# Written by ../../generate.py from {source}; change that.\n"

RULES = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: ollama-metrics-{name}
  labels:
    app.kubernetes.io/name: ollama-metrics
    release: prometheus # CHANGE in ../../generate.py: what your operator's ruleSelector asks for
spec:
"""
DASHBOARD = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: ollama-dashboard-{name}
  labels:
    app.kubernetes.io/name: ollama-metrics
    grafana_dashboard: "1"
data:
  ollama-{name}.json: |
"""


def files(deploy: Path = DEPLOY) -> Iterator[tuple[Path, str]]:
    """Each file and what is to stand in it: a rule file under `spec`, a dashboard as one text."""
    for folder, pattern, kind, head, indent in (
        ("prometheus/rules", "*.yml", "prometheusrule", RULES, 2),
        ("grafana/dashboards", "*.json", "dashboard", DASHBOARD, 4),
    ):
        component = "operator" if kind == "prometheusrule" else "dashboards"
        for source in sorted((deploy / folder).glob(pattern)):
            target = COMPONENTS / component / f"{kind}-{source.stem}.yaml"
            start = HEAD.format(source=f"deploy/{folder}/{source.name}")
            body = textwrap.indent(source.read_text("utf-8"), " " * indent)
            yield target, start + head.format(name=source.stem) + body.rstrip() + "\n"


def outdated() -> list[Path]:
    """The files that are not as they would be written, and those that would not be."""
    wanted = dict(files())
    there = {*COMPONENTS.glob("*/prometheusrule-*.yaml"), *COMPONENTS.glob("*/dashboard-*.yaml")}
    changed = {
        path
        for path, text in wanted.items()
        if path not in there or path.read_text("utf-8") != text
    }
    return sorted(changed | (there - wanted.keys()))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Write the files, or check them; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, say what would be")
    check = parser.parse_args(arguments).check
    old = outdated()
    wanted = dict(files())
    for path in old:
        print(("not in step: " if check else "written: ") + str(path.relative_to(DEPLOY.parent)))
        if check:
            continue
        if path in wanted:
            path.write_text(wanted[path], "utf-8")
        else:
            path.unlink()
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main())
