"""The file of settings: what may stand in it, what a mistake in it is told as, and what wins over it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config import EVERY_SETTING, OTHERS, argument, every_setting, variable

from ollama_metrics.config import FILE_VARIABLES, load
from ollama_metrics.config_file import parse_config_file, read_config_file
from ollama_metrics.errors import ConfigError
from ollama_metrics.settings import SETTINGS, Config

SHIPPED = Path(__file__).parents[1] / "systemd" / "environment"
INTERVAL = "OLLAMA_METRICS_INTERVAL"


def mistake(text: str) -> str:
    """What a file with this content is refused with."""
    with pytest.raises(ConfigError) as caught:
        parse_config_file(text, "/etc/x")
    return str(caught.value)


# -- what may stand in it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"{INTERVAL}=2",
        f"{INTERVAL}=2\n",
        f"{INTERVAL}=2\r\n",
        f"  {INTERVAL} = 2  \n",
        f"\t{INTERVAL}\t=\t2\t\n",
        f'{INTERVAL}="2"\n',
        f"{INTERVAL}='2'\r\n",
        f"# OLLAMA_METRICS_WINDOW=60\n; x=y\n\n   # more\n{INTERVAL}=2\n\n",
        f"#\x00\x1b\n{INTERVAL}=2\n",
    ],
)
def test_a_line_is_a_setting(text: str) -> None:
    """NAME=VALUE is one, whatever blanks, quotes, comments and kinds of line ends are around it."""
    assert parse_config_file(text, "x") == {INTERVAL: "2"}


@pytest.mark.parametrize("text", ["", "\n", "\r\n\r\n", "# nothing", "   \n\t\n"])
def test_a_file_may_say_nothing(text: str) -> None:
    """An empty file and one of comments set nothing."""
    assert parse_config_file(text, "x") == {}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("", ""),
        ('""', ""),
        ("''", ""),
        ('" a "', " a "),
        ('"it\'s"', "it's"),
        ("a'b", "a'b"),
        ("/a b/c", "/a b/c"),
        ("/a # b", "/a # b"),
        ("/a=b", "/a=b"),
        ("$HOME/`x`\\n", "$HOME/`x`\\n"),
        ("/\u00fc/\u4e2d", "/\u00fc/\u4e2d"),
    ],
)
def test_a_value_is_taken_as_it_is(written: str, value: str) -> None:
    """Quotes around it are taken off; nothing is expanded, and a # in it is a part of it."""
    name = "OLLAMA_METRICS_STATE_DIR"
    assert parse_config_file(f"{name}={written}\n", "x") == {name: value}


@settings(deadline=None)
@given(values=st.dictionaries(st.sampled_from(FILE_VARIABLES), st.text().filter(str.isprintable)))
def test_every_printable_value_survives_in_quotes(values: Mapping[str, str]) -> None:
    """What is written in quotes is read back, whatever is in it."""
    text = "".join(f'{name}="{value}"\n' for name, value in values.items())
    assert parse_config_file(text, "x") == values


