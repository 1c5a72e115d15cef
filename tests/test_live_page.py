"""The live page in a real Chromium, before a real agent with scripted GPUs and a stand-in for Ollama."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

import pytest
from agent_process import AgentProcess
from browser import CHROMIUM, DESKTOP, PHONE, Tab, browser
from conftest import missing
from ollama_process import OllamaProcess, model
from ports import free_port
from standin import NvmlStandIn
from test_endpoints import Host

pytestmark = [pytest.mark.component, pytest.mark.deploy]

GIB = 1 << 30
MARKUP = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
MODELS = [model("llama3.1:70b", 40 * GIB, 40 * GIB), model(MARKUP)]
GPUS = {
    "count": 2,
    "gpu0.name": "NVIDIA H100",
    "gpu1.name": MARKUP,
    "gpu1.throttle": 4,
    "gpu.power_mw": 300_000,
}
QUICK = ("--interval", "0.2", "--window", "1", "--ollama-interval", "1")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests; each opens tabs of its own in it."""
    executable = shutil.which(CHROMIUM)
    if executable is None:
        missing(CHROMIUM)
    assert executable is not None
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(browser(executable))
        except ImportError:
            missing("playwright")
        yield opened


Open = Callable[..., Tab]


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Open]:
    """Open the page of an agent (Tab's arguments) and wait until it shows a verdict."""
    with ExitStack() as stack:

        def open_tab(agent: AgentProcess, verdict: str = "", path: str = "/", **more: Any) -> Tab:
            url = f"http://127.0.0.1:{agent.port}{path}"
            tab = stack.enter_context(Tab(chromium, url, **more))
            if verdict:
                tab.wait_for_text(verdict, "#verdict-title")
            return tab

        yield open_tab


@pytest.fixture
def ollama() -> Iterator[OllamaProcess]:
    """A stand-in for Ollama with two models, one of them with a hostile name."""
    with OllamaProcess() as process:
        process.models(MODELS)
        yield process


@pytest.fixture
def agent(
    start_agent: Callable[..., AgentProcess], nvml: NvmlStandIn, ollama: OllamaProcess
) -> AgentProcess:
    """An agent of a host with two GPUs, one of them with a hostile name, and that Ollama."""
    nvml.update(GPUS)
    return whole(start_agent(*QUICK, "--ollama", ollama.url, environment=nvml.environment()))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """The same for those tests that leave everything as it is."""
    if not NvmlStandIn.available():
        missing("gcc")
    folder = tmp_path_factory.mktemp("calm")
    nvml = NvmlStandIn(folder / "nvml")
    nvml.update(GPUS)
    with OllamaProcess() as ollama:
        ollama.models(MODELS)
        options = (*QUICK, "--ollama", ollama.url)
        with AgentProcess(folder / "state", *options, environment=nvml.environment()) as agent:
            yield whole(agent)


def whole(agent: AgentProcess) -> AgentProcess:
    """The agent, once it has read all that there is."""
    agent.wait_until(lambda d: len(d["gpus"]) == 2 and len(d["ollama"]["models"]) == 2)
    return agent


def clean(tab: Tab, agent: AgentProcess) -> None:
    """Nothing on the console, nothing refused by the policy, nothing asked for but of the agent."""
    assert tab.console == []
    assert tab.violations() == []
    own = f"http://127.0.0.1:{agent.port}/"
    assert all(url.startswith((own, "data:")) for url in tab.requests), tab.requests
    assert not tab.page.evaluate("window.hacked")


def shown(tab: Tab, agent: AgentProcess) -> dict[str, Any]:
    """A document of the agent's that the page shows from now on, whatever time it takes to read the page."""
    document: dict[str, Any] = agent.metrics()
    tab.page.route("**/metrics?*", answering(json.dumps(document)))
    tab.wait_for_text(f"has answered {document['agent']['requests_total']} requests", "#agent")
    return document


def update(tab: Tab) -> None:
    """Wait until the page has shown another document."""
    before = tab.text("#agent")
    tab.wait_for("text => document.getElementById('agent').innerText !== text", before)


def answering(body: str) -> Callable[[Any], None]:
    """What answers a request in the agent's place."""

    def answer(route: Any) -> None:
        route.fulfill(status=200, body=body)

    return answer


def card(tab: Tab, name: str) -> str:
    """The text of the card with that title, in one line."""
    where = f".panel:has(h3:text-is('{name}'))"
    return re.sub(r"\s+", " ", tab.page.locator(where).first.inner_text())


