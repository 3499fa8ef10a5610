"""Pages of results: what stands in them is what the files say, nothing in them is loaded from elsewhere, and a browser shows them at every width."""

import csv
import re
import shutil
import subprocess
import sys
import warnings

import ase.io
import html5lib
import numpy as np
import pytest
from conftest import DATA, ethanol, random_model, stretched, write

from mfmd import Note, evaluation
from mfmd.engine import Engine, load_model
from mfmd.reports import comparison, drawing, figures, page
from mfmd.structures.record import Label, Structure

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\frac{1}{$", "</svg></table>&amp;")
SVG, HTML = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xhtml}"
LOADING = ("src", "href", "{http://www.w3.org/1999/xlink}href", "srcset", "data", "action", "poster", "background")


def parsed(path):
    """The tree of a page, which is flawless HTML5 and loads nothing."""
    text = path.read_text()
    assert len(text) < 1e6
    tree = html5lib.HTMLParser(strict=True).parse(text)
    for element in tree.iter():
        assert element.tag not in (HTML + "script", HTML + "img", HTML + "iframe", HTML + "object", SVG + "script", SVG + "image")
        for name, value in element.attrib.items():
            assert name not in LOADING or value.startswith("#") or value == "data:,", (element.tag, name, value)
            assert not name.startswith("on")
    assert "@import" not in text and set(re.findall(r"url\((.)", text)) <= {"#"}
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    return tree


def words(element):
    return " ".join("".join(element.itertext()).split())


def table(tree, *head):
    """Rows of the table with these columns, as dicts."""
    for found in tree.iter(HTML + "table"):
        names = [words(cell) for cell in found.iter(HTML + "th")]
        if tuple(names) == head:
            return [dict(zip(names, map(words, row.findall(HTML + "td")), strict=True)) for row in found.find(HTML + "tbody")]
    raise AssertionError(f"no table of {head}")


def facts(tree):
    return dict(zip(*([words(e) for e in tree.iter(HTML + tag)] for tag in ("dt", "dd")), strict=True))


def captions(tree):
    return [words(caption) for caption in tree.iter(HTML + "figcaption")]


