from __future__ import annotations

import re
from xml.etree import ElementTree

from dialtune.report import plots

ALLOWED = {"none", "currentColor", *(f"var(--{tone})" for tone in ("muted", "line", "good", "bad", "flat", "page"))}
ROWS = [
    plots.ForestRow("ROUGE-L", 52, 61, 69, "+61 %", "improved"),
    plots.ForestRow("cost in $ and {x_$", -9, -5, -2, "−5 %", "worse"),
    plots.ForestRow("漢字 <b>&", -10, 97, 230, "+97 %", "no difference shown"),
]


def every_plot() -> dict[str, str]:
    return {
        "forest": plots.forest([("Summarize", ROWS), ("Respond $", ROWS)], width=720, title="all <scores> & $x_{"),
        "curves": plots.curves(
            [(step, 3 / step) for step in range(1, 2000)], {"$a_{": [(0, 2.0), (1000, 1.0)]},
            y_label="loss $", title="t", key="a",
        ),
        "histogram": plots.histogram([-1, 0, 2, 2.5], higher_is_better=True, x_label="$x_{", title="t", key="b"),
    }  # fmt: skip


def test_each_plot_is_one_svg_element_that_names_itself_and_stays_small() -> None:
    for name, svg in every_plot().items():
        root = ElementTree.fromstring(svg)
        assert root.tag == "svg", name
        assert root.get("role") == "img"
        assert root.get("aria-label") == root.findtext("title")
        assert len(svg) < 40_000, name
        for unwanted in ("http", "<?xml", "<!", "<style", "<metadata", "font-family", "xmlns"):
            assert unwanted not in svg, (name, unwanted)


def test_labels_from_data_are_plain_text_never_mathematics() -> None:
    made = every_plot()
    texts = [element.text for element in ElementTree.fromstring(made["forest"]).iter("text")]
    assert "cost in $ and {x_$" in texts
    assert "漢字 <b>&" in texts
    assert "$a_{" in [element.text for element in ElementTree.fromstring(made["curves"]).iter("text")]


def test_only_css_colours_are_left_so_that_dark_mode_can_change_them() -> None:
    for name, svg in every_plot().items():
        colours = set(re.findall(r"(?:fill|stroke):([^;\"]+)", svg))
        assert colours <= {"none", "currentColor"} | {
            f"var(--{tone})" for tone in ["muted", "line", "good", "bad", "flat", "page"]
        }, name
        assert all("fill:" in (text.get("style") or "") for text in ElementTree.fromstring(svg).iter("text")), name


def test_two_plots_on_a_page_share_no_id_and_every_reference_resolves() -> None:
    page = "".join(
        plots.histogram([1, 2], higher_is_better=True, x_label="x", title="t", key=f"change-{k}") for k in (1, 2)
    )
    ids = re.findall(r' id="([^"]+)"', page)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert ids
    assert len(ids) == len(set(ids))
    assert {a or b for a, b in used} == set(ids)


def test_bars_left_of_zero_are_the_good_ones_when_lower_is_better() -> None:
    for higher, tone in ((True, "bad"), (False, "good")):
        svg = plots.histogram([-5.0] * 3, higher_is_better=higher, x_label="x", title="t", key="a")
        filled = [
            (float(re.findall(r"M (-?[\d.]+)", path.get("d") or "")[0]), path.get("style"))
            for path in ElementTree.fromstring(svg).iter("path")
            if f"fill:var(--{tone})" in (path.get("style") or "")
        ]
        assert filled, higher
        assert min(x for x, _ in filled) < 180


def test_a_skewed_or_empty_distribution_is_drawn_without_a_warning() -> None:
    assert plots.histogram([], higher_is_better=True, x_label="x", title="t", key="a").startswith("<svg")
    assert plots.histogram([0.0] * 9, higher_is_better=True, x_label="x", title="t", key="a").startswith("<svg")
    assert plots.curves([(1, 2.0)], {}, y_label="loss", title="t", key="a").startswith("<svg")