def test_the_numbers_are_those_of_metrics(calm: AgentProcess, open_page: Open) -> None:
    """Weight and its parts, CPU, RAM, GPUs and models: as in the document that the page was given."""
    tab = open_page(calm, "OK")
    document = shown(tab, calm)
    text = {name: card(tab, name) for name in ("CPU", "RAM", "GPU 0", "GPU 1")}
    weight = tab.text(".weight")
    assert weight.startswith(f"Weight\n\n{document['weight']:g}\n")
    values = re.findall(r"\n([0-9.]+)(?=\n)", weight.partition("request\n")[2])
    assert values == [f"{value:g}" for value in document["weight_components"].values()]
    assert f"{document['window']['cpu_mean_percent']:.1f} % mean of 1 s" in text["CPU"]
    assert f"{document['instant']['ram_percent']:.1f} %" in text["RAM"]
    for gpu in document["gpus"]:
        told = text[f"GPU {gpu['index']}"]
        assert f"{gpu['utilization_percent']:.1f} %" in told
        assert f"{gpu['memory_percent']:.1f} %" in told
        assert f"{gpu['temperature_c']} °C" in told
        assert f"{gpu['power_draw_w']:.0f} of {gpu['power_limit_w']:.0f} W" in told
    assert "throttled: power cap" in text["GPU 1"].lower()
    assert "throttled" not in text["GPU 0"].lower()
    assert "llama3.1:70b" in tab.text("#models")
    rtt_ms = (
        document["ollama"]["rtt_ms"] + 1e-9
    )  # of two that are as near the page takes the larger one
    assert f"answers in {rtt_ms:.1f} ms" in tab.text("#ollama-said")
    assert "2 GPUs, all answer" in tab.text("#gpus-said")
    asked = {url.rpartition("/")[2] for url in tab.requests if not url.startswith("data:")}
    assert asked == {"", "metrics?format=json", "history"}
    clean(tab, calm)


def test_names_are_text(calm: AgentProcess, open_page: Open) -> None:
    """Markup in the name of a GPU and of a model is read as it stands, and does nothing."""
    tab = open_page(calm, "OK")
    assert MARKUP in tab.text("#gpus")
    assert MARKUP in tab.text("#models")
    assert tab.page.locator("img").count() == 0
    clean(tab, calm)


def test_nodes_stay(calm: AgentProcess, open_page: Open) -> None:
    """An update changes texts where they are: the cards, the rows and the lines are the same nodes as before."""
    tab = open_page(calm, "OK", hurried=True)
    marked = "#host > *, #gpus > *, #models > *, #parts > *, .chart, dd, #readings tr"
    before = tab.page.evaluate(
        "where => { const all = document.querySelectorAll(where); all.forEach(one => one.marked = 1);"
        " return all.length; }",
        marked,
    )
    assert before > 20
    update(tab)
    update(tab)
    after = tab.page.evaluate(
        "where => [...document.querySelectorAll(where)].map(one => one.marked || 0)", marked
    )
    assert after == [1] * before


def test_lines_have_values(calm: AgentProcess, open_page: Open) -> None:
    """Each line is drawn from /history, and says in words what it shows."""
    tab = open_page(calm, "OK", hurried=True)
    tab.wait_for(
        "() => [...document.querySelectorAll('.chart')]"
        ".every(one => one.lastElementChild.getAttribute('d').length > 20)"
    )
    labels = tab.page.eval_on_selector_all(
        ".chart", "all => all.map(one => one.getAttribute('aria-label'))"
    )
    assert len(labels) == 5  # CPU, RAM, in flight, two GPUs
    assert all(re.match(r"The last two minutes: .*\d", label) for label in labels), labels


def test_a_lost_gpu_shows_within_three_seconds(
    agent: AgentProcess, nvml: NvmlStandIn, open_page: Open
) -> None:
    """Degraded with the reason; the GPU's card stays and says lost, its numbers are unknown; then all is well again."""
    tab = open_page(agent, "OK")
    nvml.lose(1)
    tab.wait_for_text("Degraded", "#verdict-title", seconds=3)
    assert "1 of 2 GPUs lost" in tab.text("#reasons")
    assert "1 of 2 answer" in tab.text("#gpus-said")
    lost = card(tab, "GPU 1")
    assert "lost: it does not answer" in lost
    assert lost.count("unknown") == 5  # utilization, memory, temperature, power, clocks
    assert "unknown" not in card(tab, "GPU 0")
    assert "degraded" in tab.page.title().lower()
    nvml.restore()
    tab.wait_for_text("OK", "#verdict-title")
    assert "lost" not in card(tab, "GPU 1")
    clean(tab, agent)


