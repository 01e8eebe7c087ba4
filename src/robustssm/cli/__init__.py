"""The command line; each verb is a few lines around a function of the library."""


def main() -> None:
    """Runs the command line."""
    from robustssm.cli.app import main as run

    run()
