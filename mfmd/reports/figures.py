"""Figures as SVG inside a page: small panels that stay readable on a phone, whose colours are the page's own, light or dark.

Every function returns a Figure; its caption says what a point is, and how many there are.
"""

import re
from math import erf
from typing import NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

MOST_POINTS = 1000  # of a parity plot
FARTHEST = 200  # of these, so many are those farthest from the line
MOST_LINE = 400  # points of a line

# Colours that stand for the variables of the page's style sheet.
INK, FAINT = "#0000f0", "#0000f1"
SERIES = [f"#0000e{k}" for k in range(8)]
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "font.family": "sans-serif",
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": FAINT, "grid.color": FAINT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.linewidth": 0.4, "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=SERIES), "lines.linewidth": 1.4, "legend.frameon": False, "legend.fontsize": 8,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


class Figure(NamedTuple):
    """svg : markup; caption : what it shows, in words"""

    svg: Markup
    caption: str


def _draw(caption, plot, height=2.7):
    """The Figure of what plot(axes) draws."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": caption}):
        canvas = Canvas(figsize=(4.0, height), layout="constrained")
        plot(canvas.subplots())
        text = _svg(canvas)
    return Figure(Markup(f'<svg role="img" {text.removeprefix("<svg ")}'), caption)


def _svg(canvas):
    from io import StringIO

    file = StringIO()
    canvas.savefig(file, format="svg", metadata=NO_METADATA)
    text = file.getvalue()
    text = text[text.index("<svg ") :]
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<= )(d|x|y|points|transform)="[^"]*"', lambda part: re.sub(r"\d+\.\d{3,}", _rounded, part[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    for k, color in enumerate(SERIES):
        text = text.replace(color, f"var(--series-{k})")
    return text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")


def _rounded(number):
    return f"{float(number[0]):.2f}"


def _plain(axis):
    """A logarithmic axis with numbers as one writes them."""
    low, high = axis.get_view_interval()
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}") if high < 40 * low else NullFormatter())


def _dots(axes, x, y, color):
    """One path of dots: a hundredth of the bytes of a marker each."""
    vertices = np.repeat(np.stack([x, y], axis=1), 2, axis=0)
    path = Path(vertices, np.tile([Path.MOVETO, Path.LINETO], len(x)))
    path.should_simplify = False
    axes.add_patch(PathPatch(path, fill=False, edgecolor=color, linewidth=2.6, capstyle="round", alpha=0.75))


def lines(what, series, x, y, log=False, level=None, whole=False):
    """Lines of y against x.

    Parameters
    ----------
    what : the caption, to which is added what was thinned
    series : {name: (x, y)}
    x, y : what stands at the axes, with units
    log : of the y axis; whole : x is a number of something
    level : a value at which a horizontal line is drawn, or None
    """
    longest = max(len(values) for _, values in series.values())
    block = -(-longest // MOST_LINE)
    if block > 1:
        what += (
            f" Each point is the mean of {block} lines of the log, of {longest:,} in all; the band goes from their lowest to their highest."
        )

    def plot(axes):
        for (name, (at, values)), color in zip(series.items(), SERIES * len(series), strict=False):
            at, values = np.asarray(at, float), np.asarray(values, float)
            if block > 1:
                starts = np.arange(0, len(values), block)
                sizes = np.diff([*starts, len(values)])
                band = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
                at, values = np.add.reduceat(at, starts) / sizes, np.add.reduceat(values, starts) / sizes
                axes.fill_between(at, *band, color=color, alpha=0.25, linewidth=0)
            axes.plot(at, values, color=color, label=name, marker="o" if len(at) < 8 else "", markersize=3)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
        if log:
            _plain(axes.yaxis)
        else:
            axes.ticklabel_format(useOffset=False)
        if whole:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if len(series) > 1:
            axes.figure.legend(loc="outside upper left")

    return _draw(what, plot)


# What is far outside, from the mildest kind to the worst, and the grade that each begins at (docs/extrapolation.md).
KINDS_OUTSIDE = {0: "within", 64: "surroundings", 128: "neighbours", 192: "distance", 256: "unseen pair"}


def outside(what, time, grade):
    """How far outside of what the model was trained on each look was, and of which kind. time : ps; grade : of Engine.compute"""
    order = np.unique(np.stack([time, grade]), axis=1)
    if len(time) > MOST_POINTS:  # a pixel each
        cells = np.stack([(time - time.min()) / (np.ptp(time) or 1.0) * 250, grade]).round()
        order = np.stack([time, grade])[:, np.unique(cells, axis=1, return_index=True)[1]]
        what += f" {len(time):,} looks; of those that fall on one point one is drawn."

    def plot(axes):
        _dots(axes, *order, SERIES[0])
        top = next((k for k in KINDS_OUTSIDE if k > grade.max()), 320)
        axes.set(xlim=(min(0.0, time.min()), time.max()), ylim=(-8, top), xlabel="time, ps")
        axes.set_yticks([k for k in KINDS_OUTSIDE if k <= top], [name for k, name in KINDS_OUTSIDE.items() if k <= top])

    return _draw(what, plot)


def parity(what, label, prediction, unit):
    """Predictions against labels; of many points the farthest from the line and an even choice of the others."""
    away = np.abs(prediction - label)
    what += f", {len(label):,} points, MAE {1e3 * away.mean():.2f} m{unit}."
    if len(label) > MOST_POINTS:
        order = np.argsort(-away, kind="stable")
        others = np.sort(order[FARTHEST:])
        others = others[np.linspace(0, len(others) - 1, MOST_POINTS - FARTHEST).astype(int)]
        chosen = np.concatenate([others, order[:FARTHEST]])
        what += f" Drawn are {MOST_POINTS:,} of them: the {FARTHEST} farthest from the line, and the others evenly thinned."
        label, prediction = label[chosen], prediction[chosen]

    def plot(axes):
        low, high = min(label.min(), prediction.min()), max(label.max(), prediction.max())
        room = 0.04 * (high - low) or 1.0
        ends = [low - room, high + room]
        axes.plot(ends, ends, color=INK, linewidth=0.8)
        _dots(axes, label, prediction, SERIES[0])
        axes.set(xlim=ends, ylim=ends, xlabel=f"label, {unit}", ylabel=f"model, {unit}", box_aspect=1)
        axes.ticklabel_format(useOffset=False)
        axes.locator_params(nbins=5)

    return _draw(what, plot, height=3.4)


def histogram(what, values, x, y, powers=False):
    """How often which value was met. values : {name: values}; y : what is counted; powers : the values are decimal logarithms of what x says"""

    def plot(axes):
        bins = np.histogram_bin_edges(
            np.concatenate(list(values.values())), bins=min(40, max(8, int(len(next(iter(values.values()))) ** 0.5)))
        )
        for (name, own), color in zip(values.items(), SERIES * len(values), strict=False):
            counts, _ = np.histogram(own, bins)
            axes.stairs(counts, bins, color=color, fill=True, alpha=0.35)
            axes.stairs(counts, bins, color=color, label=name)
        axes.set(xlabel=x, ylabel=y)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.ticklabel_format(useOffset=False)
        axes.locator_params(axis="x", nbins=6)
        if powers:
            low, high = axes.get_xlim()
            axes.set_xticks([np.log10(m * 10.0**k) for k in range(int(low) - 1, int(high) + 2) for m in (1, 3)])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.1g}"))
            axes.set_xlim(low, high)
        if len(values) > 1:
            axes.figure.legend(loc="outside upper left", ncols=4)

    return _draw(what, plot)


def coverage(bars):
    """How many energies err by less than z error bars, against how many normally distributed errors would. bars : {level: (errors, error bars)}"""
    counts = ", ".join(f"{len(error):,} energies of {level}" for level, (error, _) in bars.items())
    what = f"Share of the errors within z error bars, against that of a normal distribution, z from 0 to 3: {counts}. On the line is right, below it bars are too small."

    def plot(axes):
        z = np.linspace(0, 3, 61)
        expected = [erf(k / np.sqrt(2)) for k in z]
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
        for (level, (error, bar)), color in zip(bars.items(), SERIES * len(bars), strict=False):
            axes.plot(expected, [np.mean(np.abs(error) <= k * bar) for k in z], color=color, label=level)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="expected share", ylabel="share found", box_aspect=1)
        axes.legend()

    return _draw(what, plot, height=3.4)
