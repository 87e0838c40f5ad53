"""`apex keys`: make, list and revoke the keys of tcp connections."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from apex.errors import UsageError
from apex.wire.messages import Role

folder_argument = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))


@click.group()
def keys() -> None:
    """Make, list and revoke the keys of a suite that listens on tcp."""


@keys.command()
@folder_argument
@click.option(
    "--role",
    type=click.Choice(get_args(Role)),
    help="Add one key to FOLDER, for another host.",
)
@click.option("--name", help="Name of the added key, for `apex keys revoke`.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Folder for the added key, to be copied to the other host.")  # fmt: skip
def new(folder: Path, role: str | None, name: str | None, out: Path | None) -> None:
    """Make FOLDER with a key for the server and one for each role, or add one key to it.

    Set keys = "FOLDER" in the endpoints file. The role of a key limits what it permits: an actor's
    key permits inserts and fetching parameters, nothing else.
    """
    from apex.wire.curve_keys import add_key, make_folder

    added = (role, name, out)
    if any(added) and not all(added):
        raise UsageError("expected --role, --name and --out together, to add a key")
    try:
        if role and name and out:
            key = add_key(folder, name, role, out)  # type: ignore[arg-type]
            click.echo(
                f"copy {out} to the other host, and set keys to its path in endpoints.toml there"
            )
            click.echo(
                f"{key.name} may connect as {key.role} until you revoke it with `apex keys revoke`"
            )
            return
        made = make_folder(folder)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    click.echo(f"{folder}: keys for {', '.join(key.role for key in made)}")
    click.echo(f'write at the top of your endpoints file: keys = "{folder.resolve()}"')


@keys.command(name="list")
@folder_argument
def list_keys(folder: Path) -> None:
    """List the keys that may connect: name, role and public key."""
    from apex.wire.curve_keys import authorized_keys

    _check_is_folder_of_keys(folder)
    for key in sorted(authorized_keys(folder).values(), key=lambda key: key.name):
        click.echo(f"{key.name:<16} {key.role:<10} {key.public}")


@keys.command()
@folder_argument
@click.argument("name")
def revoke(folder: Path, name: str) -> None:
    """Revoke the key NAME. Open connections that use it are refused within seconds."""
    from apex.wire.curve_keys import revoke as revoke_key

    _check_is_folder_of_keys(folder)
    revoke_key(folder, name)
    click.echo(f"{name} is revoked")


def _check_is_folder_of_keys(folder: Path) -> None:
    if not (folder / "authorized").is_dir():
        raise UsageError(
            f"expected a folder of `apex keys new DIR`, but {folder} has no authorized/ in it"
        )
