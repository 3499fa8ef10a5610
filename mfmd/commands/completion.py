"""mfmd completion: the script by which a shell completes the commands."""

import argparse


def run(arguments):
    import shtab

    for name, parser in arguments.programs.items():
        _say_paths(parser, shtab)
        print(shtab.complete(parser, arguments.shell, root_prefix=name.replace("-", "_")))


def _say_paths(parser, shtab):
    """Let shtab know which arguments are paths."""
    for action in parser._actions:  # argparse shows them nowhere else, and shtab reads them there
        if completed := getattr(action, "complete", None):
            action.complete = getattr(shtab, completed)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _say_paths(command, shtab)