@settings(deadline=None)
@given(text=st.text() | st.from_regex(rf"({INTERVAL}=['\"]?.{{0,9}}\n){{0,2}}", fullmatch=True))
def test_whatever_is_in_it_is_settings_or_one_line(text: str) -> None:
    """Any text is known settings, or a mistake in one printable line that names the file and the line."""
    try:
        values, sentence = parse_config_file(text, "/etc/x"), "/etc/x, line 1: fine"
    except ConfigError as error:
        values, sentence = {}, str(error)
    assert re.match(r"/etc/x, line \d+: ", sentence)
    assert sentence.isprintable()
    assert set(values) <= set(FILE_VARIABLES)
    assert "".join(values.values()).isprintable()


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("OLLAMA_METRICS_INTERVALL=1", ["'OLLAMA_METRICS_INTERVALL'", INTERVAL]),
        ("ollama_metrics_interval=1", ["'ollama_metrics_interval'", INTERVAL]),
        ("OLLAMA_METRICS_CONFIG=/etc/y", ["'OLLAMA_METRICS_CONFIG'", INTERVAL]),
        (f"export {INTERVAL}=1", [f"'export {INTERVAL}'"]),
        ("PATH=/bin", ["'PATH'"]),
        ("=1", ["''"]),
        (INTERVAL, [f"'{INTERVAL}'", "give NAME=VALUE"]),
        ("nonsense", ["'nonsense'", "give NAME=VALUE"]),
        (f"\ufeff{INTERVAL}=1", ["give NAME=VALUE"]),
        (f"{INTERVAL}=1\0", ["give NAME=VALUE"]),
        (f"{INTERVAL}=1\x1b[2J", ["give NAME=VALUE"]),
        (f"{INTERVAL}=1\u2028x", ["give NAME=VALUE"]),
        (f'{INTERVAL}="1', ["'\"1'", "close the quote"]),
        (f"{INTERVAL}='1\"", ["close the quote"]),
        (f'{INTERVAL}="', ["close the quote"]),
        (f'{INTERVAL}="1" # one', ["close the quote"]),
    ],
)
def test_a_mistake_names_file_and_line(line: str, parts: list[str]) -> None:
    """What is no setting is told with the file, the line's number and what would do."""
    sentence = mistake(f"# first\n\n{line}\nOLLAMA_METRICS_WINDOW=60\n")
    assert sentence.startswith("/etc/x, line 3: ")
    for part in parts:
        assert part in sentence


def test_a_name_that_is_given_twice_is_a_mistake() -> None:
    """Of two values one would be passed over in silence: the second line is named."""
    sentence = mistake(f"{INTERVAL}=1\n#\n{INTERVAL}=1\n")
    assert sentence.startswith(f"/etc/x, line 3: '{INTERVAL}' ")
    assert "given twice" in sentence


