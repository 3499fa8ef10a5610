"""Sphinx directive `command-help`: what `--help` prints, of a parser and of each of its commands."""

import argparse
import os
from importlib import import_module
from unittest import mock

from sphinx.util.docutils import SphinxDirective


class CommandHelp(SphinxDirective):
    """`command-help` module.function, which makes an argparse.ArgumentParser"""

    required_arguments = 1

    def run(self):
        module, _, name = self.arguments[0].rpartition(".")
        module = import_module(module)
        self.env.note_dependency(module.__file__)
        with mock.patch.dict(os.environ, COLUMNS="88", NO_COLOR="1"):
            lines = list(_pages(getattr(module, name)()))
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _pages(parser):
    yield from (f"## {parser.prog}", "", "```text", parser.format_help().rstrip(), "```", "")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _pages(command)


def setup(app):
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
