"""One page: a template filled in, with style, figures and drawings inside, that loads nothing from elsewhere."""

import datetime
import importlib.metadata
import platform
import warnings
from contextlib import contextmanager
from pathlib import Path

import jinja2

import mfmd
from mfmd import whole

PACKAGES = ("numpy", "ase", "torch", "lightning", "openmm", "tblite", "pyscf")


def write(path, template, **content):
    """Write the page of a template of this folder; whole or not at all. What the content has in it of markup that is no Markup is text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    text = environment.get_template(template).render(made=made(), **content)
    with whole.writing(path, text=True) as file:
        file.write(text)


def number(value):
    """A number as one reads it; what is none stays."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if 0.1 <= abs(value) < 1e4 else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.2g}"


def duration(seconds):
    """12 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds, 1) if seconds < 10 else round(seconds)
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, hours = seconds // 60, seconds // 3600
    return f"{minutes} min {seconds % 60} s" if minutes < 60 else f"{hours} h {minutes % 60} min"


def made():
    """When, where and with which packages a page was made."""
    have = {"mfmd": mfmd.__version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            have[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes"),
        "versions": have,
        "machine": f"{platform.system()} {platform.machine()}",
    }


@contextmanager
def overheard():
    """The list of sentences that warnings and notes tell while it is open; they are shown as ever."""
    told, show = [], warnings.showwarning

    def hear(message, category, *rest, **more):
        kind = "note" if issubclass(category, mfmd.Note) else "warning"
        if (sentence := f"{kind}: {message}") not in told:
            told.append(sentence)
        show(message, category, *rest, **more)

    warnings.showwarning = hear
    try:
        yield told
    finally:
        warnings.showwarning = show