# -- reading it --------------------------------------------------------------------------------------------------------


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def unreadable(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "it cannot be read (No such file or directory)"),
        (Path.mkdir, "it is no regular file"),
        (make_fifo, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda path: path.symlink_to(path), "it cannot be read (Too many levels"),
        (unreadable(b"\xff\xfe"), "it is not UTF-8"),
        (unreadable(b"#" * ((1 << 16) + 1)), "a file of at most 65536 bytes"),
    ],
    ids=["missing", "directory", "FIFO", "device", "circle", "binary", "huge"],
)
def test_what_cannot_be_read_is_told(
    tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    """What is no readable file of text is a mistake that names it, at once, and leaves nothing open."""
    path = tmp_path / "settings"
    make(path)
    files = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as caught:
        read_config_file(str(path))
    assert str(caught.value).startswith(f"--config: {str(path)!r} is not usable; ")
    assert why in str(caught.value)
    assert set(os.listdir("/proc/self/fd")) == files


def test_a_path_that_no_file_can_have_is_told() -> None:
    """A NUL in the path, which only a calling program can give, is a mistake like the others."""
    with pytest.raises(ConfigError, match="give the path of a file"):
        read_config_file("a\0b")


def test_a_file_may_be_as_large_as_that(tmp_path: Path) -> None:
    """The bound belongs to what is accepted; a symbolic link is as good as what it leads to."""
    path, link = tmp_path / "settings", tmp_path / "link"
    setting = f"\n{INTERVAL}=2\n".encode()
    path.write_bytes(b"#" * ((1 << 16) - len(setting)) + setting)
    link.symlink_to(path)
    assert read_config_file(str(link)) == {INTERVAL: "2"}


# -- what wins ---------------------------------------------------------------------------------------------------------


def test_every_setting_but_the_files_own_may_stand_in_it() -> None:
    """A file of settings cannot name another one."""
    names = [setting.variable for setting in SETTINGS]
    assert list(FILE_VARIABLES) == [name for name in names if name != "OLLAMA_METRICS_CONFIG"]


in_the_file = pytest.mark.parametrize("name", [name for name in EVERY_SETTING if name != "config"])


@in_the_file
def test_a_setting_of_the_file_counts(name: str) -> None:
    """Where neither option nor variable is given the file's value does, and an empty variable is not given."""
    text, value = EVERY_SETTING[name]
    for environ in ({}, {variable(name): " "}):
        assert getattr(load({}, environ, True, {variable(name): text}), name) == value


@in_the_file
def test_environment_and_command_line_win_over_the_file(name: str) -> None:
    """The value of the file is not even looked at then."""
    text, value = EVERY_SETTING[name]
    for other in (OTHERS[name], "\n nonsense"):
        file = {variable(name): other}
        assert getattr(load({}, {variable(name): text}, True, file), name) == value
        assert getattr(load(argument(name, text), {}, True, file), name) == value


@in_the_file
def test_an_empty_setting_of_the_file_is_not_set(name: str) -> None:
    """`NAME=` in the file leaves the default."""
    assert load({}, {}, True, {variable(name): ""}) == Config()


def test_a_bad_value_of_the_file_names_variable_and_file() -> None:
    """A user who has three places to look at is told which it is."""
    for arguments, environ in (
        ({"config": "/etc/x"}, {}),
        ({}, {"OLLAMA_METRICS_CONFIG": "/etc/x"}),
        ({"config": "/etc/x"}, {"OLLAMA_METRICS_CONFIG": "/etc/y"}),
    ):
        with pytest.raises(ConfigError, match=f"^{INTERVAL} in /etc/x: 'soon' is not usable; "):
            load(arguments, environ, True, {INTERVAL: "soon"})
    with pytest.raises(ConfigError, match=r"^OLLAMA_METRICS_WINDOW in /etc/x: '0.5' .* interval"):
        load({"config": "/etc/x"}, {}, True, {"OLLAMA_METRICS_WINDOW": "0.5"})


def test_the_file_may_hold_several_addresses() -> None:
    """As in the variable, commas or blanks are between them."""
    file = {"OLLAMA_METRICS_LISTEN": "1.2.3.4:1, [::1]:2"}
    assert [str(address) for address in load({}, {}, True, file).listen] == [
        "1.2.3.4:1",
        "[::1]:2",
    ]


# -- the command -------------------------------------------------------------------------------------------------------

Check = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Run `check` with options and variables, in a directory of its own."""

    def check(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
        return subprocess.run(
            [sys.executable, "-m", "ollama_metrics", "check", *options],
            env={**inherited, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return check


def test_the_file_is_given_by_an_option_or_a_variable(check: Check, tmp_path: Path) -> None:
    """--config wins over OLLAMA_METRICS_CONFIG, which is not even read then; a mistake names what gave the path."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(f"{INTERVAL}=2\n")
    bad.write_text(f"{INTERVAL}=2\n{INTERVAL}=soon\n")
    assert check("--config", str(good), OLLAMA_METRICS_CONFIG=str(bad)).returncode == 0
    process = check("--config", "bad", OLLAMA_METRICS_CONFIG=str(good))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"ollama-metrics: bad, line 2: '{INTERVAL}' ")
    assert process.stderr.count("\n") == 1
    missing: Any = check(OLLAMA_METRICS_CONFIG="/nowhere")
    assert missing.returncode == 2
    assert missing.stderr.startswith("ollama-metrics: OLLAMA_METRICS_CONFIG: '/nowhere' ")
    assert check("--config", "/nowhere").stderr.startswith("ollama-metrics: --config: '/nowhere' ")


@every_setting
def test_the_file_that_is_installed_has_every_setting_and_its_default(name: str) -> None:
    """systemd/environment is usable as it is, and with all of its comments taken off it still says the defaults."""
    text = SHIPPED.read_text("utf-8")
    assert parse_config_file(text, "x") == {}
    uncommented = parse_config_file(re.sub(r"(?m)^#(?=OLLAMA_)", "", text), "x")
    assert set(uncommented) == set(FILE_VARIABLES)
    config = load({}, {}, True, uncommented)
    default = "/var/lib/ollama-metrics" if name == "state_dir" else getattr(Config(), name)
    assert getattr(config, name) == default
