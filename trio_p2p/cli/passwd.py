"""`passwd`: the users of a password file."""

from __future__ import annotations

from pathlib import Path

import click

from trio_p2p.cli.console import tell
from trio_p2p.cli.options import find_new_password
from trio_p2p.security.passwords import remove_user, set_password


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("user")
@click.option("--delete", "is_delete", is_flag=True, help="Remove the user instead.")
def passwd(file: Path, user: str, is_delete: bool) -> None:
    """Add USER to a password file, or give it a new password, for `listen --users FILE`.

    The password is asked for, or taken from TRIO_P2P_PASSWORD. The file is made if it is missing.
    It holds hashed passwords only, and listeners that use it notice the change.
    """
    if is_delete:
        if not remove_user(file, user):
            raise click.ClickException(f"there is no user {user!r} in {file}")
        tell(f"{user} removed")
    elif set_password(file, user, find_new_password(user)):
        tell(f"{user} added")
    else:
        tell(f"{user} has a new password")
