"""Where Ollama is, by what an operator writes and by what Ollama's own OLLAMA_HOST holds."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_metrics.ollama_url import DEFAULT, OllamaUrl, from_ollama_host, parse_url

# What is understood in the same way in both places.
BOTH = {
    "http://127.0.0.1:11434": ("127.0.0.1", 11434),
    "127.0.0.1:11434": ("127.0.0.1", 11434),
    "127.0.0.1": ("127.0.0.1", 11434),
    "http://127.0.0.1": ("127.0.0.1", 80),
    "http://gpu-1.example:8080": ("gpu-1.example", 8080),
    "gpu_1": ("gpu_1", 11434),
    "localhost:1": ("localhost", 1),
    "localhost:65535": ("localhost", 65535),
    ":8080": ("127.0.0.1", 8080),
    "http://:8080": ("127.0.0.1", 8080),
    "0.0.0.0": ("127.0.0.1", 11434),
    "http://0.0.0.0:1234": ("127.0.0.1", 1234),
    "::": ("::1", 11434),
    "[::]": ("::1", 11434),
    "[::]:1234": ("::1", 1234),
    "0:0:0:0:0:0:0:0": ("::1", 11434),
    "::1": ("::1", 11434),
    "[::1]": ("::1", 11434),
    "http://[::1]": ("::1", 80),
    "http://[2001:DB8::0:1]:1234": ("2001:db8::1", 1234),
    "fe80::1%eth0": ("fe80::1%eth0", 11434),
    "[fe80::1%eth0]:1234": ("fe80::1%eth0", 1234),
    "::ffff:0.0.0.0": ("127.0.0.1", 11434),
    "[::ffff:10.0.0.1]:1234": ("10.0.0.1", 1234),
    "[10.0.0.1]:1234": ("10.0.0.1", 1234),
    "HTTP://10.0.0.1:1234": ("10.0.0.1", 1234),
}


@pytest.mark.parametrize("read", [parse_url, from_ollama_host])
@pytest.mark.parametrize(("text", "where"), BOTH.items())
def test_an_address_may_be_written_in_all_forms_of_ollamas(
    read: object, text: str, where: tuple[str, int]
) -> None:
    """Scheme, port, brackets and host may be left out; an address of all interfaces is asked on loopback."""
    assert callable(read)
    assert read(text) == OllamaUrl(*where)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("http://h:1", ""),
        ("http://h:1/", ""),
        ("http://h:1/ollama", "/ollama"),
        ("h:1/a/b//", "/a/b"),
        ("h:1/a%20b", "/a%20b"),
    ],
)
def test_a_path_is_kept_without_its_last_slash(text: str, path: str) -> None:
    """What a proxy has before Ollama's own paths stays, in both places."""
    assert parse_url(text) == from_ollama_host(text) == OllamaUrl("h", 1, path)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", DEFAULT),
        ("   ", DEFAULT),
        ('"10.0.0.1:1234"', OllamaUrl("10.0.0.1", 1234)),
        ("' 10.0.0.1 '", OllamaUrl("10.0.0.1", 11434)),
        (" 10.0.0.1:1234\n", OllamaUrl("10.0.0.1", 1234)),
        ("http://", OllamaUrl("127.0.0.1", 80)),
        ("10.0.0.1:", DEFAULT.__class__("10.0.0.1", 11434)),
        ("10.0.0.1:66000", OllamaUrl("10.0.0.1", 11434)),
        ("10.0.0.1:-1", OllamaUrl("10.0.0.1", 11434)),
        ("10.0.0.1:http", OllamaUrl("10.0.0.1", 11434)),
        ("http://10.0.0.1:66000", OllamaUrl("10.0.0.1", 80)),
        ("[::1]:66000", OllamaUrl("::1", 11434)),
        ("[]:1234", OllamaUrl("127.0.0.1", 1234)),
    ],
)
def test_ollamas_own_variable_is_read_as_leniently_as_by_ollama(
    text: str, where: OllamaUrl
) -> None:
    """Quotes and spaces around it do not matter, and a port that is none is the usual one."""
    assert from_ollama_host(text) == where


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "http://",
            "/",
            "http:///path",
            "h:",
            "h:0",
            "h:65536",
            "h:-1",
            "h:+1",
            "h:\u0661",
            "h:1e3",
        ),
        *("h:http", "h:1\n", '"h:1"', " h:1", "h:1 "),
    ],
)
def test_what_an_operator_writes_has_to_be_right(text: str) -> None:
    """`--ollama` guesses nothing: no host and a port that is none are refused with a reason."""
    with pytest.raises(ValueError) as caught:
        parse_url(text)
    assert str(caught.value) not in ("", text)


