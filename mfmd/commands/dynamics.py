"""mfmd md: molecular dynamics in OpenMM."""

from pathlib import Path

from mfmd import Error, progress
from mfmd.commands import results


def run(arguments):
    with progress.task("loading OpenMM"):
        from mfmd import md

    options = {key: value for key, value in vars(arguments).items() if key not in ("command", "quiet", "json")}
    if given := options.pop("term", None):
        terms = [term.partition("=")[::2] for term in given]
        try:
            options["terms"] = tuple((head, float(weight)) for head, weight in terms)
        except ValueError:
            raise Error(f"--term is {' '.join(given)}; write head=weight, such as --term cctz=1 --term gfn2=-1") from None
    settings = md.Settings(**options)
    summary = md.run(settings)
    parts = [f"{summary['steps']} steps"]
    if summary["ns_per_day"]:
        parts.append(f"{summary['ns_per_day']:.0f} ns/day")
    if summary.get("temperature"):
        parts.append(f"mean temperature {summary['temperature']:.0f} K")
    if summary.get("drift") is not None and settings.ensemble == "nve":
        parts.append(f"drift of the total energy {summary['drift']:+.4f} meV/atom/ps")
    if summary["far"]:
        parts.append(f"far outside of training at {summary['far']} of {summary['looks']} looks")
    print(f"{settings.out}: {', '.join(parts)}\nreport: {Path(settings.out) / 'report.html'}")
    return {"out": settings.out, **summary, "files": results.files(settings.out)}
