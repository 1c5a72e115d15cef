"""How panels and dashboards are written in Grafana's JSON; generate.py says what they show.

An expression has `{here}` where the host is chosen, `{gpu}` where the host and the GPU are, both also
with more matchers after a comma: `ollama_up{here}`, `ollama_host_status{here,status="ok"}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

Json = dict[str, Any]

# Grafana's own at 10.x; a newer one migrates what it reads.
SCHEMA_VERSION, PLUGIN_VERSION = 39, "10.4.0"
TAGS = ["ollama", "monitoring"]
WIDTH = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "text"
DARK_RED, PURPLE = "dark-red", "purple"

# A value of a range of time is the last one that there was, however long ago: what is shown as
# of now is asked for as of now, so that a host that has died shows no number.
NOW = ("stat", "gauge", "bargauge", "table")


class Query(NamedTuple):
    """An expression and how its series are called; of a table: how its column is called."""

    expression: str
    legend: str


class Code(NamedTuple):
    """What a number stands for."""

    number: int
    text: str
    color: str


class Panel(NamedTuple):
    """A panel without its place."""

    width: int
    json: Json


class Line(NamedTuple):
    """Panels side by side, all of one height, below a headline if it has one."""

    height: int
    panels: Sequence[Panel]
    headline: str = ""


class Variable(NamedTuple):
    """A choice at the top of a dashboard: the values of a label."""

    name: str
    label: str
    query: str
    several: bool = True


# -- parts of a panel ------------------------------------------------------------------------------


def steps(*colors: tuple[Optional[float], str]) -> Json:
    """Thresholds: from each value on its color; the first one has no value."""
    listed = [{"value": value, "color": color} for value, color in colors]
    return {"mode": "absolute", "steps": listed}


def above(limit: float, near: Optional[float] = None) -> Json:
    """Red from `limit` on, yellow from `near` on, else green."""
    between = [(near, YELLOW)] if near is not None else []
    return steps((None, GREEN), *between, (limit, RED))


PLAIN = steps((None, BLUE))


def codes(*meanings: Code) -> list[Json]:
    """Value mappings of numbers that stand for something."""
    options = {
        str(one.number): {"text": one.text, "color": one.color, "index": index}
        for index, one in enumerate(meanings)
    }
    return [{"type": "value", "options": options}]


def override(name: str, **properties: Any) -> Json:
    """What is different for the field of this name, or for all that match `/a regular expression/`.

    `__` in a property's name is a dot: custom__width.
    """
    matcher = "byRegexp" if name.startswith("/") else "byName"
    listed = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": matcher, "options": name}, "properties": listed}


def limit_line(name: str) -> Json:
    """The override for series that are a limit: dashed, red, nothing below it."""
    return override(
        name,
        color={"mode": "fixed", "fixedColor": RED},
        custom__fillOpacity=0,
        custom__lineStyle={"fill": "dash", "dash": [10, 10]},
        custom__stacking={"mode": "none", "group": "A"},
    )


def _panel(
    kind: str,
    width: int,
    title: str,
    description: str,
    queries: Iterable[Query],
    defaults: Json,
    options: Json,
    overrides: Iterable[Json] = (),
    **more: Any,
) -> Panel:
    now = kind in NOW
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": " ".join(query.expression.split()),
            "format": "table" if kind == "table" else "time_series",
            "instant": now,
            "range": not now,
            "legendFormat": query.legend,
        }
        for index, query in enumerate(queries)
    ]
    return Panel(
        width,
        {
            "type": kind,
            "title": title,
            "description": description,
            "datasource": DATASOURCE,
            "pluginVersion": PLUGIN_VERSION,
            "targets": targets,
            "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
            "options": options,
            **more,
        },
    )


def _defaults(unit: str, thresholds: Json, no_value: str, color: str, **more: Any) -> Json:
    known = {key: value for key, value in more.items() if value is not None}
    return {
        "unit": unit,
        "noValue": no_value,
        "mappings": [],
        "thresholds": thresholds,
        "color": {"mode": color},
        **known,
    }


HOST_UID, GPUS_UID, FLEET_UID = "ollama-host", "ollama-gpus", "ollama-fleet"
_WITH_JOB = "?var-datasource=${datasource}&${job:queryparam}"
# All hosts cannot be handed on to a dashboard that shows one: it begins with its first.
_TITLES = {
    HOST_UID: ("Host", f"/d/{HOST_UID}{_WITH_JOB}"),
    GPUS_UID: ("GPUs", f"/d/{GPUS_UID}{_WITH_JOB}&${{instance:queryparam}}"),
    FLEET_UID: ("Fleet", f"/d/{FLEET_UID}{_WITH_JOB}"),
}


def to_host(name: str) -> Json:
    """A link to the dashboard of the host that this variable of Grafana's names."""
    url = f"/d/{HOST_UID}{_WITH_JOB}&var-instance=${{{name}}}&${{__url_time_range}}"
    return {"title": "Show this host", "url": url, "targetBlank": False}


