"""Settings: where they come from, what is accepted, and what a user is told who got one wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollama_metrics.config import default_state_dir, load
from ollama_metrics.errors import ConfigError
from ollama_metrics.ollama_url import OllamaUrl
from ollama_metrics.option_values import Address, parse_address, parse_cgroup, parse_log
from ollama_metrics.settings import SETTINGS, Config
from ollama_metrics.weight import Weighting

EVERY_SETTING = {
    "config": ("/etc/settings", "/etc/settings"),
    "listen": ("127.0.0.1:8000", (Address("127.0.0.1", 8000),)),
    "interval": ("0.5", 0.5),
    "window": ("30", 30.0),
    "expected_gpus": ("4", 4),
    "state_dir": ("/somewhere", "/somewhere"),
    "on_failure": ("last-good", "last-good"),
    "log_level": ("debug", "debug"),
    "ollama": ("http://127.0.0.1:8001", OllamaUrl("127.0.0.1", 8001)),
    "ollama_interval": ("10", 10.0),
    "ollama_grace": ("0", 0.0),
    "ollama_slots": ("off", False),
    "ollama_log": ("journal:ollama.service", ("journal", "ollama.service")),
    "ollama_cgroup": ("/sys/fs/cgroup/x", "/sys/fs/cgroup/x"),
    "ollama_ignore": ("slow", ("slow",)),
    "weight": ("cpu=2,in_flight=10", Weighting(cpu=2.0, in_flight=10.0)),
    "capacity": ("2.5", 2.5),
    "queue_aware": ("on", True),
    "agent_check": ("127.0.0.1:9000", Address("127.0.0.1", 9000)),
    "agent_check_window": ("10", 10.0),
    "orca": ("on", True),
}
OTHERS = {
    "config": "/etc/others",
    "listen": "[::1]:9000",
    "interval": "2",
    "window": "60",
    "expected_gpus": "8",
    "state_dir": "/elsewhere",
    "on_failure": "error",
    "log_level": "error",
    "ollama": "none",
    "ollama_interval": "20",
    "ollama_grace": "9",
    "ollama_slots": "on",
    "ollama_log": "file:/var/log/ollama.log",
    "ollama_cgroup": "none",
    "ollama_ignore": "down",
    "weight": "ram=0",
    "capacity": "0.5",
    "queue_aware": "off",
    "agent_check": "[::]:9001",
    "agent_check_window": "7",
    "orca": "off",
}
REPEATABLE = ("listen", "ollama_ignore")
every_setting = pytest.mark.parametrize("name", list(EVERY_SETTING))


def variable(name: str) -> str:
    return "OLLAMA_METRICS_" + name.upper()


def argument(name: str, text: str) -> Mapping[str, Any]:
    return {name: [text] if name in REPEATABLE else text}


# -- sources -----------------------------------------------------------------------------------------------------------


def test_the_defaults() -> None:
    """Without options and variables: port 11435 on every address, a sample a second, means over 15 s."""
    assert load({}, {}) == Config(
        listen=(Address("0.0.0.0", 11435),),
        interval=1.0,
        window=15.0,
        expected_gpus=None,
        state_dir=None,
        on_failure="pessimistic",
        log_level="info",
        ollama=OllamaUrl("127.0.0.1", 11434),
    )


def test_every_setting_is_tested_here() -> None:
    """The tables above know every setting, and Config holds just those."""
    names = [setting.name for setting in SETTINGS]
    assert names == list(EVERY_SETTING) == list(OTHERS)
    assert [*names, "ollama_expected"] == list(Config.__dataclass_fields__)


@every_setting
def test_every_option_sets_its_value(name: str) -> None:
    """An option on the command line is parsed into its value."""
    text, value = EVERY_SETTING[name]
    assert getattr(load(argument(name, text), {}), name) == value


@every_setting
def test_every_option_has_a_twin_in_the_environment(name: str) -> None:
    """`OLLAMA_METRICS_<NAME>` does what the option does."""
    text, value = EVERY_SETTING[name]
    assert getattr(load({}, {variable(name): text}), name) == value


@every_setting
def test_the_command_line_wins(name: str) -> None:
    """Where both are given the variable is not even looked at."""
    text, value = EVERY_SETTING[name]
    for other in (OTHERS[name], "\n nonsense"):
        assert getattr(load(argument(name, text), {variable(name): other}), name) == value


@every_setting
@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
def test_an_empty_variable_is_not_set(name: str, empty: str) -> None:
    """`OLLAMA_METRICS_X=` in an environment file leaves the default."""
    assert load({}, {variable(name): empty}) == Config()


@every_setting
def test_white_space_around_a_variable_does_not_matter(name: str) -> None:
    """An environment file may leave blanks at the end of a line."""
    text, value = EVERY_SETTING[name]
    assert getattr(load({}, {variable(name): f" {text} "}), name) == value


@pytest.mark.parametrize(
    "text", ["1.2.3.4:1,[::1]:2", "1.2.3.4:1 [::1]:2", " 1.2.3.4:1 ,\n[::1]:2,"]
)
def test_a_variable_may_hold_several_addresses(text: str) -> None:
    """The repeatable option's variable holds them apart by commas or blanks."""
    assert load({}, {"OLLAMA_METRICS_LISTEN": text}).listen == (
        Address("1.2.3.4", 1),
        Address("::1", 2),
    )


