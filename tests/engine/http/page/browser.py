# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium that looks at the page, and does what a person would do on it."""

from __future__ import annotations

import base64
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--lang=en",
    "--hide-scrollbars",
)
# Looks that the page takes by itself happen when a test calls `tick`, so that no test waits and none is surprised.
_TICK = "window.setInterval = (call) => { window.tick = call; };"


class Page:
    """The page in the browser.

    Args:
        driver: Selenium's.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get_log("browser")
        self.driver.get(url)
        self.settle()

    def __getitem__(self, name: str) -> Any:
        """The element of this id."""
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def text(self, name: str) -> str:
        """The text that a person sees; nothing where it is hidden."""
        return str(self[name].text)

    def click(self, name: str) -> None:
        self[name].click()

    def choose(self, name: str, value: str) -> None:
        Select(self[name]).select_by_value(value)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def rows(self, table: str) -> list[str]:
        """The text of each row that has data."""
        return [" ".join(row.text.split()) for row in self.all(f"#{table} tbody tr")]

    def until(self, holds: Callable[[], Any]) -> Any:
        """Waits for it, through elements that are replaced meanwhile."""

        def look() -> Any:
            with suppress(StaleElementReferenceException):
                return holds()
            return None

        return until(look, every=0.02)

    def until_text(self, name: str, text: str) -> None:
        try:
            self.until(lambda: text in self.text(name))
        except pytest.fail.Exception as error:
            error.add_note(f"#{name} says {self.text(name)!r}, not {text!r}")
            raise

    def tick(self) -> None:
        """Lets the time pass after which the page looks by itself, and waits for the look, if there is one."""
        self.run("window.tick()")
        self.settle()

    def settle(self) -> None:
        """Waits until all looks that were begun have ended."""
        self.until(lambda: self["freshness"].get_attribute("aria-busy") == "false")

    def scrapes(self, text: str) -> None:
        """From now on ``/metrics`` answers so, as far as the page can tell."""
        self.run(
            "const real = window.fetch; const text = arguments[0];"
            "window.fetch = (url, how) => url === 'metrics' ? Promise.resolve(new Response(text)) : real(url, how)",
            text,
        )

    def refresh(self) -> None:
        """Clicks `Refresh` and waits for the look that follows."""
        self.click("refresh")
        self.settle()

    @property
    def complaints(self) -> list[str]:
        """What the browser logged about the page since it was opened, such as broken rules of its policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    @contextmanager
    def resized(self, width: int, height: int, *, dark: bool = False) -> Iterator[None]:
        """As on a screen of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        yield
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def picture(self, file: Path) -> None:
        """All of the page as PNG."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        options = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
        file.write_bytes(base64.b64decode(data))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _TICK})
        yield Page(driver)
    finally:
        driver.quit()
