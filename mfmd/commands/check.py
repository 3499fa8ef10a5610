"""mfmd check: whether a model gives right numbers on this machine."""


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
    for check in (check for of in (numbers.checks(), hosts.checks(numbers)) for check in of):
        print(_line(check))
        made.append(check)
    passes = [check.passes for check in made]
    print(f"{passes.count(True)} pass, {passes.count(False)} fail, {passes.count(None)} left out")
    return {
        "model": str(arguments.model),
        "structures": [{"source": s.source, "atoms": len(s.numbers), "level": level} for s, level in structures],
        "engine": machine,
        "checks": [check._asdict() | {"passes": check.passes} for check in made],
        "failed": passes.count(False),
    }


def _line(check):
    from mfmd.checking.numbers import UNITS

    if check.left_out:
        return f"–     {check.name}: left out: {check.left_out}"
    numbers = [f"{check.found[kind]:.1e} {UNITS[kind]} ({allowed:.0e} allowed)" for kind, allowed in check.allowed.items()]
    return f"{'ok  ' if check.passes else 'FAIL'}  {check.name}: {check.fails or ', '.join(numbers)}"
