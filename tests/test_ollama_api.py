"""What is asked of Ollama, against the stand-in: good answers become values, all others an OllamaAnswer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ollama_process import OllamaProcess, model
from ollama_standin import PROMPT, VERSION, WEIGHTS

from ollama_metrics.errors import OllamaAnswer, OllamaDown, OllamaError
from ollama_metrics.ollama import Model
from ollama_metrics.ollama_api import (
    MOST_MODELS,
    OllamaApi,
    models_in,
    slots,
    unix_seconds,
    weights_in,
)
from ollama_metrics.ollama_url import OllamaUrl

GIB = 1 << 30
PATHS = ("/api/version", "/api/ps", "/api/show", "/slots")
# In the place of a whole answer: what is no JSON, or none that can be held.
NO_JSON = {
    "nothing": b"",
    "text": PROMPT.encode(),
    "half an object": b'{"models": [{"name": "' + PROMPT.encode(),
    "two documents": b"{} {}",
    "no UTF-8": b'{"models": [{"name": "\xff\xfe"}]}',
    "UTF-16": '{"models": []}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "NaN": b'{"models": [{"name": "x", "size": NaN, "size_vram": 1}]}',
    "infinity": b'{"models": [], "x": -Infinity}',
    "deep nesting": b"[" * 60_000,
    "deep objects": b'{"a":' * 10_000,
    "a number without end": b'{"models": [], "x": ' + b"9" * 60_000 + b"}",
    "a number that no field of Ollama's could hold": b'{"models": [], "x": ' + b"9" * 21 + b"}",
    "a control character": b'{"models": [], "x": "\x00"}',
    "single quotes": b"{'models': []}",
}
NO_SIZES: list[Any] = [None, -1, True, False, 1.0, 1.5, "1", [], {}, 1 << 63, 10**19, -(1 << 70)]


@pytest.fixture(scope="module")
def process() -> Iterator[OllamaProcess]:
    with OllamaProcess(0, "--llama-server", "127.0.0.1:0") as process:
        yield process


@pytest.fixture
def ollama(process: OllamaProcess) -> Iterator[OllamaProcess]:
    process.models([model("llama3.2:latest")])
    process.slots(0, 1)
    yield process
    for path in ("*", *PATHS):
        process.fault(path, None)


@pytest.fixture
def api(ollama: OllamaProcess) -> OllamaApi:
    return OllamaApi(OllamaUrl("127.0.0.1", ollama.port))


def ask(ollama: OllamaProcess, path: str, seconds: float = 5.0) -> Any:
    """The question that goes to `path`."""
    api = OllamaApi(OllamaUrl("127.0.0.1", ollama.port), seconds)
    if path == "/slots":
        return slots(ollama.slots_port, seconds)
    if path == "/api/show":
        return api.weights_of("llama3.2:latest")
    return api.version() if path == "/api/version" else api.models()


def refusal(ollama: OllamaProcess, path: str, seconds: float = 5.0) -> OllamaError:
    """The error that the question ends with; no text of an answer is in it, or in what lies behind it."""
    with pytest.raises(OllamaError) as caught:
        ask(ollama, path, seconds)
    error: Optional[BaseException] = caught.value
    port = ollama.slots_port if path == "/slots" else ollama.port
    assert str(error).startswith(f"http://127.0.0.1:{port}{path}")
    while error is not None:
        assert PROMPT not in f"{error}{vars(error)}{error.args}"
        assert not getattr(error, "doc", None)
        error = error.__cause__ or error.__context__
    return caught.value


# -- good answers ------------------------------------------------------------------------------------------------------


def test_the_version_comes_with_the_round_trip(api: OllamaApi) -> None:
    """/api/version says which Ollama it is, and how long it took to say so."""
    version, seconds = api.version()
    assert version == VERSION
    assert 0 < seconds < 5


def test_a_loaded_model_has_all_that_ollama_tells(api: OllamaApi) -> None:
    """Sizes, placement, context, expiry in Unix seconds and the details that name the model."""
    expires = datetime(2318, 12, 1, 9, 11, 12, 123456, timezone.utc).timestamp()
    (found,) = api.models()
    assert found.expires_timestamp_seconds == pytest.approx(expires, abs=1e-4)
    assert found == Model(
        name="llama3.2:latest",
        digest="a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72",
        family="llama",
        parameter_size="3.2B",
        quantization="Q4_K_M",
        size_bytes=4 * GIB,
        vram_bytes=4 * GIB,
        gpu_ratio=1.0,
        context_length=4096,
        expires_timestamp_seconds=found.expires_timestamp_seconds,
    )


def test_models_come_in_ollamas_order(ollama: OllamaProcess, api: OllamaApi) -> None:
    """Ollama sorts them by expiry, and so they stay."""
    names = ["z:1", "a:2", "m:3"]
    ollama.models([model(name) for name in names])
    assert [found.name for found in api.models()] == names


def test_nothing_loaded_is_no_model(ollama: OllamaProcess, api: OllamaApi) -> None:
    """An empty list is a good answer."""
    ollama.models([])
    assert api.models() == ()


@pytest.mark.parametrize(
    ("size", "vram", "ratio"),
    [(4, 4, 1.0), (4, 1, 0.25), (4, 0, 0.0), (4, 5, 1.0), (0, 0, None), (0, 7, None)],
)
def test_the_share_on_gpus_is_of_the_whole_model(
    size: int, vram: int, ratio: Optional[float]
) -> None:
    """It is never more than 1, and nothing where there is no size yet."""
    (found,) = models_in({"models": [model("x", size, vram)]})
    assert (found.size_bytes, found.vram_bytes, found.gpu_ratio) == (size, vram, ratio)


def test_entries_of_one_name_are_one_model(ollama: OllamaProcess, api: OllamaApi) -> None:
    """A model that was made anew beside its old self is one series, and its part on the CPU is not lost."""
    old = model("a:1", 4 * GIB, 4 * GIB, digest="first", context_length=1024)
    ollama.models([old, model("b:1"), model("a:1", 4 * GIB, 0, digest="second")])
    first, second = api.models()
    assert (first.name, second.name) == ("a:1", "b:1")
    assert (first.size_bytes, first.vram_bytes, first.gpu_ratio) == (8 * GIB, 4 * GIB, 0.5)
    assert (first.digest, first.context_length) == ("first", 1024)


@pytest.mark.parametrize(
    ("change", "attribute"),
    [
        ({"digest": None}, "digest"),
        ({"digest": 7}, "digest"),
        ({"digest": ""}, "digest"),
        ({"details": {"family": ["llama"]}}, "family"),
        ({"details": {"family": "a\nb"}}, "family"),
        ({"details": {"parameter_size": 3.2}}, "parameter_size"),
        ({"details": {"quantization_level": "\ud800"}}, "quantization"),
        ({"details": None}, "family"),
        ({"details": "llama"}, "family"),
        ({"context_length": None}, "context_length"),
        ({"context_length": 0}, "context_length"),
        ({"context_length": True}, "context_length"),
        ({"context_length": 4096.0}, "context_length"),
        ({"context_length": "4096"}, "context_length"),
        ({"context_length": -1}, "context_length"),
        ({"expires_at": None}, "expires_timestamp_seconds"),
        ({"expires_at": "soon"}, "expires_timestamp_seconds"),
        ({"expires_at": 1700000000}, "expires_timestamp_seconds"),
        ({"expires_at": "0001-01-01T00:00:00Z"}, "expires_timestamp_seconds"),
    ],
)
def test_what_does_not_matter_may_be_missing_or_wrong(
    ollama: OllamaProcess, api: OllamaApi, change: dict[str, Any], attribute: str
) -> None:
    """It is not reported then, and the model is."""
    ollama.models([{**model("x"), **change}])
    (found,) = api.models()
    assert found.name == "x"
    assert getattr(found, attribute) is None


def test_a_model_may_have_no_more_than_what_matters() -> None:
    """Name and sizes are enough."""
    (found,) = models_in({"models": [{"name": "x", "size": 2, "size_vram": 1}]})
    assert (found.name, found.size_bytes, found.vram_bytes, found.gpu_ratio) == ("x", 2, 1, 0.5)
    assert (found.digest, found.family, found.context_length) == (None, None, None)


def test_details_are_cut(ollama: OllamaProcess, api: OllamaApi) -> None:
    """A label has 128 characters at most."""
    ollama.models([model("x", details={"family": "f" * 1000}, digest="d" * 129)])
    (found,) = api.models()
    assert (found.family, found.digest) == ("f" * 128, "d" * 128)


# -- bad answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "models",
    [
        *(None, {}, "x", 7, True, [None], [[]], ["x"], [7], [{}]),
        [{"name": "x", "size": 1}],
        [{"name": "x", "size_vram": 1}],
        [{"size": 1, "size_vram": 1}],
        *([model(name)] for name in ("", "n" * 257, "a\nb", "a\0", "\ud800", "\x7f", "\u2028")),
        *([{**model("x"), "name": name}] for name in (None, 7, ["x"], True)),
        *([{**model("x"), "size": size}] for size in NO_SIZES),
        *([{**model("x"), "size_vram": size}] for size in NO_SIZES),
        [model("fine"), {**model("x"), "size": -1}],
        [model(f"m:{number}") for number in range(MOST_MODELS + 1)],
    ],
)
def test_a_list_of_models_that_makes_no_sense_is_refused_whole(
    ollama: OllamaProcess, models: Any
) -> None:
    """null, a missing key, a negative size, a wrong type: not half a list, for what is left out would look idle."""
    ollama.fault("/api/ps", "body", body=json.dumps({"models": models}).encode())
    assert isinstance(refusal(ollama, "/api/ps"), OllamaAnswer)


def test_as_many_models_as_can_be_are_read(ollama: OllamaProcess, api: OllamaApi) -> None:
    """256 of them with long names and large sizes fit into the limits."""
    ollama.models([model(f"{number:0256}", (1 << 63) - 1, 0) for number in range(MOST_MODELS)])
    assert len(api.models()) == MOST_MODELS


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "document", ["{}", "[]", "null", "7", '"x"', "[null]", '[[{"is_processing": true}]]', "[true]"]
)
def test_json_of_another_kind_is_refused(ollama: OllamaProcess, path: str, document: str) -> None:
    """What another program answers at this path is not Ollama's."""
    ollama.fault(path, "body", body=document.encode())
    assert isinstance(refusal(ollama, path), OllamaAnswer)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_refused(ollama: OllamaProcess, path: str, body: bytes) -> None:
    """Invalid UTF-8, NaN, a nesting without end: an answer that is none, and nothing of it in the error."""
    ollama.fault(path, "body", body=body)
    error = refusal(ollama, path)
    assert isinstance(error, OllamaAnswer)
    assert str(error).endswith("answered with what is no JSON")


