"""The parsers of the commands, as each hands its own to argparse: for sphinx-argparse."""

import argparse
import sys
from unittest import mock

from mfmd import cli


class _Found(Exception):
    pass


def _of(command):
    def stop(parser, *_, **__):
        raise _Found(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop), mock.patch.object(sys, "argv", ["mfmd"]):
        try:
            command()
        except _Found as found:
            return found.args[0]


def mfmd():
    return _of(cli.main)


def mfmd_train():
    return _of(cli.train)
