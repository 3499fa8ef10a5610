"""mfmd-train: one model on several levels of theory."""

from mfmd import progress
from mfmd.commands import results


def run(arguments):
    with progress.task("loading torch"):
        from mfmd.training import plan

    config = plan.load(arguments.config, arguments.overrides)
    if arguments.show_plan:
        print("\n".join(plan.describe(config)))
        return {"config": config.model_dump(mode="json")}
    from rich.console import Console

    with progress.task("loading torch"):
        from mfmd.training.processes import processes
        from mfmd.training.run import train

    errors = train(config, Console(stderr=arguments.json and not arguments.quiet))
    if processes()[0] > 0:
        return None
    rows = [{"split": split} | row for split, table in errors.items() for row in results.rows(table, "level", "label")]
    return {"out": str(config.out), "errors": rows, "files": results.files(config.out)}
