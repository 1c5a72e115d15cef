"""Debian's Chromium, driven by playwright: a page as a person has it, and all that goes wrong in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = "chromium"
DESKTOP, PHONE = (1280, 900), (360, 740)

# Whatever waits in a page waits a tenth of its time, but for what has to be seen at its own pace.
_HURRY = """
    const later = window.setTimeout, aborting = AbortSignal.timeout.bind(AbortSignal);
    window.setTimeout = (call, pause, ...more) => later(call, pause / 10, ...more);
    AbortSignal.timeout = pause => aborting(pause / 10);
"""
# Before the page's own script: what its Content-Security-Policy refuses.
_WATCH = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", event =>
        window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@contextmanager
def browser(executable: str, *options: str) -> Iterator[Browser]:
    """A headless Chromium, found at `executable`. Raises ImportError without playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # --no-sandbox: it is started by root, in CI at least. The rest keeps it from asking the internet.
        own = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")
        chromium = playwright.chromium.launch(
            executable_path=executable, args=[*own, *options], chromium_sandbox=False
        )
        try:
            yield chromium
        finally:
            chromium.close()


class Tab:
    """A page of an agent, open in a browser context of its own.

    In a `hurried` one its timers run ten times as fast. `console` has what it wrote there and its
    uncaught errors, `requests` every URL that it asked for.
    """

    def __init__(
        self,
        chromium: Browser,
        url: str,
        size: tuple[int, int] = DESKTOP,
        dark: bool = False,
        hurried: bool = False,
        **context: Any,
    ) -> None:
        self._context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            **context,
        )
        self.console: list[str] = []
        self.requests: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.add_init_script(_WATCH + (_HURRY if hurried else ""))
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def text(self, selector: str = "body") -> str:
        """What a person reads there."""
        return self.page.inner_text(selector)

    def wait_for(self, function: str, argument: Any = None, seconds: float = 10.0) -> None:
        """Wait until a JavaScript function of the argument is true.

        An expression will not do: it would have to be evaluated, which the page's policy forbids.
        """
        self.page.wait_for_function(function, arg=argument, timeout=1000 * seconds)

    def wait_for_text(self, text: str, selector: str = "body", seconds: float = 10.0) -> None:
        """Wait until a person reads `text` there, whatever its case and line breaks."""
        self.wait_for(
            "([text, where]) => document.querySelector(where).innerText"
            ".replace(/\\\\s+/g, ' ').toLowerCase().includes(text.toLowerCase())",
            [text, selector],
            seconds,
        )

    def violations(self) -> list[str]:
        """What the page's Content-Security-Policy has refused."""
        found: list[str] = self.page.evaluate("window.violations")
        return found
