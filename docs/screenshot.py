"""Takes docs/report.png, the first screen of a report in the system's Chromium: python docs/screenshot.py REPORT."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1440, 700
TARGET = Path(__file__).resolve().parent / "report.png"


def main() -> int:
    """0 once the picture is taken."""
    file, browser = Path(sys.argv[1]).resolve(), shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = opened.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light").new_page()
        page.goto(file.as_uri())
        page.screenshot(path=TARGET)
        opened.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
