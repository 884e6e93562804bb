"""Rows to SVG text through matplotlib: forest plot, curves, histogram; no clock, no font files, colours named by CSS.

Every colour is drawn as a stand-in and replaced by a CSS variable of the page, so one drawing serves light and dark.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from xml.etree import ElementTree

from markupsafe import Markup

from dialtune.results import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, GOOD, BAD, FLAT, PAGE = (f"#01010{digit}" for digit in range(1, 8))  # stand-ins, never shown
RUNS = tuple(f"#02020{digit}" for digit in range(1, 7))  # of runs side by side; more cannot be told apart
_CSS = {
    INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)", GOOD: "var(--good)", BAD: "var(--bad)",
    FLAT: "var(--flat)", PAGE: "var(--page)", **{color: f"var(--run{n})" for n, color in enumerate(RUNS, start=1)},
}  # fmt: skip
_MARKS: Mapping[Verdict, tuple[str, str, str]] = {  # marker, edge, face: shape tells as much as colour
    "improved": ("o", GOOD, GOOD),
    "worse": ("D", BAD, BAD),
    "no difference shown": ("o", FLAT, PAGE),
}
Point = tuple[float, float]
_POINTS = 400  # of a curve; more cannot be seen
SMOOTHED_FROM = 30  # points
BENT_FROM = 300  # percent: beyond, a forest plot is linear up to 100 and logarithmic from there
_BINS = 21  # odd: the middle one holds "no change"


_Drawing = TypeVar("_Drawing", bound=Callable[..., str])


def _settled(draw: _Drawing) -> _Drawing:
    """Draw under matplotlib's own defaults, whatever the user's matplotlibrc says; text stays text."""

    @functools.wraps(draw)
    def drawn(*args: Any, **keywords: Any) -> str:
        import matplotlib

        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's browser has fonts
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(
                {"svg.fonttype": "none", "font.size": 12, "text.usetex": False, "text.color": INK}
            )
            return draw(*args, **keywords)

    return cast(_Drawing, drawn)


@dataclass(frozen=True, slots=True)
class Plot:
    """An SVG element and the words under it; `narrow` is the same drawn for a phone, if that needs another drawing."""

    svg: Markup
    caption: str
    narrow: Markup | None = None


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One line of a forest plot; numbers in percent, `text` is what stands at its right."""

    label: str
    low: float
    middle: float
    high: float
    text: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Run:
    """One run among others: (epoch, value) of its training and of its validation."""

    label: str
    training: Sequence[Point]
    validation: Sequence[Point]


@_settled
def forest(groups: Sequence[tuple[str, Sequence[ForestRow]]], *, width: int, title: str) -> str:
    """Relative changes with intervals around a zero line, one block per job; `width` in CSS pixels.

    One score that rose tenfold would press all others to the line, so then the axis bends at +-100 %.
    """
    n_lines = sum(len(rows) + (len(groups) > 1) for _, rows in groups)
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    narrow = width < 500
    room = 16 if narrow else 30  # characters of a label
    longest = max(len(row.label[:room]) for _, rows in groups for row in rows)
    left = 18 + 7.6 * longest
    right = 10 if narrow else 20 + 7.2 * max(len(row.text) for _, rows in groups for row in rows)
    figure, axes = _axes(width, 46 + 20 * n_lines, left=left, right=right)
    y = 0.0
    for group, rows in groups:
        if len(groups) > 1:
            _label(axes, 0, y, _cut(group, 2 * room), x_px=6 - left, weight="bold")
            y += 1
        for row in rows:
            marker, edge, face = _MARKS[row.verdict]
            axes.plot([row.low, row.high], [y, y], color=edge, linewidth=2, solid_capstyle="butt")
            axes.plot(
                [row.middle], [y], marker=marker, color=edge, markerfacecolor=face, markersize=6.5, markeredgewidth=1.6
            )
            _label(axes, 0, y, _cut(row.label, room), x_px=-8, align="right")
            if not narrow:
                _label(axes, 1, y, row.text, x_px=10)
            y += 1
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_ylim(y - 0.4, -0.6)
    axes.set_yticks([])
    axes.margins(x=0.06)
    if max(row.high for _, rows in groups for row in rows) > BENT_FROM:
        axes.set_xscale("symlog", linthresh=100, linscale=1)
        ticks = [tick for tick in (-100, 0, 100, 300, 1000, 3000, 10_000) if not (narrow and tick in (300, 3000))]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}".replace("-", "\u2212")))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9))
    axes.set_xlabel("change from before, %", color=MUTED)
    return _svg(figure, f"forest-{width}", title)


