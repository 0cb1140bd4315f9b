# SPDX-License-Identifier: Apache-2.0
"""`python -m deploy.demo`: serves a model that loops, asks it, and swaps a patch in after some minutes."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import httpx

from deploy.demo.figures import figures
from deploy.demo.programs import ProgramError, running
from deploy.demo.prometheus import command
from deploy.demo.traffic import traffic
from deploy.monitoring.queries import LOOPS, REQUESTS, ratio, total
from vllm_surgery import SurgeryError
from vllm_surgery.client.client import SurgeryClient

MODEL = "smollm2"
OPTIONS = (
    *("--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"),
    "--no-enable-chunked-prefill",
    *("--kv-cache-memory-bytes", "536870912", "--host", "127.0.0.1"),
)
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
SCRAPE_SECONDS = 5
START_SECONDS = 300


def main() -> int:
    """0: ended by Ctrl-C, or by --stop-after; 1: something didn't come up."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="vllm-surgery-demo-") as folder, ExitStack() as stack:
        try:
            _show(options, Path(folder), stack)
        except KeyboardInterrupt:
            say("ending")
        except (ProgramError, SurgeryError, httpx.HTTPError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def say(text: str) -> None:
    print(f"[demo] {text}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the demo model's folder")
    parser.add_argument("--patch", type=Path, required=True, help="what is swapped in")
    parser.add_argument("--port", type=int, default=8000, help="of the server (default: 8000)")
    parser.add_argument("--prometheus-port", type=int, default=9090, help="default: 9090")
    parser.add_argument("--streams", type=int, default=4, help="requests at a time (default: 4)")
    parser.add_argument("--swap-after", type=float, default=120, metavar="SECONDS", help="default: 120")
    parser.add_argument("--stop-after", type=float, metavar="SECONDS", help="default: at Ctrl-C")
    return parser.parse_args()


def _show(options: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
    url = f"http://127.0.0.1:{options.port}"
    say(f"starting the server without a patch; its log: {folder / 'server.log'}")
    program = str(Path(sys.executable).with_name("vllm-surgery"))
    serve = [program, "serve", str(options.model), *OPTIONS, "--port", str(options.port)]
    named = ("--patch-dir", str(options.patch.absolute().parent))
    stack.enter_context(running([*serve, *named], folder / "server.log", f"{url}/health", START_SECONDS, **ENVIRONMENT))
    _start_prometheus(options, folder, stack)
    _say_where(options, url)
    stack.enter_context(traffic(url, MODEL, options.streams))
    _run(options, url)


def _start_prometheus(options: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
    if shutil.which("prometheus") is None:
        say("no Prometheus here, so there is none to look at; `make system-packages` installs it where it can")
        return
    port = options.prometheus_port
    started = command(folder, f"127.0.0.1:{options.port}", port, SCRAPE_SECONDS)
    stack.enter_context(running(started, folder / "prometheus.log", f"http://127.0.0.1:{port}/-/ready", 30))
    rate = ratio(total("increase", LOOPS, "5m", "patch"), total("increase", REQUESTS, "5m", "patch"))
    say(f"loop rate by patch: http://127.0.0.1:{port}/graph?g0.tab=0&g0.range_input=15m&g0.expr={quote(rate)}")
    say(f"alerts:             http://127.0.0.1:{port}/alerts")


def _say_where(options: argparse.Namespace, url: str) -> None:
    say(f"the server's page:  {url}/surgery")
    say(f"all figures:        {url}/metrics")
    say(f"what is active:     vllm-surgery status --url {url}")
    say(f"a swap back:        vllm-surgery swap none --url {url}")
    say(f"in {options.swap_after:.0f} s {options.patch.name} is swapped in; Ctrl-C ends everything")


def _run(options: argparse.Namespace, url: str) -> None:
    began, swapped = time.monotonic(), False
    while options.stop_after is None or time.monotonic() - began < options.stop_after:
        time.sleep(min(15.0, options.swap_after))
        if not swapped and time.monotonic() - began >= options.swap_after:
            report = SurgeryClient(url).swap([options.patch.stem])
            swapped = True
            say(f"swapped in {report.id} in {report.milliseconds.total:.0f} ms")
        say(figures(url))


if __name__ == "__main__":
    sys.exit(main())
