"""Colours and type of the figures, by day and by night: agents have a palette, all else a few named styles."""

from __future__ import annotations

from typing import Any

from l2d.rejector.report.cast import MOST_COLOURED, Cast

#: Okabe and Ito's palette, told apart with any colour vision; by night the dark ones are lifted. Then Tol's "muted".
PALETTES = {
    "light": [
        "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7A5195",
        "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#AA4499", "#44AA99", "#999933",
    ],
    "dark": [
        "#3C96D6", "#E69F00", "#1FB58A", "#D991B8", "#8CCBF0", "#E5702A", "#D6C83C", "#A583C4",
        "#7B6FD0", "#A8DDF5", "#3FA35F", "#E5D88F", "#DD8694", "#C56BB4", "#66C2B2", "#B5B550",
    ],
}  # fmt: skip
_DARK_TEXT_ON = {1, 3, 4, 6, 9, 11, 14, 15}  # palette slots on which black is easier to read than white, in both

SCHEMES = {
    "light": {"ink": "#1b1f24", "soft": "#5b6570", "line": "#d4d9df", "paper": "#ffffff"},
    "dark": {"ink": "#e8ecf1", "soft": "#a3adb8", "line": "#39424c", "paper": "#12161b"},
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


OTHERS = "#8b949e"  # agents that are not named, by day and by night


def text_on(slot: str) -> str:
    """Colour of text on the colour of an agent, see :meth:`l2d.rejector.report.cast.Cast.slot`."""
    return "#111111" if slot == "others" or int(slot) % 16 in _DARK_TEXT_ON else "#ffffff"


def ranges(agents: Cast) -> str:
    """The range of the config that has the colours of these agents."""
    return "ordinal" if agents.others else "category"


def config(scheme: str, *, font: str = FONT) -> dict[str, Any]:
    """Vega-Lite's ``config`` for the scheme ``light`` or ``dark``."""
    look = SCHEMES[scheme]
    ink, soft, line = look["ink"], look["soft"], look["line"]
    axis: dict[str, Any] = {
        "labelColor": soft,
        "titleColor": ink,
        "gridColor": line,
        "domainColor": line,
        "tickColor": line,
    }
    axis |= {"labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": "normal", "labelLimit": 190}
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "range": {"category": PALETTES[scheme], "ordinal": [*PALETTES[scheme][: MOST_COLOURED - 1], OTHERS]},
        "axis": axis,
        "axisX": {"grid": False},
        "axisY": {"domain": False, "ticks": False},
        "title": {"color": ink, "anchor": "start", "fontSize": 12.5, "fontWeight": 600, "offset": 8},
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "title": None, "symbolStrokeWidth": 0},
        "text": {"color": soft, "fontSize": 11},
        "style": {
            "system": {"color": ink},
            "system-line": {"color": ink, "strokeWidth": 2.2},
            "system-band": {"color": ink, "opacity": 0.14},
            "system-point": {"color": ink, "opacity": 1, "size": 60},
            "other": {"color": soft, "opacity": 1, "size": 45},
            "other-line": {"color": soft, "strokeWidth": 1.2, "opacity": 0.8},
            "agent-point": {"opacity": 1, "size": 75},
            "whisker": {"color": ink, "strokeWidth": 1.6, "opacity": 0.75},
            "bound": {"color": soft, "strokeWidth": 1.4},
            "hollow": {"color": soft, "opacity": 1, "strokeWidth": 1.6, "size": 55},
            "zero": {"color": soft, "strokeWidth": 1},
            "label": {"color": soft, "fontSize": 11},
            "strong-label": {"color": ink, "fontSize": 11},
        },
    }