def test_a_failing_host_looks_failing(
    agent: AgentProcess, nvml: NvmlStandIn, ollama: OllamaProcess, open_page: Open
) -> None:
    """What cannot be known is unknown: neither 0, nor the numbers that were made up for a balancer."""
    tab = open_page(agent, "OK", hurried=True)
    ollama.kill()
    nvml.unload_driver()
    tab.wait_for_text("Failing", "#verdict-title")
    tab.wait_for_text("does NOT answer: ", "#ollama-said")
    tab.wait_for_text("0 of 2 answer", "#gpus-said")
    assert "Made up, so that no request comes here" in tab.text("#weight-note")
    assert tab.text("#weight") == "500"
    for name in ("GPU 0", "GPU 1"):
        assert card(tab, name).count("unknown") == 5
        assert "0 %" not in card(tab, name).partition("2 min ago")[0]
    assert "unknown" in card(tab, "Requests in flight")
    assert "gets no requests" in tab.text("#meaning").lower()
    clean(tab, agent)


def test_a_drained_host(
    start_agent: Callable[..., AgentProcess], tmp_path: Path, open_page: Open
) -> None:
    """The page says who is to be asked: the reason of the drain, and that nothing new comes."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "drain").write_text(
        json.dumps({"reason": f"new fans {MARKUP}", "since": 1.8e9, "until": None})
    )
    agent = start_agent(*QUICK, "--expected-gpus", "0", state_dir=state)
    tab = open_page(agent, "Draining")
    assert f"drained: new fans {MARKUP}" in tab.text("#reasons")
    assert "(--expected-gpus 0)" in tab.text("#gpus-said")
    assert "(--ollama none)" in tab.text("#ollama-said")
    assert tab.page.locator("#gpus > *").count() == 0
    clean(tab, agent)


@pytest.mark.parametrize("gpus", [1, 8, 16])
def test_any_number_of_gpus(
    start_agent: Callable[..., AgentProcess], nvml: NvmlStandIn, gpus: int, open_page: Open
) -> None:
    """Each has its card, on a desk and on a phone, and nothing is wider than the window."""
    nvml.update(
        {"count": gpus, "gpu.name": "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"}
    )
    agent = start_agent(*QUICK, environment=nvml.environment())
    tab = open_page(agent, "OK")
    tab.wait_for("count => document.querySelectorAll('#gpus > *').length === count", gpus)
    titles = tab.page.locator("#gpus h3").all_inner_texts()
    assert titles == [f"GPU {number}" for number in range(gpus)]
    for width, height in (DESKTOP, PHONE):
        tab.page.set_viewport_size({"width": width, "height": height})
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    clean(tab, agent)


def test_a_phone_needs_no_horizontal_scroll(
    agent: AgentProcess, nvml: NvmlStandIn, open_page: Open
) -> None:
    """At 360 pixels nothing is wider, with everything that can be open open and the longest words there are."""
    nvml.update({"gpu0.name": "W" * 90, "gpu0.throttle": 0xFF, "gpu1.lost": 1})
    tab = open_page(agent, "Degraded", size=PHONE)
    tab.page.click("summary")
    tab.wait_for_text("W" * 90, "#gpus")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_connection_is_lost_and_heals(
    start_agent: Callable[..., AgentProcess], open_page: Open
) -> None:
    """The verdict becomes unknown and the numbers old; with the agent back on its port all heals by itself."""
    address = f"127.0.0.1:{free_port()}"
    options = (*QUICK, "--expected-gpus", "0")
    agent = start_agent(*options, listen=(address,))
    tab = open_page(agent, "OK", hurried=True)
    agent.close()
    tab.wait_for_text("Unknown", "#verdict-title")
    assert "Connection lost: the agent cannot be reached" in tab.text("#meaning")
    assert "ago, was “OK”" in tab.text("#known")
    assert "no answer for" in tab.text("#age")
    assert tab.page.title().startswith("Unknown")
    pale = "getComputedStyle(document.querySelector('.live')).opacity < 0.9"
    assert tab.page.evaluate(pale)
    start_agent(*options, listen=(address,))
    tab.wait_for_text("OK", "#verdict-title")
    assert "live, data" in tab.text("#age")
    assert tab.text("#known") == ""
    assert not tab.page.evaluate(pale)
    # What Chromium itself says of requests that fail.
    assert all("ERR_CONNECTION_REFUSED" in line for line in tab.console), tab.console


def test_an_agent_that_hangs_is_a_lost_connection(
    start_agent: Callable[..., AgentProcess], open_page: Open
) -> None:
    """Who accepts and never answers is given four seconds."""
    agent = start_agent(*QUICK, "--expected-gpus", "0")
    tab = open_page(agent, "OK", hurried=True)
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        tab.wait_for_text("does not answer within 4 s", "#meaning")
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    tab.wait_for_text("OK", "#verdict-title")


def test_what_is_not_the_agent_is_not_believed(calm: AgentProcess, open_page: Open) -> None:
    """An answer without a verdict, such as a proxy's, takes the page's away; a history that is missing does not."""
    tab = open_page(calm, "OK", hurried=True)
    tab.page.route("**/history", answering("<html>"))
    update(tab)
    tab.wait_for_text("CPU", "#host")
    assert tab.text("#verdict-title") == "OK"
    for body in ("<html>502</html>", "[]", "null", '{"error": "no", "status": 500}'):
        tab.page.route("**/metrics?*", answering(body))
        tab.wait_for_text("what answers there is not the agent", "#meaning")
        tab.page.unroute("**/metrics?*")
        tab.wait_for_text("OK", "#verdict-title")


def test_an_agent_that_fails_itself(
    calm: AgentProcess, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short document of an agent that cannot render is shown as failing, all else as unknown."""
    broken = Host()
    monkeypatch.setattr(broken.endpoints, "document", None)
    short = broken.endpoints.render(("metrics", "json", 15.0)).body.decode()
    tab = open_page(calm, "OK", hurried=True)
    tab.page.route("**/metrics?*", answering(short))
    tab.wait_for_text("Failing", "#verdict-title")
    assert "the agent itself fails" in tab.text("#reasons")
    assert card(tab, "CPU").startswith("CPU unknown")
    assert tab.text("#gpus-said") == tab.text("#ollama-said") == "unknown"
    clean(tab, calm)


