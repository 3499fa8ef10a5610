"""mfmd label: structures sampled and labelled."""

from mfmd import Error
from mfmd.commands import results


def run(arguments):
    from mfmd.config import load
    from mfmd.labelling import campaign, schema
    from mfmd.labelling.journal import Journal

    config = load(arguments.config, schema.Config, arguments.overrides)
    counts = campaign.run(config, arguments.retry, arguments.scheduler)
    for level, (good, bad) in counts.items():
        print(f"{level}: {good} labels{f', {bad} failed (see {config.out}/labels.jsonl; again with --retry)' if bad else ''}")
    print(f"structures for mfmd-train: {config.out}/; report: {config.out}/report.html")
    if nothing := [level for level, (good, _) in counts.items() if not good]:
        first = Journal(config.out / "labels.jsonl").first_failure(nothing[0])
        raise Error(f"{', '.join(nothing)}: not one label; the first failed: {first}")
    levels = {level: {"labels": good, "failed": bad} for level, (good, bad) in counts.items()}
    return {"out": str(config.out), "levels": levels, "files": results.files(config.out)}
