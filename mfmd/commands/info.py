"""mfmd info: what a model file holds."""

import json
import zipfile


def run(arguments):
    from mfmd.engine import load_model, model_path

    model, path = load_model(arguments.model), model_path(arguments.model)
    header = describe(path, model)
    if baked := _states_of_archive(path):
        for charge, multiplicity in baked["states"]:
            print(
                f"evaluates charge {charge}, multiplicity {multiplicity or 'the lowest that the electrons can have'}, whatever its host says"
            )
        header["archived"] = baked
    if str(arguments.model).startswith("mfmd:"):
        print(f"\n{path.with_suffix('.md').read_text()}", end="")
    return header


def _states_of_archive(path):
    """What an archive for a host that says no states has of them in it, or None."""
    from mfmd.hosts.states import ENTRY

    with zipfile.ZipFile(path) as archive:
        entry = next((name for name in archive.namelist() if name.endswith(f"/extra/{ENTRY}")), None)
        return entry and json.loads(archive.read(entry))


def describe(path, model):
    """Print what a model file holds, whose header is returned; model : of engine.load_model."""
    from ase.data import chemical_symbols

    header = json.loads(model.metadata)
    size = header["backbone"]
    print(f"{path}: format {header['format']}, sha256 {model.sha256[:16]}…")
    print(f"backbone: {size['kind']}, {size['channels']} channels, {size['layers']} layers, rank {size['rank']}, cutoff {size['cutoff']} Å")
    if variants := [f"{key} {value}" for key, value in size.items() if key not in ("kind", "channels", "layers", "rank", "cutoff")]:
        print(f"  {', '.join(variants)}")
    made = header.get("provenance", {})
    errors = made.get("errors", {})
    for level in header["levels"]:
        relative = f", relative to {level['delta_of']}" if level.get("delta_of") else ""
        elements = " ".join(chemical_symbols[z] for z in level["elements"])
        constant = f", {level['constant']:g} eV a structure beside its atoms" if level.get("constant") else ""
        print(f"level {level['name']}: {level['kind']} head{relative}{constant}; elements {elements}")
        if "states" in level:
            print(
                f"  charge and multiplicity: {'; '.join(f'{charge:+d} {multiplicity}' if charge else f'0 {multiplicity}' for charge, multiplicity in level['states'])}"
            )
        for split, table in errors.items():
            parts = []
            for kind, unit in (("energy", "meV"), ("forces", "meV/Å")):
                if row := table.get(f"{level['name']}.{kind}"):
                    parts.append(f"{kind} MAE {1e3 * row['mae']:.1f} {unit}")
            if parts:
                print(f"  {split}: {', '.join(parts)}")
    if tables := header.get("tables"):
        print(
            f"radial tables: within {tables['energy']:.1e} eV/atom and {tables['forces']:.1e} eV/Å of exact evaluation on "
            f"{tables['structures']} validation structures"
        )
    if isinstance(check := header.get("check"), list):
        print(f"in it for mfmd check: {len(check)} validation structures with their energies and forces")
    if domain := header.get("domain"):
        print(f"says what it was trained on: {domain['structures']} structures (docs/extrapolation.md)")
    if begun := made.get("checkpoint"):
        _beginning(begun)
    if origin := made.get("imported"):
        _origin(origin)
    print(f"made: {made['date']} by mfmd {made['mfmd']}" if "date" in made else f"made by mfmd {made.get('mfmd', '?')}")
    return header


def _beginning(begun):
    """Of a model whose training began from a file: which heads were taken, how far their levels have moved, and where that file came from."""
    heads = ", ".join(f"{level} from its head {source}" for level, source in begun["from"].items())
    print(f"trained from the model of sha256 {begun['sha256'][:16]}…: {heads}")
    for stage, levels in begun["moved"].items():
        for level, moved in levels.items():
            print(f"  {level} had moved by {1e3 * moved['energy']:.2f} meV/atom and {1e3 * moved['forces']:.1f} meV/Å after stage {stage}")
    if origin := begun["provenance"].get("imported"):
        _origin(origin)


def _origin(origin):
    """Of an imported model, what its files said of themselves."""
    print(f"imported from {origin['from']}: {origin['source']} ({origin['code']})")
    for name, digest in origin["sha256"].items():
        print(f"  {name}: sha256 {digest[:16]}…")
    if "authors_errors" in origin:
        print(f"  errors, as its authors give them: {'; '.join(origin['authors_errors'])}")
    if "metadata" in origin:
        print(f"  metadata: {json.dumps(origin['metadata'], ensure_ascii=False)}")
    if "licence" in origin:
        print(f"  licence: {origin['licence']}")