@pytest.mark.parametrize("version", [None, 7, "", ["0.1"], "0.1\n", "\ud800", "v" * 129, True])
def test_a_version_is_a_short_text(ollama: OllamaProcess, version: Any) -> None:
    """It is a label: whatever else comes is not Ollama's."""
    ollama.fault("/api/version", "body", body=json.dumps({"version": version}).encode())
    assert isinstance(refusal(ollama, "/api/version"), OllamaAnswer)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", [302, 400, 403, 404, 500, 501, 503])
def test_another_status_is_an_answer_with_that_status(
    ollama: OllamaProcess, path: str, status: int
) -> None:
    """The status is in the error, what Ollama said to it is not."""
    ollama.fault(path, "status", status=status)
    error = refusal(ollama, path)
    assert isinstance(error, OllamaAnswer)
    assert error.status == status
    assert f"answered {status}" in str(error)


@pytest.mark.parametrize("path", PATHS)
def test_a_redirect_is_not_followed(ollama: OllamaProcess, path: str) -> None:
    """Ollama never sends one: what does is not Ollama."""
    ollama.fault(path, "redirect")
    error = refusal(ollama, path)
    assert isinstance(error, OllamaAnswer)
    assert error.status == 302


@pytest.mark.parametrize("path", PATHS[:3])
def test_ten_megabytes_are_refused(ollama: OllamaProcess, path: str) -> None:
    """They are not even received."""
    ollama.fault(path, "huge")
    error = refusal(ollama, path)
    assert isinstance(error, OllamaAnswer)
    assert "answered more than" in str(error)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["hang", "trickle", "close"])
