"""Goes on with the long tests for so long, with that first that is farthest from what is asked, and adds what it finds to figures.json.

python tests/soak/run.py build/soak --minutes 20 [--only relations train …] [--jobs 2]
python tests/soak/run.py build/soak --table     what figures.json says

Models, inputs and runs that are under way stay in build/soak, so that a later part goes on from them. What fails is told in build/soak/found, and the
command ends with 1; what was counted of it begins at zero.
"""

import argparse
import collections
import concurrent.futures
import datetime
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from soak import dynamics, kills, metamorphic  # noqa: E402

from mfmd import lock  # noqa: E402
from mfmd.config import write_json  # noqa: E402

FIGURES = HERE / "figures.json"
ASKED = {
    "relations": 100_000,
    "hosts": 1000,
    "hosts with TorchForce": 1000,
    **dict.fromkeys(kills.KINDS, 100),
    **{name: run.asked for name, run in dynamics.RUNS.items()},
}
SLICE = 300  # s at most, after which another has its turn
VARIABLES = {"OMP_NUM_THREADS": "1", "MKL_CBWR": "AUTO"}


def module(name):
    """Where a kind is."""
    return kills if name in kills.KINDS else dynamics if name in dynamics.RUNS else metamorphic


def possible(name):
    """Whether what it needs is there: packages, and of kills that this is root, who alone may mount a small disk."""
    needs = [dynamics.RUNS[name].needs] if name in dynamics.RUNS else metamorphic.NEEDS.get(name, ())
    return all(importlib.util.find_spec(module) for module in needs) and (name not in kills.KINDS or os.geteuid() == 0)


