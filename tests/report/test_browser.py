"""The page in a real browser: Chromium, three widths, both colour schemes, axe-core, and with JavaScript off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dialtune.report.build import build_report

CHROMIUM = os.environ.get("DIALTUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (360, 768, 1440)
SCHEMES = ("light", "dark")

# An element whose box ends to the right of the window, unless something around it scrolls or hides what is in it.
_OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  for (const one of document.querySelectorAll('body *')) {
    if (one.getBoundingClientRect().right <= wide + 1) continue;
    let inside = false;
    for (let up = one.parentElement; up; up = up.parentElement)
      inside = inside || ['auto', 'scroll', 'hidden'].includes(getComputedStyle(up).overflowX);
    if (!inside) found.push(one.tagName + ' ' + one.textContent.slice(0, 40));
  }
  return {scroll: document.documentElement.scrollWidth - wide, found};
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium found: apt install chromium, or name one in DIALTUNE_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, builders: Any) -> Path:
    """All three jobs and an alarm: everything that a page can show, one dialogue at each end."""
    folder = tmp_path_factory.mktemp("demo")
    builders.write_job(folder / "summarize")
    builders.write_job(folder / "respond")
    builders.write_detox(folder / "detoxify", jury=builders.detox_jury(alarm=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dialtune.report.build._SHOWN", (1,))
        return build_report(folder)


class Visit:
    """An open page, what it asked for, and what it complained about."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str, **settings: Any) -> None:
        viewport = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True, **settings)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())


@pytest.fixture
def visit(browser: Any, page_file: Path) -> Iterator[Any]:
    opened: list[Visit] = []

    def go(width: int, scheme: str, **settings: Any) -> Visit:
        opened.append(Visit(browser, page_file, width, scheme, **settings))
        return opened[-1]

    yield go
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_asks_for_nothing_and_is_accessible(visit: Any, page_file: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
    seen = visit(width, scheme)
    layout = seen.page.evaluate(_OVERFLOW)
    assert layout == {"scroll": 0, "found": []}
    assert seen.requests == [page_file.as_uri()]
    assert seen.complaints == []
    seen.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert seen.page.evaluate(_OVERFLOW)["scroll"] == 0
    seen.page.evaluate(axe.AXE_SCRIPT)  # into the page from outside: its own policy allows no script
    found = seen.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 20
    told = [(one["id"], one["impact"], one["nodes"][0]["html"][:120]) for one in found["violations"]]
    assert [line for line in told if line[1] in ("serious", "critical")] == []
    assert told == []


def test_the_first_screen_of_a_desk_holds_every_sentence_and_the_plot(visit: Any) -> None:
    page = visit(1440, "light").page
    bottoms = page.evaluate(
        "[...document.querySelectorAll('.say, header svg')].filter(one => one.getClientRects().length)"
        ".map(one => [one.tagName, one.getBoundingClientRect().bottom, one.getBoundingClientRect().top])"
    )
    sentences = [bottom for tag, bottom, _ in bottoms if tag != "svg"]
    assert len(sentences) == 3
    assert max(sentences) < 900
    assert min(top for tag, _, top in bottoms if tag == "svg") < 700


def test_a_phone_sees_the_first_sentence_without_scrolling(visit: Any) -> None:
    page = visit(360, "dark").page
    assert page.evaluate("document.querySelector('.say').getBoundingClientRect().bottom") < 640


def test_dark_is_dark_and_light_is_light(visit: Any) -> None:
    shades = {}
    for scheme in SCHEMES:
        colour = visit(768, scheme).page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))
    assert shades["dark"] < 150 < 600 < shades["light"]


def test_without_javascript_nothing_is_missing(visit: Any) -> None:
    page = visit(768, "light", java_script_enabled=False).page
    text = page.locator("main").inner_text()
    assert "Commands to reproduce" in text
    page.locator("summary").first.click()
    assert page.locator("details dl").first.is_visible()


def test_marked_differences_can_be_seen_without_colour(visit: Any) -> None:
    page = visit(1440, "light").page
    drawn = page.evaluate(
        "['del', 'ins'].map(tag => getComputedStyle(document.querySelector('article ' + tag)).textDecorationLine)"
    )
    assert drawn == ["line-through", "underline"]


def test_scrolling_tables_can_be_reached_by_keyboard(visit: Any) -> None:
    page = visit(360, "light").page
    scrolling = page.locator(".scroll").evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth)"
        ".map(one => [one.tabIndex, one.getAttribute('role'), Boolean(one.getAttribute('aria-label'))])"
    )
    assert len(scrolling) >= 3
    assert all(one == [0, "region", True] for one in scrolling)
