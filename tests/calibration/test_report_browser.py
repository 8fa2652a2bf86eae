"""The report in a real browser: every figure there, nothing asked of a network, no complaint, on a desk and a phone."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parts
import pytest

pytestmark = parts.browser
FIGURES = 21
SIZES = {"desk": (1280, 800), "phone": (400, 800)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "headless=new",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
        f"user-data-dir={profile}",
        *(["no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # A named driver keeps Selenium from looking for one.
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    yield driver
    driver.quit()


@pytest.mark.parametrize("size", SIZES)
def test_the_report_opens_without_complaint(browser: Any, whole_report: Path, size: str) -> None:
    width, height = SIZES[size]
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get_log("performance")  # what came before is not the report's
    browser.get(whole_report.as_uri())
    figures = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.alt.length])"
    )
    assert len(figures) == FIGURES
    assert all(done and wide > 300 and high > 100 and words > 20 for done, wide, high, words in figures)
    seen, page, needed = browser.execute_script(
        "const e = document.documentElement; return [innerWidth, e.clientWidth, e.scrollWidth]"
    )
    assert seen == width and needed <= page
    assert browser.execute_script("return document.compatMode") == "CSS1Compat"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert whole_report.as_uri() in asked
    assert [address for address in asked if not address.startswith(("data:", whole_report.as_uri()))] == []


def test_the_watch_sees_a_page_that_asks_for_more(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><title>a</title><img src='absent.png' alt=''><script>nonsense()</script>")
    browser.get(page.as_uri())
    assert len(browser.get_log("browser")) == 2
    assert any("absent.png" in entry["message"] for entry in browser.get_log("performance"))