def test_no_answer_is_a_server_that_is_down(ollama: OllamaProcess, path: str, kind: str) -> None:
    """A hang, an answer that trickles forever and a closed connection end within the time that was given."""
    ollama.fault(path, kind)
    error = refusal(ollama, path, seconds=5.0 if kind == "close" else 0.3)
    assert isinstance(error, OllamaDown)
    assert "no answer within 0.3 s" in str(error) or kind == "close"


def test_a_process_that_is_killed_refuses_until_it_is_back() -> None:
    """OllamaDown while it is away; the same object goes on as soon as it is there again."""
    with OllamaProcess() as ollama:
        api = OllamaApi(OllamaUrl("127.0.0.1", ollama.port))
        ollama.kill()
        with pytest.raises(OllamaDown, match="connection refused"):
            api.models()
        ollama.restart()
        assert len(api.models()) == 1


# -- weights -----------------------------------------------------------------------------------------------------------


def test_the_weights_of_a_model_are_the_blob_of_its_from(
    ollama: OllamaProcess, api: OllamaApi
) -> None:
    """Each model's own, and nothing else of an answer that is full of prompts."""
    ollama.models([model("a:1", weights="ab" * 32), model("b:1"), model('"ö', weights="cd" * 32)])
    assert api.weights_of("a:1") == f"sha256-{'ab' * 32}"
    assert api.weights_of("b:1") == f"sha256-{WEIGHTS}"
    assert api.weights_of('"ö') == f"sha256-{'cd' * 32}"


