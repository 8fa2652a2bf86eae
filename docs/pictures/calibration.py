"""Take the picture of the how-to page from a real report: its verdict and some figures, as a browser shows them.

Usage: ``.venv/bin/python docs/pictures/calibration.py calibrations/1/report.html`` (needs chromium and chromium-driver)
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver

SHOWN = ("#verdict", "#figure-oscillator-adev", "#figure-sum-nmse")
WIDTH, SCALE, GAP = 1060, 1.25, 30


def take(report: Path, target: Path) -> None:
    """Photograph the chosen parts of the report, one below the other."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        screen = {"width": WIDTH, "height": 1600, "deviceScaleFactor": SCALE, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        driver.get(report.resolve().as_uri())
        shots = [
            Image.open(io.BytesIO(driver.find_element("css selector", part).screenshot_as_png)).convert("RGB")
            for part in SHOWN
        ]
    finally:
        driver.quit()
    size = max(shot.width for shot in shots) + 2 * GAP, sum(shot.height + GAP for shot in shots) + GAP
    picture, reached = Image.new("RGB", size, "white"), GAP
    for shot in shots:
        picture.paste(shot, (GAP, reached))
        reached += shot.height + GAP
    picture.quantize(255).save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("give a report")
    take(Path(sys.argv[1]), Path(__file__).with_name("calibration.png"))
