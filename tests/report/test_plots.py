from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dialtune.report import plots

ALLOWED = {"none", "currentColor", *(f"var(--{tone})" for tone in ("muted", "line", "good", "bad", "flat", "page"))}
ROWS = [
    plots.ForestRow("ROUGE-L", 52, 61, 69, "+61 %", "improved"),
    plots.ForestRow("cost in $ and {x_$", -9, -5, -2, "−5 %", "worse"),
    plots.ForestRow("漢字 <b>&", -10, 97, 230, "+97 %", "no difference shown"),
]

STOPS = [
    plots.Stop(0, 0.55, 0.88, "start"), plots.Stop(6, 0.5, 0.3, "refused"), plots.Stop(9, 0.6, 0.2, "passed"),
    plots.Stop(12, 0.68, 0.07, "chosen"),
]  # fmt: skip


def every_plot() -> dict[str, str]:
    return {
        "forest": plots.forest([("Summarize", ROWS), ("Respond $", ROWS)], width=720, title="all <scores> & $x_{"),
        "curves": plots.curves(
            [(step, 3 / step) for step in range(1, 2000)], {"$a_{": [(0, 2.0), (1000, 1.0)]},
            y_label="loss $", title="t", key="a",
        ),
        "frontier": plots.frontier(STOPS, x_label="relevance $", y_label="toxic", title="t", key="c"),
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


def test_a_score_that_rose_tenfold_bends_the_axis_and_leaves_the_others_room() -> None:
    """100 % is 10/9 of a decade wide: +61 % lies at 0.678, +698 % at 10/9 + lg 6.98 = 1.955. Straight: 0.087."""
    rows = [
        plots.ForestRow("BLEU", 118, 698, 1278, "+698 %", "improved"), ROWS[0],
        plots.ForestRow("toxicity", -95, -90, -85, "-90 %", "improved"),
        plots.ForestRow("x", -1, 0, 1, "0 %", "improved"),
    ]  # fmt: skip
    root = ElementTree.fromstring(plots.forest([("a", rows)], width=720, title="t"))
    assert {"\u2212100", "0", "100", "300", "1,000"} <= {text.text for text in root.iter("text")}
    x = [float(use.get("x", "nan")) for use in root.iter("use") if "var(--good)" in (use.get("style") or "")]
    bleu, rouge, toxicity, zero = x
    assert (rouge - zero) / (bleu - zero) == pytest.approx(0.678 / 1.955, abs=0.002)
    assert (zero - toxicity) / (rouge - zero) == pytest.approx(0.9 / 0.61, abs=0.02)
    straight = ElementTree.fromstring(plots.forest([("a", ROWS)], width=720, title="t"))
    assert "1,000" not in {text.text for text in straight.iter("text")}


def test_a_frontier_names_start_and_choice_and_a_single_point_is_drawn() -> None:
    texts = [t.text for t in ElementTree.fromstring(every_plot()["frontier"]).iter("text")]
    assert {"start", "chosen: step 12"} <= set(texts)
    alone = plots.frontier(STOPS[:1], x_label="x", y_label="y", title="t", key="d")
    assert "start" in [t.text for t in ElementTree.fromstring(alone).iter("text")]
