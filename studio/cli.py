"""The `bicot` command, whole: what cluster/cli.py has, and what stands above it."""

from cluster.cli import ConfigFile, Overrides, Policy, app, console, main, with_policy

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


if __name__ == "__main__":
    main()