ERRORS = ("level", "label", "count", "MAE", "RMSE", "unit")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The page of `mfmd eval` on labels of known errors, of molecules with names that a page must not take for markup."""
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("eval")
    path = write(random_model(), out / "model.pt")
    engine, structures = Engine(path), []
    for k, name in enumerate(HOSTILE):
        a = ethanol()
        a.rattle(0.05, seed=k)
        found = engine.compute(a.positions, a.numbers, terms=[("high", 1.0)])
        label = Label(energy=found["energy"] - 0.009 * (k + 1), forces=found["forces"] + np.eye(9, 3) * 0.01 * (4 - k))
        structures.append(
            Structure(a.numbers, a.positions, np.zeros((3, 3)), np.zeros(3, bool), {"high": label}, f"a.xyz: frame {k}", {"molecule": name})
        )
    found = list(evaluation.comparisons(path, structures))
    comparison.write(
        out / "report.html", {"model": HOSTILE[0], "grouped by": "molecule"}, load_model(path), found, [HOSTILE[1]], [HOSTILE[2]]
    )
    return out / "report.html"


@pytest.fixture(scope="module")
def run_of_md(trained, tmp_path_factory):
    """A run that begins far outside of training, and is made longer."""
    pytest.importorskip("openmm")
    from mfmd import md

    out = tmp_path_factory.mktemp("md")
    stretched(1.9).write(out / "start.xyz")
    settings = {"every": 0.01, "checkpoint": 0.1, "threads": 1, "report_heads": True, "minimize": False, "seed": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for time in (0.2, 0.3):
            md.run(md.Settings(str(trained[0]), str(out / "start.xyz"), str(out / "run"), time=time, **settings))
    return out / "run" / "report.html"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """The page of a campaign of which some labels failed."""
    pytest.importorskip("pydantic")
    from mfmd.labelling import schema
    from mfmd.labelling.journal import Journal
    from mfmd.reports import labelling

    out = tmp_path_factory.mktemp("label")
    config = schema.Config(out=out, structures=["x.xyz"], levels={"gfn2": {"method": "gfn2"}, "mp2": {"method": "mp2", "basis": "6-31g*"}})
    journal, frames = Journal(out / "labels.jsonl"), []
    for k in range(12):
        a = ethanol()
        a.rattle(0.03, seed=k)
        a.info |= {"id": f"<b>{k}", "split": "train" if k < 9 else "test"}
        frames.append(a)
        made = {"versions": {"tblite": "0.4"}, "cpu_seconds": 0.5 + k, "forces": np.full((9, 3), 0.1)}
        journal.add(a.info["id"], "gfn2", made | {"energy": -100.0 + 0.01 * k}, None)
        lost = f"not converged after {50 + k} cycles <i>" if k < 3 else None
        journal.add(a.info["id"], "mp2", None if lost else made | {"energy": -4000.0 + 0.01 * k + 0.09 * (-1) ** k}, lost)
    labelling.write(config, frames, {level: {a.info["id"] for a in frames} for level in config.levels}, journal, [])
    return out / "report.html"


def test_training_is_told_as_its_files_have_it(trained):
    folder = trained[0].parent
    tree = parsed(folder / "report.html")
    with open(folder / "errors.csv") as file:
        expected = list(csv.DictReader(file))
    rows = table(tree, "split", *ERRORS[:5], "labels' own size", "unit")
    assert len(rows) == len(expected) > 6
    for row, of_file in zip(rows, expected, strict=True):
        assert (row["split"], row["level"], row["label"]) == (of_file["split"], of_file["level"], of_file["label"].replace("_", " "))
        assert int(row["count"].replace(",", "")) == int(of_file["count"])
        for kind in ("mae", "rmse"):
            assert float(row[kind.upper()].replace(",", "")) == pytest.approx(1e3 * float(of_file[kind]), rel=0.01, abs=0.006)
    frames = ase.io.read(folder.parent / "frames.xyz", ":")
    for row in table(tree, "level", "label", "train", "val", "test")[1:]:
        key = f"{row['label']}_{row['level']}"
        there = sum(
            key in a.info or key in a.arrays or (row["level"] == "gfn2" and a.calc is not None and row["label"] in a.calc.results)
            for a in frames
        )
        assert sum(int(row[split]) for split in ("train", "val", "test")) == there
    (stage,) = table(tree, "stage", "learns", "begins with", "how", "epochs", "time")
    assert stage["epochs"] == "25" and stage["learns"] == "gfn2, dft, cctz" and stage["time"].endswith("s")
    assert load_model(trained[0]).sha256 in words(tree)
    # A panel of each level and kind with test labels, a figure of the learning curve, and the worst structures of cctz.
    shown = captions(tree)
    assert any(caption.startswith("Stage multihead") for caption in shown)
    (energies,) = (row for row in rows if (row["split"], row["level"], row["label"]) == ("test", "cctz", "energy"))
    assert sum("frames.xyz: frame" in caption for caption in shown) == min(6, int(energies["count"]))


def test_evaluation_with_hostile_names(evaluated):
    tree = parsed(evaluated)
    rows = {row["label"]: row for row in table(tree, *ERRORS)}
    assert float(rows["energy"]["MAE"]) == pytest.approx(22.5, abs=0.02) and rows["energy"]["count"] == "4"
    assert float(rows["forces"]["MAE"]) == pytest.approx(10 * 2.5 * 3 / 27, abs=0.02) and rows["forces"]["count"] == "108"
    groups = table(tree, "molecule", "count", "MAE", "RMSE")
    assert {row["molecule"] for row in groups} == {*HOSTILE, "all"}
    worst = [caption for caption in captions(tree) if "frame" in caption]
    by_energy, by_force = worst[:4], worst[4:]
    assert [re.search(r"frame (\d)", caption)[1] for caption in by_energy] == ["3", "2", "1", "0"]
    assert by_energy[0].startswith("+4.0 meV/atom: " + HOSTILE[3])
    assert [re.search(r"frame (\d)", caption)[1] for caption in by_force] == ["0", "1", "2", "3"]
    assert by_force[0].startswith("40 meV/Å on atom ")
    told = words(tree)
    assert all(name in told for name in HOSTILE[:3])


def test_dynamics_over_a_run_that_was_made_longer(run_of_md, trained):
    out, tree = run_of_md.parent, parsed(run_of_md)
    log = np.genfromtxt(out / "log.csv", delimiter=",")
    shown = facts(tree)
    assert len(log) == 30 and shown["steps"] == "600"
    assert shown["mean temperature"] == f"{log[:, 5].mean():.0f} ± {log[:, 5].std():.0f} K"
    assert "ns/day, last 200 steps" in shown
    watched = np.genfromtxt(out / "domain.csv", delimiter=",", names=True)
    assert watched["step"].tolist() == [100, 200, 300, 400, 500, 600]
    assert f"Far outside at {(watched['grade'] > 0).sum()} of 6 looks" in words(tree)
    frames, engine = ase.io.read(out / "outside.xyz", ":", format="extxyz"), Engine(trained[0])
    assert frames and (watched["grade"] > 0).any()
    for a in frames:
        found = engine.compute(a.positions, a.numbers, terms=[("cctz", 1.0)], forces=False, domain=True)
        assert found["grade"] == watched["grade"][watched["step"] == a.info["step"]]
        assert any(caption.startswith(f"Step {a.info['step']}: atom") for caption in captions(tree))
    kept = np.maximum.accumulate(watched["grade"])
    assert len(frames) == len(set(kept[kept > 0]))


LIGHT = """
import sys, warnings
for name in ("torch", "mdtraj", "pydantic", "omegaconf", "lightning", "yaml", "h5py"):
    sys.modules[name] = None
