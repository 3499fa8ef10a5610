"""The commands: mfmd-train, and mfmd with its sub-commands. Each failure is one sentence and exit code 1."""

import argparse
import json
import os
import re
import signal
import sys
import warnings

from mfmd import Error, Note, __version__
from mfmd.hosts.build import HOSTS


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what is written is whole."""


def _terminate(signum, frame):
    raise Terminated


def _guard(action, goes_on=""):
    """Run a command; goes_on : what to tell of an interrupted one where it does not say so itself."""
    warnings.formatwarning = lambda message, category, *_, **__: f"{'note' if issubclass(category, Note) else 'warning'}: {message}\n"
    warnings.simplefilter("always", Note)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        action()
    except (KeyboardInterrupt, SystemExit) as end:
        stop = end if isinstance(end, KeyboardInterrupt) else end.__context__  # Lightning makes an exit of it
        if not isinstance(stop, KeyboardInterrupt):
            raise
        print("; ".join(["interrupted", *filter(None, [*map(str, stop.args), goes_on])]), file=sys.stderr)
        raise SystemExit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)) from None
    except (Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        print(
            f"error: {error}; install what this command needs, such as mfmd[train], mfmd[openmm], mfmd[label], mfmd[cluster] or mfmd[torchforce]",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _path(text):
    """The type of a path: a shell expands ~ at the beginning of a word alone, and not in --option=~/file."""
    return os.path.expanduser(text)


def train():
    """mfmd-train config.yaml [key=value …]"""
    parser = argparse.ArgumentParser(prog="mfmd-train", description="Train one model on several levels of theory.")
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=10 or resume=true")
    parser.add_argument("--show-plan", action="store_true", help="print the stages of the config and stop")
    arguments = parser.parse_intermixed_args()
    # Without it MKL's sums depend on where memory happens to lie, and a resumed run would not be the uninterrupted one to the last bit.
    os.environ.setdefault("MKL_CBWR", "AUTO")

    def action():
        from mfmd.training import plan

        config = plan.load(arguments.config, arguments.overrides)
        if arguments.show_plan:
            print("\n".join(plan.describe(config)))
            return
        from mfmd.training.run import train

        train(config)

    _guard(action, "the same command with resume=true goes on")


def main():
    """mfmd label|import|info|export|eval|md|build-host …"""
    parser = argparse.ArgumentParser(prog="mfmd", description="Work with models that mfmd-train has made.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    label = commands.add_parser("label", help="sample structures and label them with tblite and PySCF")
    label.add_argument("config", help="YAML file")
    label.add_argument("overrides", nargs="*", metavar="key=value")
    label.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="of Dask: its workers compute, instead of this machine")
    label.add_argument("--retry", action="store_true", help="compute labels that have failed once more")
    imported = commands.add_parser("import", help="a model file of weights that others have trained (docs/foundation.md)")
    imported.add_argument("source", type=_path, help="folder that matgl has written, or checkpoint of torchmd-net")
    imported.add_argument("-o", "--output", type=_path, required=True)
    imported.add_argument("--level", default="imported", help="name of its level; by default imported")
    imported.add_argument("--elements", metavar="H,C,N,O", help="that the level keeps; by default all that it was trained on")
    imported.add_argument("--energy-unit", help="of a checkpoint of torchmd-net that does not say its own; by default eV")
    imported.add_argument("--length-unit", help="likewise; by default Å")
    info = commands.add_parser("info", help="what a model file holds")
    info.add_argument("model", type=_path)
    info.add_argument("--json", action="store_true", help="the whole header as JSON")
    host = commands.add_parser("export", help="write an archive for a host, from a model file")
    host.add_argument("model", type=_path)
    host.add_argument("--for", dest="host", choices=["openmm", "gromacs", "torchscript"], required=True)
    host.add_argument("--topology", type=_path, help="for openmm: PDB file with the atoms in the order of the System")
    host.add_argument("--head", help="level; by default the highest")
    host.add_argument("--precision", choices=["single", "double"], default="single")
    host.add_argument("-o", "--output", type=_path, required=True)
    evaluate = commands.add_parser("eval", help="errors of a model file on labelled structures")
    evaluate.add_argument("model", type=_path)
    evaluate.add_argument(
        "files",
        type=_path,
        nargs="+",
        help="labelled structures in any format that mfmd-train reads; keys of the labels as in the training run unless named here",
    )
    evaluate.add_argument("--by", default="molecule", help="info key that groups the structures")
    evaluate.add_argument("--energy-unit", help="of the files; by default as in the training run")
    evaluate.add_argument("--length-unit", help="of the files; by default as in the training run")
    evaluate.add_argument("--level", help="whose labels the files have; needed where levels were trained on files of their own")
    for kind in ("energy", "forces", "stress"):
        evaluate.add_argument(f"--{kind}-key", action="append", metavar="[LEVEL=]KEY", help="in the files; once for each level")
    evaluate.add_argument("--format", help="of the files; by default what their endings say")
    evaluate.add_argument("--precision", choices=["single", "double"], default="single")
    md = commands.add_parser(  # what is not given is as mfmd.md.Settings has it
        "md",
        help="molecular dynamics in OpenMM; the same command goes on with a run that was interrupted",
        argument_default=argparse.SUPPRESS,
    )
    md.add_argument("model")
    md.add_argument("structure", help="PDB, mmCIF, XYZ, extended XYZ or another format of ASE")
    md.add_argument("-o", "--out", required=True, help="folder")
    md.add_argument("--continue-from", metavar="FOLDER", help="of another run of this structure: its last positions, velocities and box")
    md.add_argument("--ensemble", choices=["nve", "nvt", "npt"], help="by default nvt")
    for name, default, words in (
        ("time", 10.0, "ps of production"), ("timestep", 0.5, "fs"), ("temperature", 300.0, "K"), ("pressure", 1.0, "bar, of npt"),
        ("friction", 1.0, "1/ps, of the thermostat"), ("equilibrate", 0.0, "ps with a thermostat before production"),
        ("every", 0.05, "ps between frames, and between lines of the log"), ("checkpoint", 5.0, "ps between checkpoints"),
    ):  # fmt: skip
        md.add_argument(f"--{name}", type=float, help=f"{words}; by default {default}")
    md.add_argument(
        "--minimize",
        action=argparse.BooleanOptionalAction,
        help="before velocities are drawn; by default unless there are velocities to start with",
    )
    md.add_argument(
        "--format", choices=["dcd", "xtc", "h5"], help="of the trajectory; by default dcd; h5 (mdtraj's HDF5) beside it, at the end"
    )
    md.add_argument("--head", help="level; by default the highest")
    md.add_argument("--term", action="append", metavar="HEAD=WEIGHT", help="instead of --head, a weighted sum of heads; may be given often")
    md.add_argument("--report-heads", action="store_true", help="heads.csv: every head's energy along the run, with its error bar")
    md.add_argument("--host", choices=["native", "torch", "python"], help="by default native where it was compiled, else torch")
    md.add_argument("--platform", help="of OpenMM; by default Reference")
    md.add_argument("--precision", choices=["single", "double"], help="by default single")
    md.add_argument("--threads", type=int, help="at most; by default every core")
    md.add_argument("--seed", type=int, help="by default 1")
    build = commands.add_parser("build-host", help="compile a host anew, after an upgrade of torch, OpenMM or LAMMPS")
    build.add_argument("host", choices=list(HOSTS))
    arguments, more = parser.parse_known_args()
    if more and (arguments.command != "label" or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # overrides behind an option, which argparse does not look for there
        arguments.overrides += more
    actions = {
        "label": _label, "import": _import, "info": _info, "export": _export, "eval": _eval, "md": _md, "build-host": _build_host,
    }  # fmt: skip
    _guard(lambda: actions[arguments.command](arguments), "the same command goes on" if arguments.command == "label" else "")


def _label(arguments):
    from mfmd.config import load
    from mfmd.labelling import campaign, schema
    from mfmd.labelling.journal import Journal

    config = load(arguments.config, schema.Config, arguments.overrides)
    counts = campaign.run(config, arguments.retry, arguments.scheduler)
    for level, (good, bad) in counts.items():
        print(f"{level}: {good} labels{f', {bad} failed (see {config.out}/labels.jsonl; again with --retry)' if bad else ''}")
    print(f"structures for mfmd-train: {config.out}/")
    if nothing := [level for level, (good, _) in counts.items() if not good]:
        first = Journal(config.out / "labels.jsonl").first_failure(nothing[0])
        raise Error(f"{', '.join(nothing)}: not one label; the first failed: {first}")


def _import(arguments):
    from mfmd import foreign
    from mfmd.training import export

    elements = None if arguments.elements is None else arguments.elements.replace(",", " ").split()
    if os.path.isdir(arguments.output):
        raise Error(f"--output: {arguments.output} is a folder; name the model file, such as {os.path.join(arguments.output, 'model.pt')}")
    model, known, provenance = foreign.read(
        arguments.source, arguments.level, elements, energy_unit=arguments.energy_unit, length_unit=arguments.length_unit
    )
    export.write_model(arguments.output, model, known, provenance)
    _info(argparse.Namespace(model=arguments.output, json=False))


def _info(arguments):
    from ase.data import chemical_symbols

    from mfmd.engine import load_model

    model = load_model(arguments.model)
    header = json.loads(model.metadata)
    if arguments.json:
        print(json.dumps(header, indent=1, ensure_ascii=False))
        return
    size = header["backbone"]
    print(f"{arguments.model}: format {header['format']}, sha256 {model.sha256[:16]}…")
    print(f"backbone: {size['kind']}, {size['channels']} channels, {size['layers']} layers, rank {size['rank']}, cutoff {size['cutoff']} Å")
    if variants := [f"{key} {value}" for key, value in size.items() if key not in ("kind", "channels", "layers", "rank", "cutoff")]:
        print(f"  {', '.join(variants)}")
    made = header.get("provenance", {})
    errors = made.get("errors", {})
    for level in header["levels"]:
        relative = f", relative to {level['delta_of']}" if level.get("delta_of") else ""
        elements = " ".join(chemical_symbols[z] for z in level["elements"])
        constant = f", {level['constant']:g} eV a structure beside its atoms" if level.get("constant") else ""
        print(f"level {level['name']}: {level['kind']} head{relative}{constant}; elements {elements}")
        for split, table in errors.items():
            parts = []
            for kind, unit in (("energy", "meV"), ("forces", "meV/Å")):
                if row := table.get(f"{level['name']}.{kind}"):
                    parts.append(f"{kind} MAE {1e3 * row['mae']:.1f} {unit}")
            if parts:
                print(f"  {split}: {', '.join(parts)}")
    if tables := header.get("tables"):
        print(
            f"radial tables: within {tables['energy']:.1e} eV/atom and {tables['forces']:.1e} eV/Å of exact evaluation on "
            f"{tables['structures']} validation structures"
        )
    if domain := header.get("domain"):
        print(f"says what it was trained on: {domain['structures']} structures (docs/extrapolation.md)")
    if begun := made.get("checkpoint"):
        _beginning(begun)
    if origin := made.get("imported"):
        _origin(origin)
    print(f"made: {made.get('date', 'unknown')} by mfmd {made.get('mfmd', '?')}")


def _beginning(begun):
    """Of a model whose training began from a file: which heads were taken, how far their levels have moved, and where that file came from."""
    heads = ", ".join(f"{level} from its head {source}" for level, source in begun["from"].items())
    print(f"trained from the model of sha256 {begun['sha256'][:16]}…: {heads}")
    for stage, levels in begun["moved"].items():
        for level, moved in levels.items():
            print(f"  {level} had moved by {1e3 * moved['energy']:.2f} meV/atom and {1e3 * moved['forces']:.1f} meV/Å after stage {stage}")
    if origin := begun["provenance"].get("imported"):
        _origin(origin)


def _origin(origin):
    """Of an imported model, what its files said of themselves."""
    print(f"imported from {origin['from']}: {origin['source']} ({origin['code']})")
    for name, digest in origin["sha256"].items():
        print(f"  {name}: sha256 {digest[:16]}…")
    if "authors_errors" in origin:
        print(f"  errors, as its authors give them: {'; '.join(origin['authors_errors'])}")
    if "metadata" in origin:
        print(f"  metadata: {json.dumps(origin['metadata'], ensure_ascii=False)}")
    if "licence" in origin:
        print(f"  licence: {origin['licence']}")


def _eval(arguments):
    from rich.console import Console

    from mfmd import evaluation, report
    from mfmd.engine import load_model
    from mfmd.structures import checks
    from mfmd.structures.reading import Isolated, read_file
    from mfmd.structures.record import DataError
    from mfmd.training import plan

    model = load_model(arguments.model)
    trained = {"levels": {}, "data": {}} | json.loads(model.metadata).get("provenance", {}).get("config", {})
    names = [arguments.level] if arguments.level else model.levels
    keys = _keys(arguments, names if arguments.level in (None, *model.levels) else model.levels)
    if isinstance(trained["data"].get("train"), dict) and arguments.level is None:
        if not keys:
            raise Error(
                "--level: each level was trained on files of its own; say whose labels these have, one of "
                f"{', '.join(model.levels)}, or name their keys, such as --energy-key {model.levels[-1]}=energy"
            )
        names = [name for name in names if name in keys]
    files = {arguments.level: arguments.files} if arguments.level else arguments.files
    given = {key: getattr(arguments, key) for key in ("energy_unit", "length_unit", "format") if getattr(arguments, key)}
    config = plan.parse(
        {
            "out": ".",
            "data": {"train": files} | _units_of(trained["data"], arguments.files) | given,
            "levels": {
                name: {key: value for key, value in trained["levels"].get(name, {}).items() if key in SAID and value} | keys.get(name, {})
                for name in (model.levels if arguments.level else names)
            },
        },
        "the command line",
    )
    levels = {name: config.levels[name] for name in names}
    atoms = Isolated(levels)
    try:
        structures = list(atoms.set_aside(s for path in arguments.files for s in read_file(path, config.data, levels)))
    except DataError as error:
        raise DataError(_as_options(str(error))) from None
    atoms.tell()
    for name, own in keys.items():
        for kind, key in own.items():
            if not any(name in s.labels and s.labels[name].count(kind) for s in structures):
                raise DataError(f"--{kind}-key {name}={key}: no structure in {', '.join(arguments.files)} has this key")
    for name, left in evaluation.left_out(model, structures, levels).items():
        if left:
            print(f"left out of {name}: {', '.join(_why(elements, number) for elements, number in sorted(left.items()))}")
    points, bars = evaluation.compare(model, structures, arguments.by, arguments.precision)
    if not points:
        looked = ", ".join(level.energy for level in levels.values())
        raise DataError(
            f"{', '.join(arguments.files)}: no label of the model's levels for elements that these were trained on (looked for {looked} and the like; "
            "--energy-key names another key)"
        )
    for name, level in levels.items():
        for sentence in checks.questions(structures, name, level, {}, config.data):
            warnings.warn(_as_options(sentence), stacklevel=1)
    for (level, kind), ratio in evaluation.ratios(points).items():
        if not 1 / 3 < ratio < 3:
            what, unit = {"energy": "energies"}.get(kind, kind), config.data.energy_unit or "eV, or as the files say"
            warnings.warn(f"{what} of level {level} are {ratio:.3g} times the model's; --energy-unit is {unit}", stacklevel=1)
    report.print_evaluation(Console(), evaluation.errors(points), {k: evaluation.calibration(*v) for k, v in bars.items()})


def _as_options(sentence):
    """A sentence on a config's units, as one on eval's options."""
    return re.sub(r"\bdata\.(energy|length)_unit:?", r"--\1-unit", sentence)


def _keys(arguments, levels):
    """{level: {kind: key}} of --energy-key and the like, whose level is one of these."""
    keys = {}
    for kind in ("energy", "forces", "stress"):
        for text in getattr(arguments, f"{kind}_key") or ():
            level, sign, key = text.rpartition("=")
            option = f"--{kind}-key {text}"
            if not sign and len(levels) > 1:
                raise Error(
                    f"{option}: the model has the levels {', '.join(levels)}; say whose key it is, such as {levels[-1]}={text}, or give --level"
                )
            level = level if sign else levels[0]
            if level not in levels:
                raise Error(f"{option}: there is no level {level!r} here; there are {', '.join(levels)}")
            if not key:
                raise Error(f"{option}: the key is missing behind {level}=")
            if kind in keys.setdefault(level, {}):
                raise Error(
                    f"{option}: level {level} has the key {keys[level][kind]} already; write one file for each key, or name one key"
                )
            keys[level][kind] = key
    return keys


def _why(elements, number):
    """What was left out, and why: see evaluation.left_out."""
    from ase.data import chemical_symbols

    symbols = ", ".join(chemical_symbols[z] for z in elements)
    what = f"with {symbols}, which it was not trained on" if elements else "without a label"
    return f"{number:,} structure{'s' if number > 1 else ''} {what}"


SAID = ("energy", "forces", "stress", "virial", "energy_unit", "forces_unit", "stress_unit", "forces_sign")  # of a level's labels


def _units_of(data, files):
    """The units of the training run's files, but for files that may say their own."""
    from mfmd.structures.formats.registry import format_of

    if any(format_of(path) == "multifidelity" for path in files):
        return {}
    return {key: data[key] for key in ("energy_unit", "length_unit") if data.get(key)}