@pytest.mark.parametrize("read", [parse_url, from_ollama_host])
@pytest.mark.parametrize(
    "text",
    [
        *("http://user@h", "http://user:word@h:1", "h?q", "h:1/?q", "h#f", "h:1/p#f", "h:1/p?q=1"),
        *("a b", "h:1/a b", "h:1/\x7f", "h\0", "h:1/é", "hé", "h\r\nX: y", "h:1/\\x"),
        *("ftp://h", "unix:///run/x", "://h", "httpx://h", "a:b:c", "h:1:2", "[::1]x", "x[::1]:1"),
        *(
            "::1]:1",
            "[[::1]]:1",
            "1.2.3",
            "127.1",
            "10.0.0.256",
            "1.2.3.4.5",
            "%",
        ),
        *("::1%", "1.2.3.4%eth0", "::g", "h" * 254, "h:1/" + "p" * 2000, "h..:1/<"),
    ],
)
def test_what_is_no_address_is_refused(read: object, text: str) -> None:
    """User, query, fragment, control characters, other schemes and half addresses: each a ValueError."""
    assert callable(read)
    with pytest.raises(ValueError):
        read(text)


@pytest.mark.parametrize("read", [parse_url, from_ollama_host])
@pytest.mark.parametrize("text", ["https://h", "https://h:11434/x", "HTTPS://127.0.0.1"])
def test_https_is_refused_with_the_way_out(read: object, text: str) -> None:
    """The reason tells to give Ollama's own http address."""
    assert callable(read)
    with pytest.raises(ValueError, match="give Ollama's own http address"):
        read(text)


def test_ollamas_cloud_is_not_this_host() -> None:
    """`ollama.com` means https in OLLAMA_HOST."""
    with pytest.raises(ValueError, match="http address"):
        from_ollama_host("ollama.com")


def test_port_0_cannot_be_asked() -> None:
    """Ollama listens on a port that it chooses then, which nobody can know."""
    with pytest.raises(ValueError, match="port 0"):
        from_ollama_host("127.0.0.1:0")


@pytest.mark.parametrize(
    ("url", "text", "header"),
    [
        (DEFAULT, "http://127.0.0.1:11434", "localhost:11434"),
        (OllamaUrl("127.9.9.9", 1), "http://127.9.9.9:1", "localhost:1"),
        (OllamaUrl("::1", 1, "/p"), "http://[::1]:1/p", "localhost:1"),
        (OllamaUrl("localhost", 80), "http://localhost:80", "localhost:80"),
        (OllamaUrl("LocalHost", 80), "http://LocalHost:80", "localhost:80"),
        (OllamaUrl("a.localhost", 80), "http://a.localhost:80", "localhost:80"),
        (OllamaUrl("mylocalhost", 80), "http://mylocalhost:80", "mylocalhost:80"),
        (OllamaUrl("10.0.0.1", 80, "/p"), "http://10.0.0.1:80/p", "10.0.0.1:80"),
        (OllamaUrl("2001:db8::1", 80), "http://[2001:db8::1]:80", "[2001:db8::1]:80"),
        (OllamaUrl("fe80::1%eth0", 80), "http://[fe80::1%eth0]:80", "[fe80::1]:80"),
    ],
)
def test_an_address_as_text_and_as_header(url: OllamaUrl, text: str, header: str) -> None:
    """IPv6 has brackets; on loopback the header is localhost, and a zone never leaves the host."""
    assert str(url) == text
    assert url.host_header == header
    assert parse_url(text) == url


@example("/@")
@given(st.text(st.sampled_from("htp:/[]0123456789.%abc@?# \"'\n\0é-"), max_size=40) | st.text())
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    """Whatever is written, nothing but ValueError is raised, and an address that is read is read again as itself."""
    for read in (parse_url, from_ollama_host):
        try:
            url = read(text)
        except ValueError:
            continue
        assert 0 < url.port < 65536
        assert url.host
        assert (str(url) + url.host_header).isascii()
        assert not set(str(url) + url.host_header) & set(" \r\n\0?#")
        assert (
            "@" not in f"http://{url.host}{url.host_header}"
        )  # in a path it is a letter (RFC 3986)
        assert parse_url(str(url)) == url
