"""`longctx models`: shape presets, and the models on this machine."""

from __future__ import annotations

import typer

from longctx.cli.common import command_app

app = command_app()


@app.command()
def models(
    json: bool = typer.Option(False, "--json", help="Print a list of objects."),
    dtype: str = typer.Option(
        "bfloat16", "--dtype", help="Dtype of the weights and the KV cache that sizes are for."
    ),
) -> None:
    """List the built-in model, shape presets and cached models, with weights and bytes per token."""
    from longctx.catalogue import list_models

    list_models(as_json=json, dtype=dtype)