def turn(folder, name, seed, seconds):
    """(what came of it, seconds), or (None, what went wrong), of a process of its own."""
    begin, words = time.monotonic(), [sys.executable, __file__, folder, "--turn", name, str(seed), str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", env=os.environ | VARIABLES)
    if done.returncode:
        return None, done.stdout[-20000:] + done.stderr[-20000:]
    return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - begin


def added(of, found, seconds):
    """Figures so far, and those of another turn: of a run all of it, as its files say, of anything else what came on top."""
    out = of | {
        "count": found.get("total", of["count"] + found.get("count", 0)),
        "seconds": round(of["seconds"] + seconds),
        "commit": commit(),
    }
    out |= found.get("latest", {}) | {"date": str(datetime.date.today()), "machine": machine()}
    if "sum" in found:
        out["sum"] = dict(collections.Counter(of.get("sum", {})) + collections.Counter(found["sum"]))
    if "most" in found:
        before = of.get("most", {})
        out["most"] = {key: max(before.get(key, 0.0), found["most"].get(key, 0.0)) for key in sorted({*before, *found["most"]})}
    return out


def commit():
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def machine():
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores"


def kept():
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def run(folder, names, minutes, jobs):
    """Those of which something was found."""
    figures = kept()
    for name in names:
        figures.setdefault(name, {"count": 0, "seconds": 0, "turns": 0, "found": 0})
    if all(figures[name]["count"] >= ASKED[name] for name in names):
        print(f"all that is asked is reached; what is not in {FIGURES} begins anew", flush=True)
    end, busy, bad = time.monotonic() + 60 * minutes, {}, []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        while True:
            left = end - time.monotonic()
            free = [name for name in names if name not in bad and figures[name]["count"] < ASKED[name]]
            at_work = {name for name, _ in busy.values()} - {"relations"}  # which alone have no folder
            free = [name for name in free if name not in at_work]
            while left > 1 and free and len(busy) < jobs:
                name = min(free, key=lambda name: figures[name]["count"] / ASKED[name])
                figures[name]["turns"] += 1
                busy[pool.submit(turn, folder, name, figures[name]["turns"], min(SLICE, left))] = name, figures[name]["turns"]
                if name != "relations":
                    free.remove(name)
            if not busy:
                return bad
            for done in concurrent.futures.wait(busy, return_when=concurrent.futures.FIRST_COMPLETED)[0]:
                (name, seed), (found, more) = busy.pop(done), done.result()
                figures |= {other: of for other, of in kept().items() if other not in names}  # to which another may have added meanwhile
                of = figures[name]
                if found is None:
                    figures[name] = {"count": 0, "seconds": 0, "turns": of["turns"], "found": of["found"] + 1}
                    bad.append(name)
                    told = folder / "found" / f"{name}-{seed}.txt"
                    told.parent.mkdir(exist_ok=True)
                    told.write_text(more)
                    print(f"{name}: WRONG, see {told}\n{more[-1500:]}", flush=True)
                else:
                    figures[name] = added(of, found, more)
                    print(f"{name}: {figures[name]['count']} of {ASKED[name]}, {more:.0f} s", flush=True)
                write_json(FIGURES, figures)


def table():
    figures = kept()
    of = {name: {"count": 0, "sum": {}, "most": {}} | figures.get(name, {}) for name in ASKED}
    counted = [one for one in figures.values() if one["count"]]
    print("; ".join(", ".join(sorted({one[key] for one in counted})) for key in ("date", "machine")), end="; commits ")
    print(", ".join(sorted({one["commit"] for one in counted})) + "\n")
    relations = of["relations"]
    print(
        f"{relations['count']:,} structures, {relations['sum'].get(f'above {metamorphic.LARGE[0]} atoms', 0):,} of them above {metamorphic.LARGE[0]:,} atoms\n"
    )
    print("| relation | looked at | allowed in double, single | largest found |\n|---|---|---|---|")
    for relation, allowed in metamorphic.ALLOWED.items():
        keys = [f"{relation.__name__}, {precision}" for precision in ("double", "single")]
        looked, most = sum(relations["sum"].get(key, 0) for key in keys), [relations["most"].get(key) for key in keys]
        print(f"| {relation.__name__.replace('_', ' ')} | {looked:,} | {words(allowed)} | {words(most)} |")
    print("\n| host | structures |\n|---|---|")
    for name, counted in metamorphic.COUNTED.items():
        for host in counted:
            print(f"| {host} | {of[name]['sum'].get(host, 0):,} |")
    print("\n| command | killed | disk full |\n|---|---|---|")
    for name, kind in kills.KINDS.items():
        for variant in kind.variants:
            killed, full = (of[name]["sum"].get(kills.said(variant, how), 0) for how in (kills.KILLED, kills.FULL))
            print(f"| {name} {variant} | {killed} | {full} |")
    print("\n| run | ps | restarts | temperature, K | variance of the kinetic energy | |\n|---|---|---|---|---|---|")
    for name in dynamics.RUNS:
        if "temperature" in (one := of[name]):
            variance, drift, density = (one.get(key) for key in ("variance of the kinetic energy", "drift", "density"))
            said = [f"drift {drift:.4f} meV/atom/ps"] if drift is not None else []
            said += [f"{density[0]:.2f} ± {density[1]:.2f} g/cm³"] if density else []
            said += [f"{key} {one[key][0]:.3f} ± {one[key][1]:.3f}" for key in ("mean volume", "variance of the volume") if key in one]
            print(
                f"| {name} | {one['count']:,.0f} | {one['blocks'] - 1} | {one['temperature'][0]:.1f} ± {one['temperature'][1]:.1f} "
                f"| {f'{variance[0]:.3f} ± {variance[1]:.3f}' if variance else ''} | {', '.join(said)} |"
            )


def words(values):
    return ", ".join("–" if value is None else "the same bits" if value == 0 else f"{value:.0e}" for value in values)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=ASKED)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--turn", nargs=3, metavar=("KIND", "SEED", "SECONDS"))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.turn:
        name, seed, seconds = arguments.turn
        print("\n" + json.dumps(module(name).turn(folder, name, int(seed), float(seconds))))
    elif arguments.table:
        table()
    else:
        with lock.claim(folder, "run.py"):
            bad = run(folder, arguments.only or list(filter(possible, ASKED)), arguments.minutes, arguments.jobs)
        if bad:
            sys.exit(f"{', '.join(bad)}: see {folder / 'found'}")


if __name__ == "__main__":
    main()
