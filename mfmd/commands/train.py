"""mfmd-train: one model on several levels of theory."""


def run(arguments):
    from mfmd.training import plan

    config = plan.load(arguments.config, arguments.overrides)
    if arguments.show_plan:
        print("\n".join(plan.describe(config)))
        return
    from mfmd.training.run import train

    train(config)
