"""CURVE keys: files that say who may connect over tcp, and in which role.

A folder of keys holds

    server.secret           of the daemons that bind
    server.public           what those who connect know them by
    ROLE.secret             of whoever connects from here in this role
    authorized/NAME.public  who is let in, and in which role

A secret file is its owner's alone (0600). Another host gets a folder with `server.public` and
one secret of its own; removing `authorized/NAME.public` revokes a key.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

import msgspec
import tomli_w
import zmq  # noqa: TID251

from apex.config.loading import read_toml
from apex.errors import ConfigError, EndpointError, UsageError
from apex.host.files import replace_file, writer_problem
from apex.wire.messages import NAME_PATTERN, Role

log = logging.getLogger("apex.wire")

KeyRole: TypeAlias = Literal["server"] | Role
SERVER: Final = "server"


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key pair, or its public half. Keys are Z85 text of 40 characters."""

    name: str
    role: KeyRole
    public: str
    secret: str = ""

    @property
    def public_half(self) -> Key:
        """What others may know."""
        return msgspec.structs.replace(self, secret="")


def new_key(name: str, role: KeyRole) -> Key:
    """A new pair. Raises `UsageError` for a name that is no file's."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            f"a key's name has letters, digits, '_', '.' and '-', at most 64; got {name!r}"
        )
    public, secret = zmq.curve_keypair()
    return Key(name, role, public.decode(), secret.decode())


def make_folder(folder: Path) -> list[Key]:
    """Make a folder with the server's key and one for each role; gives those that were made.

    Raises:
        UsageError: there are keys already, or others can write to the folder.
        OSError: the folder cannot be made or written.
    """
    if (folder / "server.secret").exists():
        raise UsageError(f"{folder} has keys already; add one with --role, or name another folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(f"{folder} can be written by others; name a new folder, or chmod go-w it")
    (folder / "authorized").mkdir(mode=0o700, exist_ok=True)
    _keep_from_git(folder)
    server = new_key(SERVER, SERVER)
    _write(folder / "server.secret", server)
    _write(folder / "server.public", server.public_half)
    made = [server]
    for role in get_args(Role):
        key = new_key(role, role)
        _write(folder / f"{role}.secret", key)
        _write(folder / "authorized" / f"{role}.public", key.public_half)
        made.append(key)
    return made


def add_key(folder: Path, name: str, role: Role, target: Path) -> Key:
    """Let in one more: its secret goes into the folder `target`, ready for another host.

    Raises:
        UsageError: the name or the secret's place is taken, or `folder` has no keys.
        OSError: a file cannot be written.
    """
    server = read_key(folder / "server.public")
    authorized = folder / "authorized" / f"{name}.public"
    key = new_key(name, role)
    if authorized.exists():
        raise UsageError(f"{authorized} is there already; choose another name or revoke it first")
    secret = target / f"{role}.secret"
    if secret.exists():
        raise UsageError(f"{secret} is there already; name another folder for the new key")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    _keep_from_git(target)
    _write(target / "server.public", server)
    _write(secret, key)
    _write(authorized, key.public_half)
    return key


def revoke(folder: Path, name: str) -> None:
    """Let a key in no longer; what it sends is refused within seconds. Raises `UsageError`."""
    if (
        not re.fullmatch(NAME_PATTERN, name)
        or not (folder / "authorized" / f"{name}.public").exists()
    ):
        known = ", ".join(sorted(key.name for key in authorized_keys(folder).values()))
        raise UsageError(f"{folder / 'authorized'} has no key {name!r}; it has {known or 'none'}")
    (folder / "authorized" / f"{name}.public").unlink()


def _keep_from_git(folder: Path) -> None:
    """Secrets in a checkout are soon published ones."""
    (folder / ".gitignore").write_text("*\n")


def _write(path: Path, key: Key) -> None:
    data = msgspec.to_builtins(key)
    if not key.secret:
        del data["secret"]
    previous = os.umask(0o077)
    try:
        replace_file(path, tomli_w.dumps(data).encode())
    finally:
        os.umask(previous)


def read_key(path: Path) -> Key:
    """Read a public key. Raises `EndpointError`."""
    try:
        key = msgspec.convert(read_toml(path), Key)
    except (ConfigError, msgspec.ValidationError) as error:
        raise EndpointError(
            f"key {path}: {error}; `apex keys new {path.parent}` makes a folder of keys"
        ) from None
    if any(len(text) != 40 for text in (key.public, *filter(None, [key.secret]))):
        raise EndpointError(f"key {path}: a key is Z85 text of 40 characters")
    return key


def read_secret(path: Path) -> Key:
    """Read a key pair whose file nobody else can read.

    Raises:
        EndpointError: it is missing, another's, open to others, or no pair.
    """
    check_private(path)
    key = read_key(path)
    if not key.secret:
        raise EndpointError(f"key {path} is only a public half; the secret one is needed here")
    return key


def client_keys(folder: Path, role: Role) -> tuple[Key, Key]:
    """The key of whoever connects in a role, and the server's public half.

    Raises:
        EndpointError: one is missing or cannot be used, or the key is for another role.
    """
    own = read_secret(folder / f"{role}.secret")
    if own.role != role:
        raise EndpointError(f"key {folder / role}.secret is for the role '{own.role}'")
    server = read_key(folder / "server.public")
    problem = writer_problem(folder / "server.public")
    if problem is not None:
        raise EndpointError(f"key {folder / 'server.public'}: {problem}")
    return own, server


def check_private(path: Path) -> None:
    """Raise `EndpointError` unless `path` is a file of this user that nobody else can read."""
    try:
        status = path.lstat()
    except OSError as error:
        raise EndpointError(
            f"key {path}: {error.strerror}; `apex keys new {path.parent}` makes a folder of keys"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise EndpointError(f"key {path} is no plain file (a link?); put the key itself there")
    if status.st_uid != os.getuid():
        raise EndpointError(f"key {path} belongs to user {status.st_uid}, not to you")
    if status.st_mode & 0o077:
        raise EndpointError(
            f"key {path} can be read by others (mode {status.st_mode & 0o777:04o}): "
            f"chmod 600 {path}, and make a new key if others may have read it"
        )


def authorized_keys(folder: Path, earlier: Mapping[str, Key] = {}) -> dict[str, Key]:
    """Who is let in, by public key; a file that is no key is named in the log and passed over.

    Args:
        folder: of the keys.
        earlier: what was found before; holds for a file that cannot be read just now.

    Raises:
        OSError: the folder cannot be read now, which says nothing about who is let in.
    """
    found: dict[str, Key] = {}
    authorized = folder / "authorized"
    for name in sorted(os.listdir(authorized)):
        if not name.endswith(".public"):
            continue
        path = authorized / name
        try:
            path.read_bytes()
            problem = writer_problem(path)
            if problem is not None:
                raise EndpointError(f"key {path} is passed over: {problem}")
            key = read_key(path)
        except FileNotFoundError:
            continue
        except (EndpointError, OSError) as error:
            log.warning("%s", error)
            unread = isinstance(error, OSError)
            found |= {p: key for p, key in earlier.items() if unread and key.name == path.stem}
            continue
        if key.role != SERVER:
            found[key.public] = msgspec.structs.replace(key, name=path.stem)
    return found