def test_a_model_that_ollama_does_not_have_is_a_404(api: OllamaApi) -> None:
    """It was unloaded and removed meanwhile, say."""
    with pytest.raises(OllamaAnswer) as caught:
        api.weights_of("gone:1")
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("modelfile", "found"),
    [
        (f"FROM /models/blobs/sha256-{WEIGHTS}", True),
        (f"FROM /models/blobs/sha256-{WEIGHTS}\r\nSYSTEM x", True),
        (f"# FROM a:1\n\nFROM /with a space/sha256-{WEIGHTS}  \n", True),
        (f"from\tC:\\blobs\\sha256-{WEIGHTS}\n", True),
        (f"FROM @sha256:{WEIGHTS}\n", True),
        (f'FROM "/models/sha256:{WEIGHTS}"\n', True),
        (f"FROM sha256-{WEIGHTS}\nFROM /models/blobs/sha256-{'0' * 64}\n", True),
        ("", False),
        ("\n\n", False),
        ("FROM", False),
        ("FROM ", False),
        ("FROM llama3.2:latest\n", False),
        (f"# FROM /models/blobs/sha256-{WEIGHTS}\n", False),
        (f"SYSTEM FROM /models/blobs/sha256-{WEIGHTS}\n", False),
        (f"FROM llama3.2\nSYSTEM '''\nFROM /models/blobs/sha256-{WEIGHTS}\n'''", False),
        (f"FROM /models/blobs/sha256-{WEIGHTS[1:]}\n", False),
        (f"FROM /models/blobs/sha256-{WEIGHTS.upper()}\n", False),
        (f"FROM /models/blobs/md5-{WEIGHTS}\n", False),
        (f"FROM /models/blobs/sha256-{WEIGHTS}/x\n", False),
    ],
)
def test_the_first_from_counts(modelfile: str, found: bool) -> None:
    """With either spelling of the digest; a comment, a later FROM and a prompt name nothing."""
    assert weights_in({"modelfile": modelfile}) == (f"sha256-{WEIGHTS}" if found else None)


@pytest.mark.parametrize("document", [None, [], {}, {"modelfile": None}, {"modelfile": ["FROM x"]}])
def test_without_a_modelfile_it_is_no_answer(document: Any) -> None:
    """Ollama always has one."""
    with pytest.raises(OllamaAnswer):
        weights_in(document)


