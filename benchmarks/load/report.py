"""What a run has shown, as a table for people and as JSON for programs. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.http_load import percentile
from benchmarks.load.plan import Plan
from benchmarks.load.users import Tally

_PERCENTS = (50, 95, 99)


def failure_percent(tally: Tally) -> float:
    """Of the requests that came to an end."""
    ended = tally.served + tally.failed
    return 100 * tally.failed / ended if ended else 0.0


def line(tally: Tally, seconds: float) -> str:
    """How far it is, while it runs."""
    return (
        f"{seconds:5.0f} s  {tally.users} users  {tally.running} running  {tally.served} served  "
        f"{tally.failed} failed  {tally.tokens} tokens"
    )


def table(plan: Plan, tally: Tally) -> str:
    """Everything, for people."""
    seconds = max(tally.seconds, 1e-9)
    lines = [
        f"{plan.endpoint}, {plan.model}: {tally.users} users, {tally.seconds:.1f} s",
        "",
        f"{'served':<14}{tally.served:>12}  {tally.served / seconds:.1f}/s",
        f"{'failed':<14}{tally.failed:>12}  {failure_percent(tally):.1f} %",
    ]
    lines += [f"{count:>26}  {kind}" for kind, count in tally.failures.most_common()]
    if tally.unfinished:
        lines.append(
            f"{'unfinished':<14}{tally.unfinished:>12}  cut off at the end, not counted as failed"
        )
    lines += [f"{'tokens':<14}{tally.tokens:>12}  {tally.tokens / seconds:.1f}/s", ""]
    lines.append(f"{'':<14}{'p50':>12}{'p95':>12}{'p99':>12}{'worst':>12}")
    for name, values, unit in (
        ("first token", tally.first_tokens, "s"),
        ("whole answer", tally.totals, "s"),
        ("tokens/s", tally.rates, ""),
    ):
        shown = spread(values, lowest=not unit).values()
        lines.append(f"{name:<14}" + "".join(f"{_cell(one, unit):>12}" for one in shown))
    lines += ["", "tokens/s: within a stream; 95 % of the streams were as fast as p95, or faster"]
    if any(kind.startswith("status 429") for kind in tally.failures):
        lines.append(
            "429 is a front's limit for each client: in deploy/haproxy OLLAMA_REQUESTS_PER_MINUTE"
        )
    return "\n".join(lines) + "\n"


def document(plan: Plan, tally: Tally, interrupted: bool) -> dict[str, Any]:
    """Everything, for programs."""
    seconds = max(tally.seconds, 1e-9)
    return {
        "url": plan.endpoint,
        "model": plan.model,
        "users": tally.users,
        "seconds": round(tally.seconds, 3),
        "interrupted": interrupted,
        "requests": tally.begun,
        "served": tally.served,
        "failed": tally.failed,
        "failed_percent": round(failure_percent(tally), 3),
        "failures": dict(tally.failures.most_common()),
        "unfinished": tally.unfinished,
        "requests_per_second": round(tally.served / seconds, 3),
        "tokens": tally.tokens,
        "tokens_evaluated": tally.evaluated,
        "tokens_per_second": round(tally.tokens / seconds, 3),
        "first_token_seconds": spread(tally.first_tokens),
        "total_seconds": spread(tally.totals),
        "stream_tokens_per_second": spread(tally.rates, lowest=True),
    }


def _cell(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    digits = (3 if value < 10 else 1) if unit else 1
    return f"{value:.{digits}f} {unit}".strip()


def spread(values: Sequence[float], lowest: bool = False) -> dict[str, float | None]:
    """Percentiles, and the worst: the highest or, with `lowest`, the lowest; None of nothing."""
    signed = [-value for value in values] if lowest else list(values)
    found = {f"p{percent}": percentile(signed, percent) for percent in _PERCENTS}
    found["worst"] = max(signed, default=math.nan)
    return {
        name: None if math.isnan(value) else round(abs(value), 6) for name, value in found.items()
    }