def test_listen_may_be_repeated() -> None:
    """Addresses are kept in the order in which they were given; the default is not among them."""
    listen = load({"listen": ["0.0.0.0:1", "[::]:2"]}, {}).listen
    assert listen == (Address("0.0.0.0", 1), Address("::", 2))


def test_once_takes_no_notice_of_what_only_the_daemon_needs() -> None:
    """A variable meant for `serve` can be as wrong as it likes when one reading is asked for."""
    environ = {"OLLAMA_METRICS_LISTEN": "nonsense", "OLLAMA_METRICS_WINDOW": "nonsense"}
    assert load({"interval": "30"}, environ, serve=False) == Config(interval=30.0)


# -- mistakes ----------------------------------------------------------------------------------------------------------

BAD = [
    *[("config", text, "path of a file") for text in ("", "a\0b")],
    *[("listen", text, "ADDR:PORT") for text in ("", "11435", ":80", "1.2.3.4:", "1.2.3.4:65536")],
    *[("listen", text, "0 to 65535") for text in ("1.2.3.4:-1", "1.2.3.4:http", "1.2.3.4:1e3")],
    *[("listen", text, "ADDR:PORT") for text in ("::1:80", "[::1]", "[1.2.3.4]:80", "[::1:80")],
    *[("listen", text, "ADDR:PORT") for text in ("[]:80", "[:::]:80", "[zz::]:80", "[::1]x:80")],
    *[("listen", text, "ADDR:PORT") for text in ("256.1.1.1:80", "1.2.3:80", "a b:80", "a/b:80")],
    *[("listen", text, "ADDR:PORT") for text in ("http://1.2.3.4:80", "u@h:80", "a\nb:80")],
    *[("interval", text, "0.1 to 60") for text in ("x", "", "0", "-1", "0.09", "61", "1s")],
    *[("interval", text, "0.1 to 60") for text in ("nan", "inf", "-inf", "1,5", "9" * 400)],
    *[("window", text, "to 120") for text in ("x", "0", "121", "nan", "inf", "-5", "15s")],
    *[("expected_gpus", text, "auto or a number") for text in ("x", "-1", "1.5", "257", "AUTO")],
    *[("expected_gpus", text, "0 to 256") for text in ("9999", "\u0661", "+4", "4 ")],
    *[("state_dir", text, "path of a directory") for text in ("", "a\0b")],
    *[("on_failure", text, "pessimistic, error, last-good") for text in ("x", "", "Error")],
    *[("log_level", text, "error, warning, info, debug") for text in ("x", "", "INFO", "trace")],
    *[("ollama", text, "auto, none or") for text in ("", "https://h:1", "ftp://h", "u@h")],
    *[("ollama", text, "Ollama's own address") for text in ("h:65536", "h:x", "h/?a=b", "a b")],
    *[("ollama_interval", text, "1 to 60") for text in ("x", "", "0.9", "61", "-5", "5s", "5,0")],
    *[("ollama_interval", text, "1 to 60") for text in ("nan", "inf", "1_0", "0x5")],
    *[
        ("ollama_grace", text, "0 to 3600")
        for text in ("x", "", "-0.1", "3601", "nan", "inf", "1m")
    ],
    *[("ollama_slots", text, "on or off") for text in ("", "ON", "true", "1", "yes", "on,off")],
    *[
        ("ollama_log", text, "journal:UNIT")
        for text in ("", "NONE", "none:", "journal", "journal:")
    ],
    *[("ollama_log", text, "journal:UNIT") for text in ("ollama.service", "Journal:a", "unit:a")],
    *[("ollama_log", text, "journal:UNIT") for text in ("journal:-f", "journal:@a", "journal:a b")],
    *[
        ("ollama_log", text, "journal:UNIT")
        for text in ("journal:a/b", "journal:a*", "journal:a\n")
    ],
    *[("ollama_log", text, "journal:UNIT") for text in ("journal:\u00e9", "journal:\u0661")],
    *[("ollama_log", text, "journal:UNIT") for text in ("journal:.service", "journal:a@.service")],
    *[("ollama_log", text, "journal:UNIT") for text in ("journal:a@", "journal:" + 248 * "a")],
    *[("ollama_log", text, "file:/PATH") for text in ("file", "file:", "file:/a\0b", "/var/log/o")],
    *[("ollama_log", text, "file:/PATH") for text in ("file:ollama.log", "file:./o", "file:~/o")],
    *[("ollama_cgroup", text, "auto, none or the path") for text in ("", "a\0b")],
    *[
        ("weight", text, "NAME=N")
        for text in ("cpu", "cpu=", "cpu=x", "cpu=-1", "cpu=101", "gpu=1", "=1")
    ],
    *[
        ("weight", text, "NAME=N")
        for text in ("cpu=1,cpu=2", "cpu=1,", "cpu=nan", "cpu=1e1_0", ",")
    ],
    ("weight", "cpu=0,ram=0", "cpu and ram not both 0"),
    *[("capacity", text, "0.01 to 100") for text in ("0", "-1", "101", "x", "inf", "nan")],
    *[("queue_aware", text, "on or off") for text in ("yes", "1", "ON")],
    *[("agent_check", text, "ADDR:PORT") for text in ("9000", ":9000", "a b:1", "[::]", "None")],
    *[("agent_check_window", text, "seconds from the interval") for text in ("0", "121", "x")],
    *[("orca", text, "on or off") for text in ("text", "true")],
    *[("ollama_ignore", text, "down, on-cpu") for text in ("x", "", "Down", "on_cpu", "all")],
]