warnings.simplefilter("ignore")
from mfmd import md
md.run(md.Settings(*sys.argv[1:], time=0.1, every=0.01, checkpoint=0.1, threads=1))
"""


def test_dynamics_without_what_trains(trained, tmp_path):
    pytest.importorskip("openmm")
    ethanol().write(tmp_path / "ethanol.xyz")
    subprocess.run([sys.executable, "-c", LIGHT, trained[0], tmp_path / "ethanol.xyz", tmp_path / "run"], check=True)
    parsed(tmp_path / "run" / "report.html")


def test_labelling_groups_failures_and_counts_cost(labelled):
    tree = parsed(labelled)
    rows = {row["level"]: row for row in table(tree, "level", "method", "asked for", "train", "val", "test", "with forces", "failed")}
    assert list(rows["mp2"].values()) == ["mp2", "mp2 6-31g*", "12", "6", "0", "3", "9", "3"]
    (failure,) = table(tree, "level", "structures", "reason, of the first", "the first")
    assert list(failure.values()) == ["mp2", "3", "not converged after 50 cycles <i>", "<b>0"]
    cost = {row["level"]: row for row in table(tree, "level", "labels", "median, CPU s", "largest, CPU s", "in all")}
    assert (cost["gfn2"]["median, CPU s"], cost["gfn2"]["largest, CPU s"], cost["gfn2"]["in all"]) == ("6.00", "11.50", "1 min 12 s")
    apart = [0.09 * (-1) ** k for k in range(3, 12)]
    assert any(
        f"9 structures of 1 formula and state, standard deviation {1e3 * np.std(apart) / 9:.1f} meV/atom" in caption
        for caption in captions(tree)
    )


def test_dense_figures_are_thinned_and_say_so():
    rng = np.random.default_rng(0)
    label = rng.normal(size=100_000)
    prediction = label + 0.01 * rng.normal(size=100_000)
    prediction[77] += 5.0
    parity = figures.parity("dense", label, prediction, "eV/Å")
    assert "100,000 points" in parity.caption and "1,000 of them" in parity.caption and len(parity.svg) < 60_000
    few = figures.parity("sparse", label[:100], prediction[:100], "eV/Å")
    assert "Drawn are" not in few.caption
    # A dot is a move and a line to the same place; the farthest is among them, and highest in the figure.
    path = max(re.findall(r' d="([^"]*)"', parity.svg), key=len)
    dots = np.array([pair.split() for pair in path.replace("L", "M").split("M")[1:]], float)[::2]
    assert len(dots) == 1000
    assert np.sum(dots[:, 1] < np.sort(dots[:, 1])[0] + 1e-6) == 1
    line = figures.lines("long", {"t": (np.arange(50_000), label[:50_000])}, "time, ps", "K")
    assert "mean of 125 lines of the log, of 50,000 in all" in line.caption and len(line.svg) < 60_000


def test_drawn_structures():
    """Ethanol has eight bonds; what has flown away is left out, and counted."""
    a = ethanol()
    svg, atoms = drawing.draw(a.numbers, a.positions, marked=2)
    assert atoms == 9 and svg.count('class="atom"') == 9 and svg.count('class="bond"') == 8 and svg.count('class="ring"') == 1
    a.positions[8] += 1000.0
    svg, atoms = drawing.draw(a.numbers, a.positions)
    assert atoms == svg.count('class="atom"') == 8 and svg.count('class="bond"') == 7
    box = next(b for b in ase.io.read(DATA / "test.xyz", ":") if b.pbc.all())
    svg, atoms = drawing.draw(box.numbers, box.positions, box.cell.array, box.pbc)
    assert svg.count('class="cell"') == 12 and svg.count('class="bond"') == 2 * atoms / 3  # molecules are whole, wherever they have gone
    moved = box.positions + np.random.default_rng(0).integers(-2, 3, (atoms // 3, 1, 3)).repeat(3, axis=1).reshape(-1, 3) @ box.cell.array
    assert drawing.draw(box.numbers, moved, box.cell.array, box.pbc)[0] == svg
    large = box.repeat(3)
    svg, atoms = drawing.draw(large.numbers, large.positions, large.cell.array, large.pbc, marked=0)
    inside = large.get_distances(0, range(len(large)), mic=True)
    assert atoms == drawing.MOST_ATOMS and 'class="cell"' not in svg
    drawn = {int(k) for k in re.findall(r"<title>\w+ (\d+)</title>", svg)}
    assert drawn == set(np.argsort(inside)[:atoms].tolist())


def test_what_is_overheard_is_shown_all_the_same():
    with pytest.warns(UserWarning) as shown, page.overheard() as told:
        for _ in range(2):
            warnings.warn("one thing", Note, stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)
    assert told == ["note: one thing", "warning: another"] and len(shown) == 3


def test_in_a_browser(trained, evaluated, run_of_md, labelled):
    """No page scrolls sideways, complains or asks for anything, on a desk and on a phone, light and dark."""
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (390, "dark")):
            tab, asked, said = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme), [], []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            for path in (trained[0].parent / "report.html", evaluated, run_of_md, labelled):
                tab.goto(path.as_uri())
                assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (path, width)
                empty = "[...document.querySelectorAll('figure svg')].filter(e => !e.getBoundingClientRect().height).length"
                assert tab.evaluate(empty) == 0 and tab.evaluate("document.querySelectorAll('figure svg').length") > 3
                assert asked.pop() == path.as_uri() and not asked and not said
        browser.close()