def _export(arguments):
    if arguments.host == "gromacs":
        from mfmd.hosts import gromacs

        if arguments.topology is not None:
            raise Error("--topology: GROMACS gives atomic numbers and box itself; leave it out")
        gromacs.write_archive(arguments.output, arguments.model, arguments.head, arguments.precision)
        print(f"{arguments.output}: in the mdp file, with box and pbc in a periodic box alone:\n{GROMACS.format(arguments.output)}")
        return
    if arguments.host == "torchscript":
        from mfmd.engine import load_model
        from mfmd.training import export

        export.write_torchscript(arguments.output, load_model(arguments.model))
        print(f"{arguments.output}: the model file with TorchScript in it, which TorchForce, GROMACS and torch.jit.load need")
        return
    from mfmd.hosts import openmm

    if arguments.topology is None:
        raise Error("--topology: TorchForce is not told which atoms there are; name a PDB file")
    periodic = openmm.write_archive(
        arguments.output, arguments.model, arguments.topology, head=arguments.head, precision=arguments.precision
    )
    print(
        f"{arguments.output}: load it with force = openmmtorch.TorchForce({arguments.output!r}); force.setOutputsForces(True); "
        f"force.setUsesPeriodicBoundaryConditions({periodic})"
    )
    print("in a process that has called mfmd.openmm.load_torchforce()")