@_settled
def curves(
    every: Sequence[Point], measured: Mapping[str, Sequence[Point]], *, y_label: str, title: str, key: str
) -> str:
    """Values over steps: `every` step's as a faint line under its running mean, `measured` ones as marked points."""
    figure, axes = _axes(360, 220, left=46, right=10, top=24)
    if every:
        smooth = _running_mean(every) if len(every) > SMOOTHED_FROM else every
        if smooth is not every:
            axes.plot(*_columns(every), color=FLAT, linewidth=0.8, alpha=0.45)
        axes.plot(*_columns(smooth), color=FLAT, linewidth=1.6, label="training")
    for place, (name, points) in enumerate(measured.items()):
        style, marker = ("--", "-.", ":", "-")[place % 4], "os^D"[place % 4]
        axes.plot(*_columns(points), color=INK, linestyle=style, marker=marker, markersize=4, linewidth=1.2, label=name)
    axes.set_xlabel("step", color=MUTED)
    _label(axes, 0, 1, y_label, x_px=-40, y_px=12, data_y=False, color=MUTED)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    if measured:
        legend = axes.legend(frameon=False, fontsize=11, labelcolor=INK, loc="best")
        for text in legend.get_texts():
            text.set_parse_math(False)
    return _svg(figure, key, title)


@_settled
def runs(leading: Sequence[Run], others: Sequence[Run], *, width: int, y_label: str, title: str, key: str) -> str:
    """Several runs over epochs: validation as marked lines, the running mean of training thin, a colour a run.

    Args:
        leading: at most len(RUNS), named in the legend.
        others: drawn faint, and named together.
        width: in CSS pixels; narrow ones have their legend below.
        y_label, title, key: as of the other plots.
    """
    n_entries, narrow = len(leading) + bool(others), width < 500
    room = 30 if narrow else 38  # characters of a label
    right = 10 if narrow else 60 + 6.6 * max(len(run.label[:room]) for run in leading)
    bottom = 38 + (24 + 18 * n_entries if narrow else 0)
    figure, axes = _axes(width, 250 + bottom, left=46, right=right, top=24, bottom=bottom)
    for place, run in enumerate([*leading, *others]):
        color = RUNS[place] if place < len(leading) else LINE
        label = _cut(run.label, room) if place < len(leading) else "other runs" if place == len(leading) else None
        above: dict[str, Any] = {"color": color, "zorder": 3 - place / 100}  # the first on top
        smooth = _running_mean(run.training) if len(run.training) > SMOOTHED_FROM else run.training
        axes.plot(*_columns(smooth), linewidth=0.9, alpha=0.75, **above)
        style, marker = ("-", "--", "-.")[place % 3], "os^Dv*"[place % 6]
        axes.plot(
            *_columns(run.validation),
            linestyle=style,
            marker=marker,
            markersize=4.5,
            linewidth=1.5,
            label=label,
            **above,
        )
    axes.set_xlabel("epoch", color=MUTED)
    _label(axes, 0, 1, y_label, x_px=-40, y_px=12, data_y=False, color=MUTED)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    anchor = (0, -52 / 250) if narrow else (1.02, 1.02)  # below the label of the axis, or beside the drawing
    legend = axes.legend(
        frameon=False, fontsize=11, labelcolor=INK, loc="upper left", bbox_to_anchor=anchor, borderaxespad=0.0
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure, key, title)


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    thin = _thinned(points)
    return [x for x, _ in thin], [y for _, y in thin]


StopKind = Literal["start", "refused", "passed", "chosen"]


@dataclass(frozen=True, slots=True)
class Stop:
    """One evaluation on the way of a run: where it stood, and what it is."""

    step: int
    x: float
    y: float
    kind: StopKind


_STOPS: Mapping[StopKind, tuple[str, str, str, float]] = {  # marker, edge, face, size
    "start": ("s", INK, PAGE, 8),
    "refused": ("X", BAD, BAD, 8),
    "passed": ("o", FLAT, FLAT, 6),
    "chosen": ("*", GOOD, GOOD, 15),
}


