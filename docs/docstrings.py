"""Docstrings as this project writes them, for autodoc: sections under dashes, in them entries `name : words`, whose words go on further in."""

import dataclasses
import re

from config_keys import comments

ENTRY = re.compile(r"^(\w[\w ,.]*?) : (.*)$")
UNDERLINE = re.compile(r"^-{3,}$")


def as_rst(app, what, name, obj, options, lines):
    """Rewrites the lines of a docstring in place: headings as rubrics, entries as definitions; of a dataclass also the words beside its fields."""
    out, section = [], False
    for k, line in enumerate(lines):
        if UNDERLINE.match(line):
            continue
        if k + 1 < len(lines) and UNDERLINE.match(lines[k + 1]):
            out += ["", f".. rubric:: {line}", ""]
            section = True
        elif section and (entry := ENTRY.match(line)):
            out += ["", f"``{entry[1]}``", f"    {_plain(entry[2])}"]
        elif section and line.startswith("    "):
            out.append(f"    {_plain(line.strip())}")
        else:
            out += ["", _plain(line)] if section and out and out[-1].startswith("    ") else [_plain(line)]
    if dataclasses.is_dataclass(obj):
        out += ["", ".. rubric:: Fields", ""]
        for field, words in comments(obj).items():
            out += [f"``{field}``", f"    {_plain(words)}", ""] if words else []
    lines[:] = out


def _plain(line):
    """What is no markup: stars and bars of formulas."""
    return "".join(part if part.startswith("`") else re.sub(r"([*|]|_\b(?!\w))", r"\\\1", part) for part in re.split(r"(`[^`]*`)", line))


def setup(app):
    app.connect("autodoc-process-docstring", as_rst)
    return {"parallel_read_safe": True}
