"""Backups: a consistent copy of a database that is in use.

A copy is made under another name and renamed when it is whole and on the disk, so that what stands
at the target is a backup or nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import lmdb

from trio_p2p.errors import DatabaseExistsError
from trio_p2p.store import files, identity
from trio_p2p.store.blob_files import BlobFiles
from trio_p2p.store.environment import DATA_FILE, Environment
from trio_p2p.store.transaction import store_error


def make_backup(environment: Environment, blob_files: BlobFiles, target: Path) -> None:
    """Copy the database as it is now. Blocks, but neither readers nor writers.

    Raises: DatabaseExistsError; StoreFullError, StoreError for what the operating system refuses.
    """
    if os.path.lexists(target):
        raise DatabaseExistsError("there is something at the backup's path", path=str(target))
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        unfinished.mkdir(parents=True)
        _copy(environment, unfinished)
        # Afterwards: none is removed meanwhile, so all that the copy names are still there.
        blob_files.copy_to(unfinished)
        unfinished.rename(target)
        files.sync_directory(target.parent)
    except OSError as exc:
        raise files.failure("the backup failed", target, exc) from exc
    except lmdb.Error as exc:
        raise store_error(exc) from exc
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _copy(environment: Environment, directory: Path) -> None:
    with (directory / DATA_FILE).open("xb") as file:
        environment.env.copyfd(file.fileno(), compact=True)
        os.fsync(file.fileno())
    identity.mark(directory)