def luminance(colour: str) -> float:
    """WCAG 2.1's relative luminance of a colour as getComputedStyle gives it."""
    channels = [int(one) / 255 for one in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


CONTRAST = """() => {
    const behind = node => {
        const colour = getComputedStyle(node).backgroundColor;
        return node.parentElement && /, 0\\)$/.test(colour) ? behind(node.parentElement) : colour;
    };
    const spoken = node => [...node.childNodes].some(one => one.nodeType === 3 && one.data.trim());
    return [...document.querySelectorAll('body *')]
        .filter(one => one.checkVisibility() && spoken(one))
        .map(one => [one.textContent.trim().slice(0, 40), getComputedStyle(one).color, behind(one)]);
}"""


def test_every_text_has_contrast(agent: AgentProcess, nvml: NvmlStandIn, open_page: Open) -> None:
    """In the light and the dark scheme alike each text stands out by WCAG's 4.5 to 1."""
    nvml.lose(0)
    tab = open_page(agent, "Degraded")
    tab.page.click("summary")
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        found = tab.page.evaluate(CONTRAST)
        assert len(found) > 60
        for text, ink, paper in found:
            shade, light = sorted((luminance(ink), luminance(paper)))
            assert (light + 0.05) / (shade + 0.05) >= 4.5, (scheme, text, ink, paper)
        page = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (luminance(page) < 0.1) is (scheme == "dark")


def test_who_cannot_see_is_told(calm: AgentProcess, open_page: Open) -> None:
    """One heading of the first level, sections with headings, and the verdict is announced when it changes."""
    tab = open_page(calm, "OK")
    assert tab.page.get_by_role("heading", level=1).count() == 1
    names = tab.page.get_by_role("heading", level=2).all_inner_texts()
    assert [name.split()[0] for name in names] == ["OK", "Host", "GPUs", "Ollama"]
    assert tab.page.locator("[aria-live=polite] #verdict-title").count() == 1
    assert tab.page.locator("[aria-live] #age").count() == 0  # it would be read aloud each second


def test_without_scripts_the_page_says_what_to_do(calm: AgentProcess, open_page: Open) -> None:
    """A browser without JavaScript gets a pointer to curl and to the document."""
    tab = open_page(calm, java_script_enabled=False)
    assert "curl" in tab.text("main")
    assert tab.page.locator("noscript a").get_attribute("href") == "metrics?format=json"


def test_a_hidden_tab_asks_less(calm: AgentProcess, open_page: Open) -> None:
    """While nobody can see it the next question comes after 15 s, and at once when the tab is looked at again."""
    tab = open_page(calm, "OK")
    pauses = """
        window.pauses = [];
        const real = window.setTimeout;
        window.setTimeout = (call, pause) => { window.pauses.push(pause); return real(call, pause); };
        Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true });
        window.away = true;
    """
    tab.page.evaluate(f"() => {{ {pauses} }}")
    tab.wait_for("() => window.pauses.some(pause => pause > 10000)")
    asked = len(tab.requests)
    tab.page.evaluate(
        "() => { window.away = false; document.dispatchEvent(new Event('visibilitychange')); }"
    )
    deadline = time.monotonic() + 5
    while len(tab.requests) == asked and time.monotonic() < deadline:
        tab.page.wait_for_timeout(20)
    assert len(tab.requests) > asked


def test_metrics_leads_a_browser_to_the_same_page(calm: AgentProcess, open_page: Open) -> None:
    """Behind nginx on Ollama's port the page is at /metrics, and works from there."""
    tab = open_page(calm, "OK", path="/metrics")
    assert "GPU 0" in tab.text("#gpus")
    clean(tab, calm)
