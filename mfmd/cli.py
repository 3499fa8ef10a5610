"""The commands: mfmd-train, and mfmd with its sub-commands. Each failure is one sentence and exit code 1."""

import argparse
import os
import signal
import sys
import warnings
from importlib import import_module

from mfmd import Error, Note, __version__, progress
from mfmd.hosts.build import HOSTS

COMMANDS = {  # of mfmd, and their modules in mfmd.commands
    "label": "label", "import": "imported", "info": "info", "export": "export", "eval": "evaluate", "md": "dynamics", "build-host": "build_host",
}  # fmt: skip


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
        with progress.told():
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

    module = import_module("mfmd.commands.train")
    _guard(lambda: module.run(arguments), "the same command with resume=true goes on")


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
    evaluate.add_argument("-o", "--output", type=_path, default="mfmd-eval", metavar="FOLDER", help="for report.html; by default mfmd-eval")
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
    module = import_module(f"mfmd.commands.{COMMANDS[arguments.command]}")
    _guard(lambda: module.run(arguments), "the same command goes on" if arguments.command == "label" else "")