# Values that are more than their own text, or at the bounds of what is accepted.
GOOD = [
    ("ollama", "127.0.0.1", OllamaUrl("127.0.0.1", 11434)),
    ("ollama", "http://ollama.example", OllamaUrl("ollama.example", 80)),
    ("ollama", "http://[::1]:8001/base/", OllamaUrl("::1", 8001, "/base")),
    ("ollama", "0.0.0.0:1", OllamaUrl("127.0.0.1", 1)),
    ("ollama", "none", None),
    *[("ollama_interval", text, float(text)) for text in ("1", "60", "2.5", "1e1")],
    *[("ollama_grace", text, float(text)) for text in ("0", "3600", "0.5")],
    ("ollama_slots", "on", True),
    ("ollama_slots", "off", False),
    ("ollama_log", "none", ("none", "")),
    ("ollama_log", "journal:ollama", ("journal", "ollama.service")),
    ("ollama_log", "journal:ollama.service", ("journal", "ollama.service")),
    ("ollama_log", "journal:ollama.socket", ("journal", "ollama.socket")),
    ("ollama_log", "journal:ollama@1.2", ("journal", "ollama@1.2.service")),
    ("ollama_log", "journal:ollama@a.b.service", ("journal", "ollama@a.b.service")),
    ("ollama_log", "journal:a.Service", ("journal", "a.Service.service")),
    ("ollama_log", "journal:docker-1f.scope", ("journal", "docker-1f.scope")),
    ("ollama_log", "journal:a-b_c:d\\x2de", ("journal", "a-b_c:d\\x2de.service")),
    ("ollama_log", "journal:" + 247 * "a", ("journal", 247 * "a" + ".service")),
    ("ollama_log", "file:/", ("file", "/")),
    ("ollama_log", "file:/a:b c/\u00e9.log", ("file", "/a:b c/\u00e9.log")),
    *[("ollama_cgroup", text, text) for text in ("auto", "none", "/", "system.slice/a.service")],
    *[("ollama_ignore", rule, (rule,)) for rule in ("down", "on-cpu", "slow", "errors")],
    ("ollama_ignore", "none", ()),
    ("weight", " cpu=0 , ram=0.5", Weighting(cpu=0.0, ram=0.5)),
    ("weight", "gpu_util=100,gpu_mem=0", Weighting(gpu_util=100.0, gpu_mem=0.0)),
    ("capacity", "0.01", 0.01),
    ("agent_check", "none", None),
    ("agent_check", "0.0.0.0:0", Address("0.0.0.0", 0)),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_what_is_accepted_becomes_its_value(name: str, text: str, value: Any) -> None:
    """What of Ollama's settings is at a bound, or is completed, is what it is meant to be."""
    assert getattr(load(argument(name, text), {}), name) == value


@pytest.mark.parametrize(
    ("arguments", "environ", "url", "expected"),
    [
        ({}, {}, OllamaUrl("127.0.0.1", 11434), False),
        ({"ollama": "auto"}, {}, OllamaUrl("127.0.0.1", 11434), False),
        ({"ollama": "auto"}, {"OLLAMA_HOST": "0.0.0.0:1"}, OllamaUrl("127.0.0.1", 1), False),
        ({"ollama": "h:2"}, {"OLLAMA_HOST": "0.0.0.0:1"}, OllamaUrl("h", 2), True),
        ({"ollama": "h:2"}, {"OLLAMA_HOST": "https://x"}, OllamaUrl("h", 2), True),
        ({"ollama": "none"}, {"OLLAMA_HOST": "https://x"}, None, False),
    ],
)
def test_an_ollama_that_is_named_is_expected(
    arguments: Mapping[str, str], environ: Mapping[str, str], url: Any, expected: bool
) -> None:
    """`auto` looks where OLLAMA_HOST says and expects nothing, a URL does, and `none` asks for neither."""
    config = load(arguments, environ)
    assert (config.ollama, config.ollama_expected) == (url, expected)


def test_an_ollama_host_that_cannot_be_asked_is_a_mistake() -> None:
    """Where `auto` is to look there, the sentence names OLLAMA_HOST and what to set instead."""
    with pytest.raises(ConfigError, match=r"^OLLAMA_HOST: 'https://x' .* set --ollama"):
        load({}, {"OLLAMA_HOST": "https://x"})


@pytest.mark.parametrize(
    ("texts", "rules"), [(["slow", "down"], ("slow", "down")), (["slow", "none"], ())]
)
def test_rules_that_are_ignored_may_be_several(texts: list[str], rules: tuple[str, ...]) -> None:
    """Each is kept, by option and by variable; `none` among them ignores no rule."""
    assert load({"ollama_ignore": texts}, {}).ollama_ignore == rules
    variable_of_it = {"OLLAMA_METRICS_OLLAMA_IGNORE": ",".join(texts)}
    assert load({}, variable_of_it).ollama_ignore == rules


@pytest.mark.parametrize("text", ["", "a\0b", "..", "../a", "/a/../b", "/a/.."])
def test_a_cgroup_does_not_lead_upwards(text: str) -> None:
    """What could not be read as a cgroup is refused as a setting, and not when the agent starts."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_cgroup(text)
    assert parse_cgroup("/a..b/c") == "/a..b/c"


@given(name=st.text(max_size=260) | st.from_regex(r"[A-Za-z0-9:_.@\\-]{1,260}", fullmatch=True))
@settings(max_examples=200, deadline=None)
def test_a_unit_is_one_of_systemds_or_a_mistake(name: str) -> None:
    """Whatever is typed behind `journal:` is a name that journalctl takes as it stands, or refused."""
    try:
        kind, unit = parse_log(f"journal:{name}")
    except ValueError:
        return
    assert kind == "journal"
    assert re.fullmatch(r"[A-Za-z0-9:_.\\][A-Za-z0-9:_.@\\-]*\.[a-z]+", unit, re.ASCII)
    assert len(unit) <= 255
    assert unit in (name, f"{name}.service")
    assert parse_log(f"journal:{unit}") == (kind, unit)


@pytest.mark.parametrize(("name", "text", "accepted"), BAD)
def test_a_mistake_names_option_value_and_what_would_do(
    name: str, text: str, accepted: str
) -> None:
    """A bad option is told by its name, its value, and what is accepted, in one line."""
    with pytest.raises(ConfigError) as caught:
        load(argument(name, text), {})
    option = "--" + name.replace("_", "-")
    assert caught.value.source == option
    sentence = str(caught.value)
    assert sentence.startswith(f"{option}: {text!r} is not usable; ")
    assert accepted in sentence.split("; ")[1]
    assert sentence.isprintable()


# An environment file may hold blanks: around a value they do not matter, and they part addresses.
BAD_VARIABLES = [bad for bad in BAD if bad[1].strip() == bad[1] != "" and len(bad[1].split()) == 1]


@pytest.mark.parametrize(("name", "text", "accepted"), BAD_VARIABLES)
def test_a_mistake_in_the_environment_names_the_variable(
    name: str, text: str, accepted: str
) -> None:
    """A bad variable is told by its own name, not by the option's."""
    with pytest.raises(ConfigError) as caught:
        load({}, {variable(name): text})
    sentence = str(caught.value)
    assert sentence.startswith(f"{variable(name)}: {text!r} is not usable; ")
    assert accepted in sentence


def test_the_bad_one_of_several_addresses_is_named() -> None:
    """Of several addresses it is the bad one that is shown."""
    with pytest.raises(ConfigError, match=re.escape("--listen: 'x' is not usable")):
        load({"listen": ["1.2.3.4:80", "x"]}, {})
    with pytest.raises(ConfigError, match=re.escape("OLLAMA_METRICS_LISTEN: 'x' is not usable")):
        load({}, {"OLLAMA_METRICS_LISTEN": "1.2.3.4:80,x"})


@pytest.mark.parametrize("text", [",", " , ,", ",,"])
def test_a_list_of_no_addresses_is_a_mistake(text: str) -> None:
    """A variable that holds nothing but commas names no address."""
    with pytest.raises(ConfigError, match=r"OLLAMA_METRICS_LISTEN: .* give ADDR:PORT"):
        load({}, {"OLLAMA_METRICS_LISTEN": text})


@pytest.mark.parametrize(
    ("arguments", "environ", "sentence"),
    [
        ({"window": "1", "interval": "2"}, {}, "--window: '1' .* at least the interval, 2 seconds"),
        ({"window": "0.5"}, {}, "--window: '0.5' .* at least the interval, 1 seconds"),
        ({"interval": "16"}, {}, "--interval: '16' .* at most the window, 15 seconds"),
        ({}, {"OLLAMA_METRICS_INTERVAL": "16"}, "OLLAMA_METRICS_INTERVAL: '16' .* at most"),
        (
            {"interval": "30"},
            {"OLLAMA_METRICS_WINDOW": "20"},
            "OLLAMA_METRICS_WINDOW: '20' .* at least the interval, 30 seconds",
        ),
    ],
)
def test_a_window_shorter_than_the_interval_is_a_mistake(
    arguments: Mapping[str, str], environ: Mapping[str, str], sentence: str
) -> None:
    """Whichever of the two was given is at fault, and the sentence names the other's value."""
    with pytest.raises(ConfigError, match=sentence):
        load(arguments, environ)


def test_a_window_as_long_as_the_interval_will_do() -> None:
    """The bounds belong to what is accepted."""
    assert load({"window": "0.1", "interval": "0.1"}, {}).window == 0.1
    assert load({"window": "120", "interval": "60"}, {}).window == 120.0


# -- addresses ---------------------------------------------------------------------------------------------------------

host_names = st.from_regex(
    r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z][a-z0-9]{0,10}){0,3}", fullmatch=True
)


