"""mfmd check: whether a model gives right numbers on this machine."""

import dataclasses
import itertools
import math

from mfmd.commands.packages import remedy


def run(arguments):
    from mfmd.checking import cases, hosts
    from mfmd.checking.numbers import Numbers
    from mfmd.commands import doctor
    from mfmd.engine import model_path

    path = model_path(arguments.model)
    structures = cases.of_file(path, arguments.structure) if arguments.structure else cases.of_model(path)
    numbers, sizes, machine = Numbers(path, structures), [len(s.numbers) for s, _ in structures], doctor.engine()
    print(
        f"{len(structures)} structure{'s' if len(structures) > 1 else ''} of {arguments.structure or 'the model file'}, of {' and '.join(map(str, sorted(set(sizes))))} atoms; "
        f"instruction set {machine['instruction_set']}, {machine['threads']} threads"
    )
    made = []
    for check in itertools.chain(numbers.checks(), hosts.checks(numbers)):
        print(_line(check, len(structures)))
        made.append(check)
    passes = [check.passes for check in made]
    print(f"{passes.count(True)} pass, {passes.count(False)} fail, {passes.count(None)} left out")
    return {
        "model": str(arguments.model),
        "structures": [{"source": s.source, "atoms": len(s.numbers), "level": level} for s, level in structures],
        "engine": machine,
        "checks": [_document(check) for check in made],
        "failed": passes.count(False),
    }


def _document(check):
    """What is no number is null."""
    found = {kind: value if math.isfinite(value) else None for kind, value in check.found.items()}
    return dataclasses.asdict(check) | {"found": found, "passes": check.passes}


def _line(check, structures):
    from mfmd.checking.numbers import UNITS

    if check.left_out:
        return f"–     {check.name}: left out: {check.left_out}" + (f"; {remedy(check.lacks)}" if check.lacks else "")
    numbers = [f"{value:.1e} {UNITS[kind]} ({check.allowed[kind]:.0e} allowed)" for kind, value in check.found.items()]
    some = "" if check.fails or check.structures == structures else f" (of {check.structures} structures)"
    return f"{'ok  ' if check.passes else 'FAIL'}  {check.name}{some}: {check.fails or ', '.join(numbers)}"
