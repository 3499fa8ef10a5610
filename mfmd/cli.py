"""The commands: mfmd-train, and mfmd with its sub-commands. Each failure is one sentence and exit code 1."""

import argparse
import contextlib
import json
import os
import signal
import sys
import warnings
from importlib import import_module

from mfmd import Error, Note, __version__, progress
from mfmd.commands.packages import remedy
from mfmd.hosts.build import HOSTS

COMMANDS = {  # of mfmd, and their modules in mfmd.commands
    "label": "label", "suggest": "suggest", "import": "imported", "info": "info", "eval": "evaluate", "md": "dynamics", "export": "export",
    "check": "check", "build-host": "build_host", "doctor": "doctor", "completion": "completion",
}  # fmt: skip


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what is written is whole."""


def _terminate(signum, frame):
    raise Terminated


def _guard(arguments, command, goes_on=""):
    """Run a module of mfmd.commands; goes_on : what to tell of an interrupted one where it does not say so itself. Returns its result."""

    def words(message, category, *_, **__):
        note = issubclass(category, Note)
        return "" if note and arguments.quiet else f"{'note' if note else 'warning'}: {message}\n"

    warnings.formatwarning = words
    warnings.simplefilter("always", Note)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        silent = arguments.quiet or int(os.environ.get("RANK", 0)) > 0  # of the processes of torchrun the first speaks
        with contextlib.nullcontext() if silent else progress.told(), _unsaid(arguments.quiet or arguments.json):
            result = import_module(f"mfmd.commands.{command}").run(arguments)
        if arguments.json and result is not None:
            print(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False))
        return result
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
        print(f"error: {error}; {remedy(error.name)}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _unsaid(silent):
    """Where it is to be silent nothing comes onto stdout, of Python, of compiled code, or of processes that are started."""
    if not silent:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _path(text):
    """The type of a path: a shell expands ~ at the beginning of a word alone, and not in --option=~/file."""
    return os.path.expanduser(text)


def train():
    """mfmd-train config.yaml [key=value …]"""
    arguments = train_parser().parse_intermixed_args()
    # Without it MKL's sums depend on where memory happens to lie, and a resumed run would not be the uninterrupted one to the last bit.
    os.environ.setdefault("MKL_CBWR", "AUTO")
    _guard(arguments, "train", "the same command with resume=true goes on")


def main():
    """mfmd label|suggest|import|info|eval|md|export|check|build-host|doctor|completion …"""
    parser = mfmd_parser()
    arguments, more = parser.parse_known_args()
    if more and (arguments.command != "label" or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # overrides behind an option, which argparse does not look for there
        arguments.overrides += more
    result = _guard(arguments, COMMANDS[arguments.command], "the same command goes on" if arguments.command in ("label", "suggest") else "")
    if (arguments.command == "doctor" and "fails" in result["engine"]) or (arguments.command == "check" and result["failed"]):
        raise SystemExit(1)


# ------------------------------------------------------------------------------------------------ what can be said to them


def _file(parser, *names, complete="FILE", **more):
    """An argument that is a path; complete : the name of what shtab has a shell complete."""
    parser.add_argument(*names, type=_path, **more).complete = complete


def _form(prog):
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28)


def _for_scripts(parser, **result):
    """--quiet and --json; result : what the document has in it, key by key."""
    group = parser.add_argument_group("for scripts")
    group.add_argument("-q", "--quiet", action="store_true", default=False, help="errors and warnings only")
    group.add_argument(
        "--json",
        action="store_true",
        default=False,
        help="one JSON document on stdout instead of words; notes, warnings and progress on stderr",
    )
    parser.epilog += "\n\nthe document of --json:\n" + "\n".join(f"  {key:<13} {words}" for key, words in result.items())


ERRORS = "each with level, label, {more}, count, mae, rmse, and their unit: eV, eV/atom, eV/Å or eV/Å³"
MODEL = "model file, or the name of one that comes along, such as mfmd:chno"


def train_parser():
    parser = argparse.ArgumentParser(
        prog="mfmd-train",
        description="Train one model on several levels of theory: stage by stage, then errors, and the model file.\n"
        "Every key of the config, with its unit and default, stands in the documentation under Reference.",
        epilog="""examples:
  mfmd-train mine.yaml --show-plan                    the stages, and what each learns
  mfmd-train mine.yaml train.epochs=200 out=runs/200
  mfmd-train mine.yaml resume=true                    goes on where it stopped""",
        formatter_class=_form,
    )
    _file(parser, "config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set keys of the config, such as train.epochs=10 or resume=true")
    parser.add_argument("--show-plan", action="store_true", help="print the stages of the config and stop")
    _for_scripts(
        parser,
        out="the folder",
        errors=ERRORS.format(more="split (val or test)"),
        files="in the folder",
        config="instead of these, with --show-plan: all its keys, each stage spelled out",
    )
    return parser


def mfmd_parser():
    parser = argparse.ArgumentParser(
        prog="mfmd",
        description="Labels before mfmd-train, and models after it.",
        epilog="""examples:
  mfmd label label.yaml                               structures and labels, for mfmd-train
  mfmd suggest model.pt pool.xyz --count 50 -o chosen.xyz   which structures to label next
  mfmd eval model.pt test.xyz                         errors per level, label and molecule
  mfmd md model.pt start.pdb -o runs/md --time 20     20 ps at 300 K; the same command goes on
  mfmd check model.pt                                 whether its numbers are right on this machine
  mfmd doctor                                         what works here, and what mends the rest