OF_SERIES = (to_host("__field.labels.instance"),)

_LAST = {"values": False, "calcs": ["lastNotNull"], "fields": ""}


# -- the kinds of panels ---------------------------------------------------------------------------


def stat(
    width: int,
    title: str,
    description: str,
    *queries: Query,
    unit: str = "none",
    no_value: str,
    thresholds: Json = PLAIN,
    mappings: Sequence[Json] = (),
    decimals: Optional[int] = None,
    filled: bool = False,
    overrides: Iterable[Json] = (),
) -> Panel:
    """One number in large type, or a few with their names; `filled`: its color is the background's."""
    defaults = _defaults(
        unit, thresholds, no_value, "thresholds", mappings=list(mappings), decimals=decimals
    )
    options = {
        "reduceOptions": _LAST,
        "orientation": "auto",
        "textMode": "value_and_name" if len(queries) > 1 else "value",
        "colorMode": "background" if filled else "value",
        "graphMode": "none",
        "justifyMode": "auto",
    }
    return _panel("stat", width, title, description, queries, defaults, options, overrides)


def gauge(
    width: int,
    title: str,
    description: str,
    *queries: Query,
    no_value: str,
    thresholds: Json,
    overrides: Iterable[Json] = (),
) -> Panel:
    """Shares of a whole."""
    defaults = _defaults("percentunit", thresholds, no_value, "thresholds", min=0, max=1)
    options = {
        "reduceOptions": _LAST,
        "orientation": "auto",
        "showThresholdLabels": False,
        "showThresholdMarkers": True,
    }
    return _panel("gauge", width, title, description, queries, defaults, options, overrides)


