"""Takes docs/images/*.png anew: the live page of a real agent over scripted GPUs and a stand-in for Ollama.

    python tests/screenshots.py [FOLDER]

Needs gcc, Debian's chromium, and from PyPI playwright and pillow. It takes two and a half minutes, for
the page's lines show two.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import ollama_standin
from agent_process import AgentProcess
from browser import CHROMIUM, DESKTOP, PHONE, Tab, browser
from ollama_process import model
from PIL import Image
from ports import free_port
from standin import NvmlStandIn

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LARGEST = 150_000
GIB = 1 << 30
# An address of its own on loopback, so that the page has the name and the port that it has in earnest.
NAME, ADDRESS = "gpu-1:11435", "127.0.0.42:11435"
LIFE_SECONDS, DEGRADED_SECONDS = 122, 20

LLAMA, QWEN = "3f" * 32, "7a" * 32
MODELS = [
    model("llama3.1:70b-instruct-q4_K_M", 50 * GIB, 50 * GIB, weights=LLAMA, context_length=8192,
          details={"family": "llama", "parameter_size": "70.6B", "quantization_level": "Q4_K_M"}),
    model("qwen2.5-coder:32b", 26 * GIB, 26 * GIB, weights=QWEN, context_length=16384,
          details={"family": "qwen2", "parameter_size": "32.8B", "quantization_level": "Q5_K_M"}),
]  # fmt: skip
ON_CPU = model("mixtral:8x22b", 90 * GIB, 60 * GIB, context_length=4096,
               details={"family": "llama", "parameter_size": "141B", "quantization_level": "Q4_0"})  # fmt: skip

# The stand-in with a child for each model, as Ollama has its runners: their command lines name weights
# and a port. It says their process ids.
WITH_RUNNERS = """
import runpy, subprocess, sys
script, slots, *weights = sys.argv[1:]
runners = [subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()",
    "--model", f"/blobs/sha256-{one}", "--port", slots], stdin=subprocess.PIPE) for one in weights]
print(*(one.pid for one in runners), flush=True)
listen = sys.stdin.readline().strip()
sys.argv[1:] = ["--listen", listen, "--llama-server", f"127.0.0.1:{slots}", "--access-log"]
runpy.run_path(script, run_name="__main__")
"""


@contextmanager
def ollama(log: Path) -> Iterator[tuple[str, list[int]]]:
    """A stand-in for Ollama that logs its requests; gives its URL and the process ids of its runners."""
    port = free_port()
    command = [sys.executable, "-c", WITH_RUNNERS, ollama_standin.__file__, str(free_port())]
    with log.open("wb") as stderr, subprocess.Popen(
        [*command, LLAMA, QWEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"127.0.0.1:{port}\n")
            process.stdin.flush()
            pids = [int(pid) for pid in process.stdout.readline().split()]
            while f"Listening on 127.0.0.1:{port}" not in log.read_text():
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", pids
        finally:
            process.kill()


def post(url: str, document: object) -> None:
    """One request whose whole answer is awaited."""
    with urlopen(Request(url, json.dumps(document).encode()), timeout=60) as answer:
        answer.read()


def generate(url: str, ended: threading.Event, number: int) -> None:
    """A user who asks again and again, with pauses."""
    while not ended.wait(2 + number % 3):
        tokens = 40 + 37 * number % 90
        post(f"{url}/api/generate", {"options": {"num_predict": tokens, "pace": 0.05}})


def live(nvml: NvmlStandIn, pids: list[int], second: int) -> None:
    """The GPUs as they are in one second: the first two with a large model, the third with another one."""
    state: dict[str, int | str] = {"count": 4, "gpu.name": "NVIDIA H100 80GB HBM3"}
    shares = {0: (pids[0], 26), 1: (pids[0], 24), 2: (pids[1], 26)}
    for gpu in range(4):
        pid, share = shares.get(gpu, (0, 0))
        wave = 0.5 + 0.5 * math.sin(second / (9 + 2 * gpu) + 2 * gpu)
        jitter = math.sin(second * second * 1.3 + gpu)  # as good as random, and the same each time
        busy = round((30 + 58 * wave) * (0.92 + 0.08 * jitter)) if pid else 0
        state.update({
            f"gpu{gpu}.utilization": busy,
            f"gpu{gpu}.memory_used": (share + (3 if second > 70 and pid else 1)) * GIB,
            f"gpu{gpu}.temperature": 38 + busy // 3,
            f"gpu{gpu}.power_mw": 1000 * (80 + 5 * busy),
            f"gpu{gpu}.processes": f"{pid}:{share * GIB}" if pid else "",
        })  # fmt: skip
    nvml.update(state)


def shrink(image: Path) -> None:
    """To 256 colours, of which it has few more that a person tells apart."""
    with Image.open(image) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(image, optimize=True)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    chromium = shutil.which(CHROMIUM)
    if chromium is None:
        sys.exit(f"{CHROMIUM} is not installed")
    with ExitStack() as stack:
        tmp = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nvml = NvmlStandIn(tmp / "nvml")
        log = tmp / "ollama.log"
        url, pids = stack.enter_context(ollama(log))
        live(nvml, pids, 0)
        post(f"{url}/standin/models", MODELS)
        agent = AgentProcess(
            tmp / "state", "--ollama", url, "--ollama-log", f"file:{log}", "--expected-gpus", "4",
            listen=(ADDRESS,), environment=nvml.environment(),
        )  # fmt: skip
        stack.enter_context(agent)
        ended = threading.Event()
        users = [threading.Thread(target=generate, args=(url, ended, one)) for one in range(5)]
        stack.callback(lambda: [user.join() for user in users])
        stack.callback(ended.set)
        for user in users:
            user.start()
        for second in range(LIFE_SECONDS):
            live(nvml, pids, second)
            post(f"{url}/standin/slots", {"busy": 2 + second // 20 % 3, "total": 4})
            time.sleep(1)

        rules = f"--host-resolver-rules=MAP {NAME.partition(':')[0]} {ADDRESS.partition(':')[0]}"
        tabs = stack.enter_context(browser(chromium, rules))

        def look(size: tuple[int, int], dark: bool = False) -> Tab:
            tab = stack.enter_context(Tab(tabs, f"http://{NAME}/", size, dark))
            tab.wait_for_text("OK", "#verdict-title")
            return tab

        def take(tab: Tab, name: str, whole: bool = True) -> None:
            tab.page.wait_for_timeout(2500)
            image = folder / f"{name}.png"
            tab.page.screenshot(path=image, full_page=whole)
            shrink(image)
            if image.stat().st_size > LARGEST:
                print(f"{image} has {image.stat().st_size} bytes", file=sys.stderr)

        folder.mkdir(parents=True, exist_ok=True)
        dark = look(DESKTOP, dark=True)
        take(look(DESKTOP), "live-page")
        take(look(PHONE), "live-page-phone", whole=False)
        post(f"{url}/standin/models", [*MODELS, ON_CPU])
        nvml.lose(2)
        for second in range(LIFE_SECONDS, LIFE_SECONDS + DEGRADED_SECONDS):
            live(nvml, pids, second)
            nvml.update({"gpu1.temperature": 88, "gpu1.throttle": 0x20})
            time.sleep(1)
        dark.wait_for_text("Degraded", "#verdict-title")
        take(dark, "live-page-degraded")


if __name__ == "__main__":
    main()