GROMACS = """nnpot-active = true
nnpot-modelfile = {}
nnpot-input-group = System
nnpot-model-input1 = atom-positions
nnpot-model-input2 = atom-numbers
nnpot-model-input3 = box
nnpot-model-input4 = pbc"""


def _md(arguments):
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from mfmd import md

    options = vars(arguments)
    del options["command"]
    if given := options.pop("term", None):
        terms = [term.partition("=")[::2] for term in given]
        try:
            options["terms"] = tuple((head, float(weight)) for head, weight in terms)
        except ValueError:
            raise Error(f"--term is {' '.join(given)}; write head=weight, such as --term cctz=1 --term gfn2=-1") from None
    settings = md.Settings(**options)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, {task.fields[rate]:.0f} ns/day"),
    )
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task("mfmd md", total=None, rate=0.0)
        summary = md.run(settings, lambda step, steps, rate: bar.update(task, completed=step, total=steps, rate=rate))
    parts = [f"{summary['steps']} steps"]
    if summary["ns_per_day"]:
        parts.append(f"{summary['ns_per_day']:.0f} ns/day")
    if summary.get("temperature"):
        parts.append(f"mean temperature {summary['temperature']:.0f} K")
    if summary.get("drift") is not None and settings.ensemble == "nve":
        parts.append(f"drift of the total energy {summary['drift']:+.4f} meV/atom/ps")
    if summary["far"]:
        parts.append(f"far outside of training at {summary['far']} of {summary['looks']} looks")
    print(f"{settings.out}: {', '.join(parts)}")


def _build_host(arguments):
    import subprocess

    from mfmd.engine import LIBRARY_DIR, HostError
    from mfmd.hosts import build

    sources = LIBRARY_DIR / "csrc"
    try:
        print(build.compile_host(arguments.host, sources, LIBRARY_DIR))
    except ImportError as error:
        raise HostError(f"{arguments.host} is not installed here ({error}), and its host is compiled against it") from None
    except FileNotFoundError as error:
        raise HostError(
            f"no C++ compiler: {error.filename} cannot be run; install g++ or clang++, or name one in the variable CXX"
        ) from None
    except subprocess.CalledProcessError:
        raise HostError(
            f"{sources}/hosts/{arguments.host}.cpp does not compile against what is installed; the compiler's words are above"
        ) from None
