"""The whole `bicot` command: the commands of cluster/cli.py, and those that need this package."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli import ConfigFile, Overrides, Policy, app, console, main, with_policy
from policy.paths import home

__all__ = ["main"]


@app.command("serve-model")
def serve_model(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    policy: Policy = None,
):
    """Serve the model behind OpenAI's images API, until Ctrl-C."""
    from cluster.config import load_config
    from studio.serve_model import serve_model as run

    run(load_config(config, with_policy(overrides, policy)), console)


@app.command()
def studio(
    runs: Annotated[Path, typer.Argument(help="a folder of runs, or one run", parser=home)] = Path(
        "runs"
    ),
    model: Annotated[
        list[str], typer.Option(help="URL of a `bicot serve-model` to draw with; up to two")
    ] = [],  # noqa: B006 (typer copies it)
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one")] = 8090,
    token_env: Annotated[
        str | None, typer.Option(help="environment variable with the token to ask for")
    ] = None,
    model_token_env: Annotated[
        str | None, typer.Option(help="environment variable with the models' own token")
    ] = None,
):
    """Look at runs as they go on, compare them, draw with a served model: one page, until Ctrl-C."""
    from studio.serve_page import serve_page

    serve_page(runs, model, host, port, token_env, model_token_env, console)


if __name__ == "__main__":
    main()
