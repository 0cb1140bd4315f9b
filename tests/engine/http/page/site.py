# SPDX-License-Identifier: Apache-2.0
"""A small web site with the plugin in it: its own routes and metrics and vLLM's guard, with a stand-in for the engine."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.routing import Mount
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from tests.engine.http.test_endpoint import FakeSwapper, Server
from vllm_surgery.engine.http import endpoint
from vllm_surgery.engine.http.routes import SERVICE
from vllm_surgery.engine.metrics import Metrics
from vllm_surgery.engine.monitoring.metrics import LoopMetrics
from vllm_surgery.engine.monitoring.request import WatchedAnswer
from vllm_surgery.loops import Loop
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

    from tests.engine.requests.test_swapper import Slots
    from vllm_surgery.loops import Kind


class CountingSwapper(FakeSwapper):
    """Also counts how often it is looked at.

    Attributes:
        looks: that many.
    """

    def __init__(self, active: str = "none") -> None:
        super().__init__(active)
        self.looks = 0
        self.swap_error: Exception | None = None

    async def status(self) -> Any:
        self.looks += 1
        return await super().status()

    async def swap(self, patches: Any, **options: Any) -> Any:
        if self.swap_error:
            self.calls.append((patches.id, options["mode"], options["if_epoch"]))
            raise self.swap_error
        return await super().swap(patches, **options)


class Site:
    """The site.

    Attributes:
        url: where it is.
        swapper: the stand-in for the engine.
        loops: where answers are counted.
        registry: of all metrics that it shows.
        folder: of its patches.
        slots: the stand-in in its place, for a server with slots.
    """

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self.swapper = CountingSwapper()
        self.slots: Slots | None = None
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.loops = LoopMetrics(self.metrics, "served")
        self.folder = folder / "patches"
        self.model = folder / "model"
        for made in (self.folder, self.model):
            made.mkdir()
        config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 30}
        (self.model / "config.json").write_text(json.dumps(config))

    def add_patch(self, data: dict[str, Any], file: str = "") -> str:
        """Writes a patch into the folder; gives its id."""
        (self.folder / f"{file or data['name']}.json").write_text(json.dumps(data))
        return Patch.from_data(data).id

    def answers(self, patch: str, number: int, *kinds: Kind, tokens: int = 100) -> None:
        """Counts answers that all looped in these ways, for half of their tokens."""
        self.loops.open(patch)
        for _ in range(number):
            found = tuple((Loop(kind, tokens // 2, 2, 5.0, tokens, "terminal"), patch) for kind in kinds)
            self.loops.spent(patch, tokens, 0.001)
            self.loops.ended(
                WatchedAnswer("stop", patch, tokens, found, {(kind, patch): tokens // 2 for kind in kinds})
            )

    @contextmanager
    def running(
        self, monkeypatch: pytest.MonkeyPatch, *, key: str | None = None, root_path: str = "", **settings: Any
    ) -> Iterator[Site]:
        """Answers requests meanwhile."""
        monkeypatch.setattr(endpoint, "process_metrics", lambda: self.metrics)
        monkeypatch.delenv("VLLM_API_KEY", raising=False)
        keys = [key] if key else None
        server = Server(self.model, self.swapper, {"patch_dirs": [str(self.folder)], **settings}, api_key=keys)
        server.plugin.attach_router(server.app)
        server.app.mount("/metrics", make_asgi_app(registry=self.registry))
        if key:
            server.app.add_middleware(AuthenticationMiddleware, tokens=[key])
        asyncio.run(server.plugin.init_state(server.engine, server.app.state, server.args))
        if self.slots:
            service = getattr(server.app.state, SERVICE)
            service.swapper = service.slots = self.slots.swapper
        with _served(Starlette(routes=[Mount(root_path, server.app)])) as address:
            self.url = f"{address}{root_path}/surgery"
            yield self


@contextmanager
def _served(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = server.force_exit = True
    thread.join()