@given(
    host=st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str), host_names),
    port=st.integers(0, 65535),
)
@settings(max_examples=100, deadline=None)
@example("::", 0)
@example("fe80::1%eth0", 11435)
def test_an_address_survives_being_written_and_read(host: str, port: int) -> None:
    """Every IPv4 and IPv6 address and every host name reads back as it was written."""
    address = Address(host, port)
    assert parse_address(str(address)) == address


@given(
    text=st.text(max_size=30) | st.from_regex(r"[\[\]:0-9a-f.%]{0,20}:[0-9]{1,6}", fullmatch=True)
)
@settings(max_examples=200, deadline=None)
def test_anything_else_is_a_value_error(text: str) -> None:
    """Whatever a user types is an address that reads back the same, or a ValueError."""
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert 0 <= address.port <= 65535
    assert parse_address(str(address)) == address


# -- the state directory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"STATE_DIRECTORY": "/var/lib/ollama-metrics"}, "/var/lib/ollama-metrics"),
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
        ({"STATE_DIRECTORY": "/s", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/s"),
        ({"STATE_DIRECTORY": "", "XDG_STATE_HOME": "/x"}, "/x/ollama-metrics"),
        ({"STATE_DIRECTORY": "relative", "HOME": "/h"}, "/h/.local/state/ollama-metrics"),
        ({"XDG_STATE_HOME": "/x/", "HOME": "/h"}, "/x/ollama-metrics"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/ollama-metrics"),
        ({"HOME": "/"}, "/.local/state/ollama-metrics"),
        ({"HOME": ""}, None),
        ({"HOME": "relative"}, None),
        ({}, None),
    ],
)
def test_where_the_state_goes(environ: Mapping[str, str], directory: Optional[str]) -> None:
    """systemd's directory, else XDG's, else the home's; relative paths are ignored as XDG wants it."""
    assert default_state_dir(environ) == directory
    assert load({}, environ).state_dir == directory


def test_a_state_directory_that_is_given_wins() -> None:
    """--state-dir and its variable come before systemd's."""
    environ = {"STATE_DIRECTORY": "/s", "HOME": "/h"}
    assert load({"state_dir": "here"}, environ).state_dir == "here"
    assert load({}, {**environ, "OLLAMA_METRICS_STATE_DIR": "/v"}).state_dir == "/v"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"queue_aware": "on"}, "--queue-aware: 'on'"),
        ({"weight": "in_flight=1"}, "--weight: 'in_flight=1'"),
    ],
)
def test_who_counts_requests_in_flight_needs_the_collector(
    given: dict[str, str], named: str
) -> None:
    """With --ollama none nobody knows them: a mistake at the start, which names the option; else it is accepted."""
    with pytest.raises(
        ConfigError, match="requests in flight are not known with --ollama none"
    ) as caught:
        load({**given, "ollama": "none"}, {})
    assert named in str(caught.value)
    load({**given, "ollama": "auto"}, {})
    load({"queue_aware": "off", "weight": "in_flight=0", "ollama": "none"}, {})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"agent_check": "0.0.0.0:11435"}, "--agent-check: '0.0.0.0:11435'.*--listen has that"),
        ({"agent_check_window": "1", "interval": "2"}, "--agent-check-window: '1'.*interval, 2"),
    ],
)
def test_the_agent_check_and_the_rest_go_together(given: dict[str, str], named: str) -> None:
    """An address that is served already, and a window within one interval, are mistakes at the start."""
    with pytest.raises(ConfigError, match=named):
        load(given, {})
    load({"agent_check": "127.0.0.1:0", "listen": ["127.0.0.1:0"]}, {})
    load({"interval": "10"}, {})


@pytest.mark.parametrize("option", ["--queue-aware", "--orca", "--ollama-slots"])
def test_a_switch_by_itself_is_on(option: str) -> None:
    """`--queue-aware` is `--queue-aware on`, wherever it stands; what follows is not taken for its value."""
    from ollama_metrics.cli import _parse

    name = option[2:].replace("-", "_")
    for rest in ([], ["--log-level", "error"]):
        for words in (
            [option, *rest],
            [*rest, option],
            [option, "on", *rest],
            [f"{option}=on", *rest],
        ):
            _, config, _ = _parse(["serve", *words], {})
            assert getattr(config, name) is True
    _, config, _ = _parse(["serve", option, "off"], {})
    assert getattr(config, name) is False
