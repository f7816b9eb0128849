"""The command line `transform`: `main` is what the console script calls."""


def main() -> None:
    """Run the command line."""
    from transform.cli.app import main as run  # typer and rich are not needed before

    run()