# -- slots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("busy", "total"), [(0, 1), (1, 1), (3, 8), (200, 200)])
def test_busy_slots_are_counted(ollama: OllamaProcess, busy: int, total: int) -> None:
    """Of each entry only its own is_processing counts, whatever its prompt and its inner objects hold."""
    ollama.slots(busy, total)
    assert slots(ollama.slots_port) == (busy, total)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{}],
        [{"id": 0}],
        [{"is_processing": None}],
        [{"is_processing": 1}],
        [{"is_processing": "true"}],
        [{"is_processing": {"is_processing": True}}],
        [{"is_processing": [True]}],
        [{"is_processing": True}, [True]],
        [{"is_processing": True}, True],
        {"is_processing": True},
        [{"prompt": PROMPT, "inner": {"is_processing": True}}],
    ],
)
def test_slots_that_do_not_say_whether_they_work_are_refused(
    ollama: OllamaProcess, entries: Any
) -> None:
    """Each entry has to be an object with a boolean: a part of them would be too small a count."""
    ollama.fault("/slots", "body", body=json.dumps(entries).encode())
    assert isinstance(refusal(ollama, "/slots"), OllamaAnswer)


def test_prompts_of_megabytes_are_passed_over(ollama: OllamaProcess) -> None:
    """Slots that tell their prompts are read up to 16 MB."""
    entries = [{"is_processing": True, "prompt": "x" * 5_000_000}, {"is_processing": False}]
    ollama.fault("/slots", "body", body=json.dumps(entries).encode())
    assert slots(ollama.slots_port) == (1, 2)
    ollama.fault("/slots", "body", body=json.dumps(entries * 4).encode())
    assert "answered more than" in str(refusal(ollama, "/slots"))


def test_the_last_of_two_keys_counts(ollama: OllamaProcess) -> None:
    """As with every parser of JSON."""
    body = b'[{"is_processing": true, "is_processing": false}]'
    ollama.fault("/slots", "body", body=body)
    assert slots(ollama.slots_port) == (0, 1)


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2026-11-20T10:11:12Z", 1795169472.0),
        ("2026-11-20t10:11:12z", 1795169472.0),
        ("2026-11-20 11:11:12+01:00", 1795169472.0),
        ("2026-11-20T04:41:12.5-05:30", 1795169472.5),
        ("2026-11-20T10:11:12.123456789Z", 1795169472.123456789),
        ("2024-02-29T00:00:00Z", 1709164800.0),
        ("2024-03-01T00:00:00Z", 1709251200.0),
        ("2000-02-29T23:59:59Z", 951868799.0),
        ("2318-12-01T10:11:12.123456789+01:00", 11010676272.123457),
        ("9999-12-31T23:59:59Z", 253402300799.0),
    ],
)
def test_a_time_of_rfc_3339_is_unix_seconds(text: str, seconds: float) -> None:
    """With up to nine digits of fraction and any offset."""
    assert unix_seconds(text) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        *(None, 7, True, [], {}, "", "now", "2026-11-20", "2026-11-20T10:11:12", "x" * 25),
        *("0001-01-01T00:00:00Z", "0001-01-01T00:53:28+00:53", "1969-12-31T23:59:59Z"),
        *("2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-11-31T00:00:00Z"),
        *("2026-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "2026-11-00T00:00:00Z"),
        *("2026-11-20T24:00:00Z", "2026-11-20T10:60:00Z", "2026-11-20T10:11:60Z"),
        *("2026-11-20T10:11:12.Z", "2026-11-20T10:11:12.1234567890Z", "2026-11-20T10:11:12.5"),
        *("2026-11-20T10:11:12+0100", "2026-11-20T10:11:12+24:00", "2026-11-20T10:11:12+01:60"),
        *("2026-11-20T10:11:12+1:00", "2026-11-20T10:11:12*01:00", "2026-11-20T10:11:12ZZ"),
        *("2026-11-20X10:11:12Z", "2026/11/20T10:11:12Z", "2026-11-20T10-11-12Z"),
        *("+026-11-20T10:11:12Z", "2026-11-20T10:11:1 Z", "２０26-11-20T10:11:12Z"),  # noqa: RUF001
        *(" 2026-11-20T10:11:12Z", "2026-11-20T10:11:12Z ", "2026-11-20T10:11:12.1e5Z"),
    ],
)
def test_what_is_no_time_is_none(text: Any) -> None:
    """And Go's zero time, which was never set."""
    assert unix_seconds(text) is None


