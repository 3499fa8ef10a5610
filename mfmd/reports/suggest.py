"""The page of `mfmd suggest`."""

import numpy as np

from mfmd.reports import drawing, figures, page, tables

DRAWN = 6  # structures, the first that were chosen


def write(path, model, choice, summary, timed, told):
    """Write the page of a suggest.choice.Choice.

    Parameters
    ----------
    path : of the page; model : of the model file
    summary : of suggest.written; timed : costs are CPU-seconds
    told : sentences of notes and warnings
    """
    bar, levels = summary["error_bar"], summary["levels"]
    spent = sum(own["cpu_seconds"] for own in levels.values()) if timed else None
    page.write(
        path,
        "suggest.html",
        title=f"Labels that are worth most for {choice.levels[-1]}",
        model=str(model),
        facts={
            "labels": len(choice.picks),
            "structures": len({id(pick.structure) for pick in choice.picks}),
            **({"CPU time": page.duration(spent)} if timed else {}),
            **({f"mean error bar {when}, meV": 1e3 * bar[when] for when in ("before", "after")} if bar else {}),
            "variance that is left, %": 100 * summary["variance_left"],
        },
        sentences=sentences(summary),
        head=["level", "learned before", "chosen", *_if(timed, "CPU time"), "halvings of the variance", *_if(timed, "halvings an hour")],
        levels=[_row(level, choice.learned.get(level, 0), own, timed) for level, own in levels.items()],
        figure=[_figure(choice, timed)],
        drawn=[_drawn(pick) for pick in choice.picks[:DRAWN]],
        told=told,
    )


def sentences(summary):
    """What is chosen and expected, in words."""
    out = []
    for level, own in summary["levels"].items():
        cost = (
            ""
            if own["cpu_seconds"] is None
            else f", {page.duration(own['cpu_seconds'])} of CPU time, {own['halvings_per_hour']:.3g} halvings of the variance an hour"
        )
        out.append(f"{level}: {own['labels']} labels{cost}")
    left = (
        f"{100 * summary['variance_left']:.2g} % of the predicted variance of energies and forces of {summary['targets']:,} targets is left"
    )
    if bar := summary["error_bar"]:
        out.append(f"mean error bar {1e3 * bar['before']:.1f} meV before and {1e3 * bar['after']:.1f} meV after; {left}")
    else:
        out.append(f"{left}; how large errors are in meV the labels do not say yet")
    if sketch := summary["sketch"]:
        out.append(f"products of gradients are of sketches of {sketch['width']} numbers, give or take {100 * sketch['error']:.1f} %")
    if before := summary["before"]:
        out.append(tables.foreseen(before))
    return out


def _if(timed, *cells):
    return cells if timed else ()


def _row(level, learned, own, timed):
    cost, gain = _if(timed, page.duration(own["cpu_seconds"] or 0)), _if(timed, own["halvings_per_hour"])
    return level, learned, own["labels"], *cost, own["halvings"], *gain


def _figure(choice, timed):
    """What is left of the variance along the choice, a line a level."""
    at = np.cumsum([pick.seconds for pick in choice.picks]) / (3600 if timed else 1)
    left = np.array([100 * pick.left for pick in choice.picks])
    names = np.array([pick.level for pick in choice.picks])
    series = {level: (at[names == level], left[names == level]) for level in dict.fromkeys(names)}
    what = "What is left of the predicted variance after each label, by the level of the label."
    return figures.lines(what, series, "CPU time, h" if timed else "labels", "variance that is left, %", log=True)


def _drawn(pick):
    s = pick.structure
    svg, shown = drawing.draw(s.numbers, s.positions, s.cell, s.pbc)
    part = f"; drawn are {shown} of {len(s.numbers)} atoms" if shown < len(s.numbers) else ""
    bar = "" if pick.error is None else f", error bar {1e3 * pick.error:.0f} meV"
    return figures.Figure(svg, f"{pick.level}: {drawing.formula(s.numbers)} ({s.source}){bar}{part}")
