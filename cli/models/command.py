"""`pippin models`: the commands and their options. What they do is in the modules beside this."""

from __future__ import annotations

from typing import Annotated

import typer

from pippin.core.models.convert_options import QuantMode, Recipe, WeightDtype

from ..completion import complete_models

app = typer.Typer(rich_markup_mode=None)

_DEFAULT_URL = "http://127.0.0.1:8000"


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON. Default: off.")]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="NAME",
        help="Branch, tag or commit of the hub repository. Default: the branch main.",
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An alias, a name that `pippin models ls` shows, 'demo', a folder, a .gguf file, or a "
        "hub id like org/name.",
        autocompletion=complete_models,
    ),
]


@app.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Fetch models, look at them, convert them and try them."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("ls")
def list_models(
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="Address of a server whose models are listed too. Default: "
            f"{_DEFAULT_URL}, if a server answers there.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            help="Key of the server, if it wants one. Default: none.",
            envvar="PIPPIN_API_KEY",
        ),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List models on this disk, and a server's."""
    from .list_models import run_list

    run_list(url, default_url=_DEFAULT_URL, api_key=api_key, as_json=as_json)


@app.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A hub id like org/name, an alias of one, or 'demo'."),
    ],
    revision: RevisionOption = None,
    *,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read what is there already too, compare it with the hub's checksums, and fetch "
            "again what is damaged. Default: off.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model from the hub.

    Only what is missing is fetched, and an interrupted file goes on where it stopped. Sizes are
    compared with the hub's, and so are the checksums of all that is fetched.
    """
    from .pull import run_pull

    run_pull(model, revision, verify=verify, as_json=as_json)


@app.command()
def show(model: ModelArgument, *, as_json: JsonOption = False) -> None:
    """Show a model, and what of it fits this machine.

    Its settings, its kinds of layers, what a token costs in the KV cache, and how long a context
    and how many sequences the memory holds. No weights are loaded.
    """
    from .show import run_show

    run_show(model, as_json=as_json)


@app.command()
def rm(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A name that `pippin models ls` shows, or an alias of one."
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            metavar="NAME",
            help="Only this commit of a hub repository, or its beginning. Default: all of them.",
        ),
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. Default: ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a model from this disk.

    Nothing is deleted while it is being fetched or made.
    """
    from .remove import run_remove

    run_remove(model, revision, yes=yes, as_json=as_json)


@app.command()
def alias(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The short name. Without it, all aliases are listed."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="The model it stands for. Without it, the alias of this name is shown.",
        ),
    ] = None,
    *,
    remove: Annotated[
        bool, typer.Option("--remove", help="Forget the alias NAME. Default: off.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Give a model a short name; list or forget these.

    Every command takes an alias where it takes a model. They are kept in aliases.toml, in pippin's
    configuration folder or in the folder that PIPPIN_CONFIG_DIR names.
    """
    if remove and (name is None or target is not None):
        raise typer.BadParameter("--remove takes a NAME and no TARGET")
    from .alias import run_alias

    run_alias(name, target, remove=remove, as_json=as_json)


@app.command()
def convert(  # noqa: PLR0913 - typer makes one parameter of every option
    model: ModelArgument,
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="NAME",
            help="The new model's name in pippin's cache folder; with a slash in it, the path of "
            "the folder to make. Default: the model's name and what was done to it.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits",
            help="Quantise the weights to so many bits: 2, 3, 4, 5, 6 or 8. Default: the mode's "
            "own number, if any of the other options asks for quantisation.",
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            "--group-size",
            help="Weights that share a scale: 32, 64 or 128. Default: 64, or the mode's own "
            "number.",
        ),
    ] = None,
    mode: Annotated[
        QuantMode | None,
        typer.Option("--mode", help="Format of quantised weights. Default: affine."),
    ] = None,
    recipe: Annotated[
        Recipe | None,
        typer.Option(
            "--recipe",
            help="Quantise to two numbers of bits: the second one for layers that suffer most. "
            "Default: none.",
        ),
    ] = None,
    dtype: Annotated[
        WeightDtype | None,
        typer.Option(
            "--dtype", help="Dtype of scales and of plain weights. Default: the model's own."
        ),
    ] = None,
    dequantize: Annotated[
        bool,
        typer.Option("--dequantize", help="Make plain numbers of quantised weights. Default: off."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Quantise a model, change its dtype, or unpack a GGUF.

    Nothing is overwritten, and the new folder appears when it is complete.
    """
    from .convert import run_convert

    run_convert(
        model,
        output,
        as_json=as_json,
        bits=bits,
        group_size=group_size,
        mode=mode,
        recipe=recipe,
        dtype=dtype,
        dequantize=dequantize,
    )


@app.command()
def check(model: ModelArgument, *, as_json: JsonOption = False) -> None:
    """Load a model and try it with one token.

    Tells whether its tokenizer and its chat template work, which dialects of tool calls and of
    reasoning were found, whether the KV cache is paged or why not, and how attention is computed.
    The exit code is 1 if something fails.
    """
    from .check import run_check

    run_check(model, as_json=as_json)