@given(
    st.datetimes(
        min_value=datetime(1970, 1, 2),
        max_value=datetime(9999, 12, 30),
        timezones=st.integers(-1439, 1439).map(lambda n: timezone(timedelta(minutes=n))),
    )
)
def test_any_time_is_read_as_the_standard_library_does(time: datetime) -> None:
    """Every day of every year, leap years included, at every offset."""
    assert unix_seconds(time.isoformat()) == pytest.approx(time.timestamp(), abs=1e-4)


# -- anything ----------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
GOOD_SIZES = st.integers(0, (1 << 63) - 1)
ENTRIES = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"]) | st.text() | ANYTHING},
    optional={
        "size": GOOD_SIZES | ANYTHING,
        "size_vram": GOOD_SIZES | ANYTHING,
        "digest": ANYTHING,
        "details": st.fixed_dictionaries({}, optional={"family": ANYTHING}) | ANYTHING,
        "context_length": ANYTHING,
        "expires_at": st.text(st.sampled_from("0123456789-T:.Z+ "), max_size=36) | ANYTHING,
    },
)
DOCUMENTS = st.fixed_dictionaries({"models": st.lists(ENTRIES | ANYTHING) | ANYTHING}) | ANYTHING


def check(models: tuple[Model, ...]) -> None:
    """What holds of models that were taken for good."""
    assert len({found.name for found in models}) == len(models) <= MOST_MODELS
    for found in models:
        assert 0 < len(found.name) <= 256
        assert found.size_bytes >= 0
        assert found.vram_bytes >= 0
        assert found.gpu_ratio is None or 0 <= found.gpu_ratio <= 1
        for text in (found.name, found.digest, found.family, found.parameter_size):
            assert text is None or (text.isprintable() and text.encode("utf-8"))
        for number in (found.context_length, found.expires_timestamp_seconds):
            assert number is None or 0 <= number + 86400 < 1 << 64


@settings(deadline=None)
@given(DOCUMENTS)
def test_any_document_is_models_or_an_answer_that_makes_no_sense(document: Any) -> None:
    """Whatever JSON /api/ps may answer, nothing else comes of it."""
    try:
        check(models_in(document))
    except OllamaAnswer:
        pass


@settings(deadline=None)
@given(st.lists(ENTRIES.filter(lambda entry: len(entry) > 2), min_size=1, max_size=5))
def test_good_entries_are_models_whatever_else_they_hold(entries: list[dict[str, Any]]) -> None:
    """With a name and sizes that are right, no other key can make an answer a bad one."""
    good = [
        {**entry, "name": f"m{number}", "size": number, "size_vram": 0}
        for number, entry in enumerate(entries)
    ]
    models = models_in({"models": good})
    check(models)
    assert [found.name for found in models] == [entry["name"] for entry in good]


@settings(deadline=None)
@given(st.fixed_dictionaries({"modelfile": st.text() | ANYTHING}) | ANYTHING)
def test_any_description_names_weights_or_none(document: Any) -> None:
    """Whatever JSON /api/show may answer, it is a digest, None or an OllamaAnswer."""
    try:
        found = weights_in(document)
    except OllamaAnswer:
        return
    assert found is None or found.startswith("sha256-")


@settings(max_examples=50, deadline=None)
@given(body=st.binary() | DOCUMENTS.map(lambda document: json.dumps(document).encode()))
@pytest.mark.parametrize("path", PATHS)
def test_any_body_is_a_value_or_an_error_of_ours(
    process: OllamaProcess, path: str, body: bytes
) -> None:
    """Over the wire as well, on each path."""
    process.fault(path, "body", body=body)
    try:
        ask(process, path)
    except OllamaAnswer:
        pass
    finally:
        process.fault(path, None)
