# SPDX-License-Identifier: Apache-2.0
"""The page for people: one static response, made of the files in this folder. It holds no data, so it needs no key."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from fastapi.responses import HTMLResponse

_SCRIPTS = ("elements", "server", "metrics", "figures", "history", "chart", "tables", "swapping", "slots", "main")
"""In this order, since each may use what those before it declare."""


def page() -> HTMLResponse:
    """Response to ``GET /surgery``. Always equal but a new object: middleware may add headers to it."""
    html, headers = _content()
    return HTMLResponse(html, headers=headers)


@cache
def _content() -> tuple[str, dict[str, str]]:
    style, script = _read("page.css"), _script()
    return _read("page.html").replace("{{style}}", style).replace("{{script}}", script), _headers(style, script)


def _script() -> str:
    """All scripts in one, with nothing left in the window's global scope."""
    return '"use strict";\n(() => {\n' + "\n".join(_read(f"{name}.js") for name in _SCRIPTS) + "})();\n"


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _headers(style: str, script: str) -> dict[str, str]:
    """Headers by which nothing runs or shows but the page itself, no other server is asked, and nobody frames it."""
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",  # The empty icon, without which browsers ask the server for one.
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