def graph(
    width: int,
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    no_value: str,
    thresholds: Optional[Json] = None,
    minimum: Optional[float] = 0,
    maximum: Optional[float] = None,
    decimals: Optional[int] = None,
    links: Sequence[Json] = (),
    stacked: bool = False,
    bars: bool = False,
    table: bool = False,
    overrides: Iterable[Json] = (),
) -> Panel:
    """Lines over time. `thresholds` are drawn as dashed lines; `table`: with a legend of mean and maximum.

    A gap is a gap: no line is drawn over the time in which nothing was read.
    """
    custom = {
        "drawStyle": "bars" if bars else "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 60 if bars else 40 if stacked else 10,
        "gradientMode": "none",
        "showPoints": "auto",
        "pointSize": 4,
        "spanNulls": False,
        "insertNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "axisPlacement": "auto",
        "axisLabel": "",
        "axisBorderShow": False,
        "axisColorMode": "text",
        "axisCenteredZero": False,
        "barAlignment": 0,
        "scaleDistribution": {"type": "linear"},
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "thresholdsStyle": {"mode": "dashed" if thresholds else "off"},
    }
    defaults = _defaults(
        unit,
        thresholds or PLAIN,
        no_value,
        "palette-classic",
        min=minimum,
        max=maximum,
        decimals=decimals,
        links=list(links) or None,
        custom=custom,
    )
    options = {
        # Not the last value: where nothing comes any more, that would be an old one.
        "legend": {
            "showLegend": True,
            "displayMode": "table" if table else "list",
            "placement": "bottom",
            "calcs": ["mean", "max"] if table else [],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", width, title, description, queries, defaults, options, overrides)


def states(
    width: int,
    title: str,
    description: str,
    *queries: Query,
    meanings: Sequence[Code],
    no_value: str,
    links: Sequence[Json] = (),
) -> Panel:
    """States over time, a bar for each series, with the state's word in it."""
    custom = {
        "fillOpacity": 70,
        "lineWidth": 0,
        "spanNulls": False,
        "insertNulls": False,
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
    }
    colors = steps((None, GREY))
    defaults = _defaults(
        "none",
        colors,
        no_value,
        "thresholds",
        mappings=codes(*meanings),
        links=list(links) or None,
        custom=custom,
    )
    options = {
        "showValue": "auto",
        "mergeValues": True,
        "alignValue": "left",
        "rowHeight": 0.85,
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return _panel("state-timeline", width, title, description, queries, defaults, options)


def table(
    width: int,
    title: str,
    description: str,
    keys: Mapping[str, str],
    *queries: Query,
    no_value: str,
    sort_by: str,
    descending: bool = True,
    overrides: Iterable[Json] = (),
) -> Panel:
    """A line for each combination of the labels `keys` (with their headlines), a column for each query."""
    columns = {f"Value #{chr(ord('A') + index)}": one.legend for index, one in enumerate(queries)}
    if len(columns) == 1:
        columns["Value"] = queries[0].legend  # as it is called where there is one query
    names = {**keys, **columns}
    custom = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    defaults = _defaults("none", PLAIN, no_value, "thresholds", custom=custom)
    options = {
        "showHeader": True,
        "cellHeight": "sm",
        "footer": {"show": False, "reducer": ["sum"], "countRows": False, "fields": ""},
        "sortBy": [{"displayName": sort_by, "desc": descending}],
    }
    order = {name: index for index, name in enumerate(names)}
    arrange = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": names}
    transformations = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": arrange},
    ]
    return _panel(
        "table", width, title, description, queries, defaults, options, overrides,
        transformations=transformations,
    )  # fmt: skip


# -- the whole -------------------------------------------------------------------------------------


def dashboard(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[Variable],
    lines: Sequence[Line],
) -> Json:
    """A dashboard of these lines, one below the other."""
    chosen = [_matcher(one) for one in variables]
    here = ",".join(chosen[:2])  # the job and the host
    tokens = {"{here": "{" + here, "{gpu": "{" + ",".join(chosen)}
    return {
        "id": None,
        "uid": uid,
        "title": title,
        "description": description,
        "tags": TAGS,
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "annotations": {"list": [_ANNOTATIONS]},
        "links": [_link(*text) for other, text in _TITLES.items() if other != uid],
        "templating": {"list": [_DATASOURCE_VARIABLE, *map(_variable, variables)]},
        "panels": list(_placed(lines, tokens)),
    }


def _placed(lines: Sequence[Line], tokens: Mapping[str, str]) -> Iterable[Json]:
    identity, y = 0, 0
    for line in lines:
        if line.headline:
            identity += 1
            place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
            yield {
                "id": identity, "type": "row", "title": line.headline, "collapsed": False,
                "gridPos": place, "panels": [],
            }  # fmt: skip
            y += 1
        x = 0
        for panel in line.panels:
            identity += 1
            for target in panel.json["targets"]:
                for token, matchers in tokens.items():
                    target["expr"] = target["expr"].replace(token, matchers)
            place = {"x": x, "y": y, "w": panel.width, "h": line.height}
            yield {"id": identity, **panel.json, "gridPos": place}
            x += panel.width
        if x != WIDTH:
            titles = ", ".join(panel.json["title"] for panel in line.panels)
            raise ValueError(f"{titles}: the line is {x} wide, not {WIDTH}")
        y += line.height


def _matcher(variable: Variable) -> str:
    # Grafana makes a regular expression of several values only; one is put in as it is.
    return f'{variable.name}{"=~" if variable.several else "="}"${variable.name}"'


def _variable(variable: Variable) -> Json:
    everything = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.label,
        "datasource": DATASOURCE,
        "definition": variable.query,
        "query": {"query": variable.query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "regex": "",
        "refresh": 2,  # with the time range, so that what has been there in it can be chosen
        "sort": 3 if variable.name == "gpu" else 1,  # by number, by name
        "multi": variable.several,
        "includeAll": variable.several,
        "current": everything if variable.several else {},
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }


def _link(title: str, url: str) -> Json:
    return {
        "type": "link",
        "title": title,
        "url": url,
        "tooltip": "",
        "icon": "dashboard",
        "tags": [],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
    }


_DATASOURCE_VARIABLE: Json = {
    "type": "datasource",
    "name": "datasource",
    "label": "Prometheus",
    "query": "prometheus",
    "regex": "",
    "refresh": 1,
    "multi": False,
    "includeAll": False,
    "current": {},
    "options": [],
    "hide": 0,
    "skipUrlSync": False,
}
_ANNOTATIONS: Json = {
    "builtIn": 1,
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": True,
    "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)",
    "name": "Annotations & Alerts",
    "type": "dashboard",
}