@_settled
def frontier(stops: Sequence[Stop], *, x_label: str, y_label: str, title: str, key: str) -> str:
    """The way of a run through two qualities, in the order of its steps; start and choice are named."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(360, 260, left=46, right=24, top=24)
    axes.plot([stop.x for stop in stops], [stop.y for stop in stops], color=MUTED, linewidth=0.9, linestyle=":")
    for stop in stops:
        marker, edge, face, size = _STOPS[stop.kind]
        axes.plot(
            [stop.x], [stop.y], marker=marker, color=edge, markerfacecolor=face, markersize=size, markeredgewidth=1.4
        )
        if stop.kind in ("start", "chosen"):
            named, up = ("start", 8) if stop.kind == "start" else (f"chosen: step {stop.step:,}", -15)
            left_half = stop.x < (min(s.x for s in stops) + max(s.x for s in stops)) / 2
            align, aside = ("left", 9) if left_half or len(stops) == 1 else ("right", -9)
            place: dict[str, Any] = {"textcoords": "offset points", "horizontalalignment": align, "parse_math": False}
            axes.annotate(named, (stop.x, stop.y), (aside, up), **place)
    axes.margins(0.14)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(x_label, color=MUTED, parse_math=False)
    _label(axes, 0, 1, y_label, x_px=-40, y_px=12, data_y=False, color=MUTED)
    axes.grid(color=LINE, linewidth=0.8)
    return _svg(figure, key, title)


@_settled
def histogram(changes: Sequence[float], *, higher_is_better: bool, x_label: str, title: str, key: str) -> str:
    """How many dialogues changed by how much; bins are symmetric around no change, the mean is marked."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(360, 220, left=46, right=10, top=24)
    reach = max((abs(change) for change in changes), default=0.0) or 1.0
    width = 2 * reach / _BINS
    held = [0] * _BINS
    for change in changes:
        held[min(_BINS - 1, int((change + reach) / width))] += 1
    middles = [-reach + (place + 0.5) * width for place in range(_BINS)]
    signs = [
        0 if place == _BINS // 2 else 1 if (middle > 0) == higher_is_better else -1
        for place, middle in enumerate(middles)
    ]
    colors = [{1: GOOD, 0: FLAT, -1: BAD}[sign] for sign in signs]
    axes.bar(middles, held, width=width * 0.9, color=colors)
    axes.axvline(0, color=INK, linewidth=1)
    mean = sum(changes) / len(changes) if changes else 0.0
    axes.axvline(mean, color=INK, linewidth=1.4, linestyle=(0, (3, 2)))
    top = max([*held, 1])
    axes.set_ylim(0, top * 1.12)
    _label(axes, 0, 1, "dialogues", x_px=-40, y_px=12, data_y=False, color=MUTED)
    axes.set_xlabel(x_label, color=MUTED, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return _svg(figure, key, title)


def _axes(width: int, height: int, *, left: float, right: float, top: int = 8, bottom: int = 38) -> tuple[Figure, Axes]:
    """A figure of CSS pixels (72 per matplotlib inch here) with a quiet frame; margins in pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, length=3, labelsize=12)
    axes.patch.set_visible(False)
    return figure, axes


def _label(axes: Axes, x: float, y: float, text: str, **place: Any) -> None:
    """Data as plain text, never as mathematics; x in parts of the axes, `x_px` and `y_px` to the right and up of it."""
    data_y, align = place.pop("data_y", True), place.pop("align", "left")
    axes.annotate(
        text,
        (x, y),
        xycoords=axes.get_yaxis_transform() if data_y else "axes fraction",
        xytext=(place.pop("x_px", 0), place.pop("y_px", 0)),
        textcoords="offset points",
        horizontalalignment=align,
        verticalalignment="center_baseline" if data_y else "baseline",
        annotation_clip=False,
        parse_math=False,
        **place,
    )


def _cut(label: str, room: int) -> str:
    return label if len(label) <= room else label[: room - 1] + "…"


def _running_mean(points: Sequence[Point]) -> list[Point]:
    """The mean of the last twentieth of all points, at least 5 of them, at each point."""
    window = max(5, len(points) // 20)
    kept = [points[max(0, end - window) : end] for end in range(1, len(points) + 1)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in kept]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most about `_POINTS` of them, evenly spaced, the last one included."""
    stride = -(-len(points) // _POINTS) or 1
    return list(points[:-1:stride]) + list(points[-1:])


def _svg(figure: Figure, key: str, title: str) -> str:
    """The figure as an SVG element for an HTML page; `key` is unique on the page and keeps its ids apart."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = f"dialtune-{key}"
    file = io.BytesIO()
    figure.savefig(
        file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"), None)
    )
    root = ElementTree.fromstring(file.getvalue())  # drops the prolog and every comment
    referred = set(re.findall(r"#([mp][0-9a-f]{10})", file.getvalue().decode()))
    _strip(root, referred)
    width, height = root.get("viewBox", "0 0 0 0").split()[2:]
    root.attrib = {
        "viewBox": f"0 0 {width} {height}",
        "width": width,
        "height": height,
        "role": "img",
        "aria-label": title,
    }
    heading = ElementTree.Element("title")
    heading.text = title
    root.insert(0, heading)
    return ElementTree.tostring(root, encoding="unicode")


def _strip(element: ElementTree.Element, referred: set[str]) -> None:
    """Make one element and all below fit into HTML: no namespaces, no page-wide styles, only ids that are used."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    for name in ("style", "metadata"):
        for child in [child for child in element if child.tag.rpartition("}")[2] == name]:
            element.remove(child)
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    if attributes.get("id") not in referred:
        attributes.pop("id", None)
    if "style" in attributes:
        attributes["style"] = _style(attributes["style"])
    if "d" in attributes:
        attributes["d"] = re.sub(
            r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}", " ".join(attributes["d"].split())
        )
    element.attrib = attributes
    if element.tag != "text":
        element.text = None
    for child in element:
        _strip(child, referred)


def _style(style: str) -> str:
    """The declarations with our colours in CSS and without the font family, which is the page's."""
    pairs = [part.split(":", 1) for part in style.split(";") if ":" in part]
    kept = {name.strip(): value.strip() for name, value in pairs if name.strip() != "font-family"}
    return ";".join(f"{name}:{_CSS.get(value, value)}" for name, value in kept.items())
