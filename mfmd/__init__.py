"""mfmd: train on many cheap and a few expensive quantum-chemistry labels, run molecular dynamics at the expensive level.

The way of the data, and where each step lives; each floor uses only those below it:

    cli                                                    the commands' options; what each failure says
    commands/                                              the commands, a file each
    md                                                     ready-made runs in OpenMM
    suggest/          checking/                            which label next; whether numbers are right on this machine
    hosts/            labelling/    foreign/               programs that call the engine; making labels; other packages' weights
    training/                                              plan, model, stages, export; the only wing that needs torch
    reports/          evaluation                           tables, figures, pages; errors of a model file
    structures/                                            labelled structures: formats, checks, splits
    config    lock    engine                               YAML to checked configs; a folder is one run's; the compiled engine
    units    progress    whole                             constants and conventions; what is waited for; files, whole or as they were

Importing this package imports none of them; the public names below load theirs on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "Calculator": ("mfmd.hosts.ase", "Calculator"),
    "engine": ("mfmd.engine", None),
    "openmm": ("mfmd.hosts.openmm", None),
    "torchsim": ("mfmd.hosts.torchsim", None),
    "md": ("mfmd.md", None),
}


class Error(ValueError):
    """Something the user gave cannot be used; the message is one sentence that says what, where and what to do."""

    def __str__(self):  # on one line, whatever a file has in the words that are quoted
        return " ".join(super().__str__().splitlines())


class Note(UserWarning):
    """What was assumed where nothing was said, and what was found; nothing is wrong with it."""


class Extrapolation(UserWarning):
    """A structure is far outside what a model was trained on; says what and where."""


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mfmd' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    loaded = import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def __dir__():
    return [*globals(), *_PUBLIC]