mfmd COMMAND --help says more of each. A failure is one sentence, and exit code 1.""",
        formatter_class=_form,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for add in (_label, _suggest, _import, _info, _eval, _md, _export, _check, _build_host, _doctor):
        add(commands)
    _completion(commands, {"mfmd": parser, "mfmd-train": train_parser()})
    return parser


def _command(commands, name, words, example, **more):
    """The parser of a sub-command."""
    return commands.add_parser(
        name,
        help=words,
        description=f"{words[0].upper()}{words[1:]}.",
        epilog=f"example: {example}",
        formatter_class=_form,
        **more,
    )


def _label(commands):
    parser = _command(
        commands, "label", "sample structures and label them with tblite and PySCF", "mfmd label label.yaml sampling.temperatures=[300]"
    )
    _file(parser, "config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set keys of the config, such as workers=4")
    parser.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="of Dask: its workers compute, instead of this machine")
    parser.add_argument("--retry", action="store_true", help="compute labels that have failed once more")
    _for_scripts(parser, out="the folder", levels="{level: {labels: how many, failed: how many}}", files="in the folder")


def _suggest(commands):
    parser = _command(
        commands,
        "suggest",
        "which structures to label next, and at which level, by what a label teaches for what it costs",
        "mfmd suggest runs/mine/model.pt pool.xyz --data mine.yaml --levels dft,cctz --budget 40h -o chosen.xyz",
    )
    _file(parser, "model", help=MODEL)
    _file(
        parser,
        "candidates",
        nargs="+",
        help="structures, in any format that mfmd-train reads, or the folder of a mfmd label, of whose trajectories those to train on count",
    )
    _file(parser, "-o", "--output", required=True, metavar="FILE", help="for mfmd label; .json and .html of the same name stand beside it")
    _file(
        parser,
        "--data",
        metavar="FILE",
        help="config by which the model was trained: the labels that it has learned, and what they have cost",
    )
    many = parser.add_mutually_exclusive_group(required=True)
    many.add_argument("--count", type=int, help="labels")
    many.add_argument("--budget", metavar="TIME", help="CPU time of all labels, such as 40h or 30min")
    parser.add_argument("--levels", metavar="A,B", help="that may be chosen, cheapest first, new ones too; by default the highest")
    _file(
        parser,
        "--target",
        action="append",
        metavar="FILE",
        help="structures that are to be predicted, such as a run; by default the candidates",
    )
    parser.add_argument(
        "--cost",
        action="append",
        metavar="LEVEL=SECONDS",
        help="CPU time of a label; by default as mfmd label has recorded it, by the number of electrons",
    )
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    _for_scripts(
        parser,
        structures="the file",
        report="the page",
        levels="{level: {labels, cpu_seconds, halvings: of the variance, halvings_per_hour}}",
        error_bar="{before, after: mean error bar of the targets, eV}, or null where no label says how large errors are",
        variance_left="of the targets, as a share",
        targets="how many",
        learned="{level: labels that were known before}",
        penalty="noise over the mean diagonal of the kernel",
        parts="{level: eV²}, or null",
        sketch="{width, error}, or null where the kernel is exact",
        before="of labels that were chosen before: {labels, rms_error, rms_error_bar, coverage}, or null",
    )


def _import(commands):
    parser = _command(
        commands,
        "import",
        "a model file of weights that others have trained",
        "mfmd import TensorNet-MatPES-PBE-v2025.1-PES -o matpes.pt --level pbe",
    )
    _file(parser, "source", help="folder that matgl has written, or checkpoint of torchmd-net")
    _file(parser, "-o", "--output", required=True, metavar="FILE", help="model file to write")
    parser.add_argument("--level", default="imported", help="name of its level; by default imported")
    parser.add_argument("--elements", metavar="H,C,N,O", help="that the level keeps; by default all that it was trained on")
    parser.add_argument("--energy-unit", metavar="UNIT", help="of a checkpoint of torchmd-net that does not say its own; by default eV")
    parser.add_argument("--length-unit", metavar="UNIT", help="likewise; by default Å")
    _for_scripts(parser, model="the file", header="as mfmd info --json has it")


def _info(commands):
    parser = _command(commands, "info", "what a model file holds", "mfmd info runs/mine/model.pt")
    _file(parser, "model", help=MODEL)
    _for_scripts(
        parser,
        format="of the file",
        backbone="its sizes",
        levels="of the heads",
        units="eV and Å",
        provenance="where it comes from, errors among it",
        archived="of an archive for OpenMM or GROMACS: the charges and multiplicities in it",
    )


def _eval(commands):
    parser = _command(
        commands, "eval", "errors of a model file on labelled structures", "mfmd eval runs/mine/model.pt test.xyz --energy-key cctz=energy"
    )
    _file(parser, "model", help=MODEL)
    _file(
        parser,
        "files",
        nargs="+",
        help="labelled structures in any format that mfmd-train reads; keys of the labels as in the training run unless named here",
    )
    _file(
        parser, "-o", "--output", complete="DIRECTORY", default="mfmd-eval", metavar="FOLDER", help="for report.html; by default mfmd-eval"
    )
    parser.add_argument(
        "--by", default="molecule", metavar="KEY", help="info key that groups the structures, or charge; by default molecule"
    )
    parser.add_argument(
        "--allow-unseen-state",
        action="store_true",
        help="compare structures of charges and multiplicities that a level was not trained on, too",
    )
    parser.add_argument("--precision", choices=["single", "double"], default="single", help="of the engine; by default single")
    _file(
        parser,
        "--error-bars",
        metavar="CONFIG",
        help="config of the run whose last level Gauss-Newton has fitted: error bars of energies and forces by the gradients of all energies that it has learned, "
        "in error_bars.csv too",
    )
    group = parser.add_argument_group("what the files hold")
    group.add_argument("--format", help="by default what their endings say")
    group.add_argument("--level", help="whose labels the files have; needed where levels were trained on files of their own")
    for kind in ("energy", "forces", "stress"):
        group.add_argument(f"--{kind}-key", action="append", metavar="[LEVEL=]KEY", help=f"of {kind} in the files; once for each level")
    group.add_argument("--energy-unit", metavar="UNIT", help="by default as in the training run")
    group.add_argument("--length-unit", metavar="UNIT", help="by default as in the training run")
    group.add_argument("--spin", choices=["2S", "2S+1"], help="what the key spin holds; by default as in the training run")
    _for_scripts(
        parser,
        model="the file",
        files="of structures",
        errors=ERRORS.format(more="group"),
        error_bars="{level: {count, coverage: share of energies within one standard deviation, gain: nats}}",
        by_gradients="with --error-bars: level, learned, energy and forces with rank, Spearman's correlation of errors and error bars, and file",
        left_out="each with level, elements, states (charge and multiplicity) and structures: how many",
        report="the page",
    )


def _md(commands):
    parser = _command(  # what is not given is as mfmd.md.Settings has it
        commands,
        "md",
        "molecular dynamics in OpenMM; the same command goes on with a run that was interrupted",
        "mfmd md runs/mine/model.pt start.pdb -o runs/md --ensemble nvt --temperature 350 --time 20",
        argument_default=argparse.SUPPRESS,
    )
    _file(parser, "model", help=MODEL)
    _file(parser, "structure", help="PDB, mmCIF, XYZ, extended XYZ or another format of ASE")
    _file(parser, "-o", "--out", complete="DIRECTORY", required=True, metavar="FOLDER", help="for all that is written")
    group = parser.add_argument_group("the run")
    group.add_argument("--ensemble", choices=["nve", "nvt", "npt"], help="by default nvt")
    for name, unit, default, words in (
        ("time", "PS", 10.0, "of production"), ("timestep", "FS", 0.5, ""), ("temperature", "K", 300.0, ""), ("pressure", "BAR", 1.0, "of npt"),
        ("friction", "1/PS", 1.0, "of the thermostat"), ("equilibrate", "PS", 0.0, "with a thermostat before production"),
    ):  # fmt: skip
        group.add_argument(f"--{name}", type=float, metavar=unit, help=f"{words}{words and '; '}by default {default}")
    group.add_argument(
        "--minimize",
        action=argparse.BooleanOptionalAction,
        help="before velocities are drawn; by default unless there are velocities to start with",
    )
    _file(
        group,
        "--continue-from",
        complete="DIRECTORY",
        metavar="FOLDER",
        help="of another run of this structure: its last positions, velocities and box",
    )
    group.add_argument("--seed", type=int, help="by default 1")
    group = parser.add_argument_group("the model")
    group.add_argument("--head", help="level; by default the highest")
    group.add_argument(
        "--term", action="append", metavar="HEAD=WEIGHT", help="instead of --head, a weighted sum of heads; may be given often"
    )
    group.add_argument("--host", choices=["native", "torch", "python"], help="by default native where it was compiled, else torch")
    group.add_argument("--platform", help="of OpenMM; by default Reference")
    group.add_argument("--precision", choices=["single", "double"], help="of the engine; by default single")
    group.add_argument("--threads", type=int, help="at most; by default every core")
    group = parser.add_argument_group("charge and spin")
    group.add_argument("--charge", type=int, metavar="E", help="of the structure, elementary charges; by default what its file says, or 0")
    group.add_argument(
        "--multiplicity", type=int, metavar="2S+1", help="by default what the file says, or the lowest that the electrons can have"
    )
    group.add_argument("--allow-unseen-state", action="store_true", help="evaluate states that a head was not trained on")
    group = parser.add_argument_group("what is written")
    group.add_argument("--every", type=float, metavar="PS", help="between frames, and between lines of the log; by default 0.05")
    group.add_argument("--checkpoint", type=float, metavar="PS", help="between checkpoints; by default 5.0")
    group.add_argument(
        "--format", choices=["dcd", "xtc", "h5"], help="of the trajectory; by default dcd; h5 (mdtraj's HDF5) beside it, at the end"
    )
    group.add_argument("--report-heads", action="store_true", help="heads.csv: every head's energy along the run, with its error bar")
    group.add_argument("--stop-outside", action="store_true", help="end where the run is far outside what the model was trained on")
    _for_scripts(
        parser,
        out="the folder",
        steps="of the whole run",
        ns_per_day="of this call; null where nothing was left to do",
        temperature="K, mean",
        drift="of the total energy, meV/atom/ps",
        looks="at whether the structure is far outside of training",
        far="at how many it was",
        files="in the folder",
    )


def _export(commands):
    parser = _command(
        commands, "export", "an archive for a host, from a model file", "mfmd export runs/mine/model.pt --for gromacs -o gromacs.pt"
    )
    _file(parser, "model", help=MODEL)
    parser.add_argument("--for", dest="host", choices=["openmm", "gromacs", "torchscript"], required=True, help="whom it is for")
    _file(parser, "-o", "--output", required=True, metavar="FILE", help="archive to write")
    _file(parser, "--topology", metavar="FILE", help="for openmm: PDB file with the atoms in the order of the System")
    parser.add_argument("--head", help="level; by default the highest")
    parser.add_argument("--precision", choices=["single", "double"], default="single", help="of the engine; by default single")
    group = parser.add_argument_group("charge and spin, which openmm and gromacs do not say when they call it")
    group.add_argument("--charge", type=int, metavar="E", help="elementary charges; by default what the topology says, or 0")
    group.add_argument("--multiplicity", type=int, metavar="2S+1", help="by default the lowest that the electrons can have")
    group.add_argument("--allow-unseen-state", action="store_true", help="evaluate states that a head was not trained on")
    _for_scripts(
        parser,
        archive="the file",
        host="whom it is for",
        periodic="of openmm: whether it wants a box",
        mdp="of gromacs: what its mdp file needs",
    )


def _build_host(commands):
    parser = _command(commands, "build-host", "compile a host anew, after an upgrade of torch, OpenMM or LAMMPS", "mfmd build-host lammps")
    parser.add_argument("host", choices=list(HOSTS))
    _for_scripts(parser, host="which", library="the file")


def _check(commands):
    parser = _command(
        commands,
        "check",
        "whether a model's numbers are right on this machine: engine, hosts, and those that came in the file",
        "mfmd check runs/mine/model.pt start.xyz",
    )
    _file(parser, "model", help=MODEL)
    _file(
        parser,
        "structure",
        nargs="?",
        help="file of structures to check it on, in any format that mfmd-train or mfmd md reads; by default those that travel in the model file",
    )
    _for_scripts(
        parser,
        model="the file",
        structures="each with source, atoms, and level, the highest that knows it",
        engine="{instruction_set, threads, cuda: {compiled, devices}}",
        checks="each with name, passes (true, false, or null where it was left out), found and allowed {kind: the largest, null where that is no number}, "
        "structures (of how many), left_out and fails (why), lacks (the module without which it was left out)",
        failed="how many; with any the exit code is 1",
    )


def _doctor(commands):
    parser = _command(
        commands, "doctor", "what is installed, which hosts load, and the command that mends what does not", "mfmd doctor --json"
    )
    _for_scripts(
        parser,
        packages="{name: version, or null}",
        engine="{instruction_set, threads, cuda: {compiled, devices}}, or {fails: why, mend: a command}, and exit code 1",
        hosts="{name: {loads: what}, or {fails: why, mend: a command}}",
    )


def _completion(commands, programs):
    parser = _command(
        commands,
        "completion",
        "the script by which a shell completes mfmd and mfmd-train",
        """eval "$(mfmd completion bash)"   in ~/.bashrc; zsh likewise in ~/.zshrc, after compinit
         mfmd completion tcsh > FILE     and source FILE in ~/.tcshrc""",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    parser.set_defaults(programs=programs, quiet=False, json=False)
