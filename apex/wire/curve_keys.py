"""CURVE keys: create, read and revoke the key files that control who may connect over tcp.

A key folder contains

    server.secret           key pair of the daemons that bind endpoints
    server.public           by which clients recognise those daemons
    ROLE.secret             key pair of a client of this host with that role
    authorized/NAME.public  a client that may connect, and its role

Only its owner may read a secret file (mode 0600). Another host gets a folder with
`server.public` and a secret for its role; removing `authorized/NAME.public` revokes a key.
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
    """A key pair, or only its public key. Keys are Z85 strings of 40 characters."""

    name: str
    role: KeyRole
    public: str
    secret: str = ""

    @property
    def public_half(self) -> Key:
        """The key without its secret, which others may read."""
        return msgspec.structs.replace(self, secret="")


def new_key(name: str, role: KeyRole) -> Key:
    """Create a key pair. Raises `UsageError` for a name that cannot be a file name."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            "expected a key name of at most 64 letters, digits, '_', '.' and '-', a letter or "
            f"digit first; got {name!r}"
        )
    public, secret = zmq.curve_keypair()
    return Key(name, role, public.decode(), secret.decode())


def make_folder(folder: Path) -> list[Key]:
    """Create a key folder with a key for the server and one for each role.

    Returns:
        The created keys.

    Raises:
        UsageError: the folder has keys already, or other users can write to it.
        OSError: the folder cannot be created or written.
    """
    if (folder / "server.secret").exists():
        raise UsageError(
            f"{folder} already has keys; add a key with --role, or choose another folder"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"other users can write to {folder}; run chmod go-w on it, or choose a new folder"
        )
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
    """Create and authorize one more key.

    Args:
        folder: the server's key folder.
        name: of the new key.
        role: in which its holder may connect.
        target: folder for the secret and `server.public`, to be copied to another host.

    Raises:
        UsageError: the name is taken, `target` has a secret for the role, or `folder` has no keys.
        OSError: a file cannot be written.
    """
    server = read_key(folder / "server.public")
    authorized = folder / "authorized" / f"{name}.public"
    key = new_key(name, role)
    if authorized.exists():
        raise UsageError(f"{authorized} already exists; choose another name or revoke that key")
    secret = target / f"{role}.secret"
    if secret.exists():
        raise UsageError(f"{secret} already exists; choose another folder for the new key")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    _keep_from_git(target)
    _write(target / "server.public", server)
    _write(secret, key)
    _write(authorized, key.public_half)
    return key


def revoke(folder: Path, name: str) -> None:
    """Revoke a key; its open connections are refused within seconds.

    Raises:
        UsageError: no authorized key has this name.
    """
    if (
        not re.fullmatch(NAME_PATTERN, name)
        or not (folder / "authorized" / f"{name}.public").exists()
    ):
        known = ", ".join(sorted(key.name for key in authorized_keys(folder).values()))
        raise UsageError(
            f"no key {name!r} in {folder / 'authorized'}; expected one of: {known or '(no keys)'}"
        )
    (folder / "authorized" / f"{name}.public").unlink()


def _keep_from_git(folder: Path) -> None:
    """Make git ignore the folder, so that secrets in a checkout are not published."""
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
    """Read a key file. Raises `EndpointError`."""
    try:
        key = msgspec.convert(read_toml(path), Key)
    except (ConfigError, msgspec.ValidationError) as error:
        raise EndpointError(
            f"key {path}: {error}; `apex keys new {path.parent}` creates a key folder"
        ) from None
    if any(len(text) != 40 for text in (key.public, *filter(None, [key.secret]))):
        raise EndpointError(f"key {path}: expected a key of 40 characters (Z85)")
    return key


def read_secret(path: Path) -> Key:
    """Read a key pair from a file that only this user can read.

    Raises:
        EndpointError: the file is missing, belongs to another user, is readable by others, or
            has no secret key.
    """
    check_private(path)
    key = read_key(path)
    if not key.secret:
        raise EndpointError(f"key {path}: expected a key pair, got only a public key")
    return key


def client_keys(folder: Path, role: Role) -> tuple[Key, Key]:
    """Read the keys with which a client of a role connects.

    Returns:
        The client's key pair and the server's public key.

    Raises:
        EndpointError: a key is missing or cannot be used, or the pair is for another role.
    """
    own = read_secret(folder / f"{role}.secret")
    if own.role != role:
        raise EndpointError(
            f"key {folder / role}.secret: expected the role '{role}', got '{own.role}'"
        )
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
            f"key {path}: {error.strerror}; `apex keys new {path.parent}` creates a key folder"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise EndpointError(
            f"key {path}: expected a regular file (a link, perhaps?); put the key itself there"
        )
    if status.st_uid != os.getuid():
        raise EndpointError(
            f"key {path} belongs to user {status.st_uid}; expected user {os.getuid()} (chown it)"
        )
    if status.st_mode & 0o077:
        raise EndpointError(
            f"key {path} can be read by other users (mode {status.st_mode & 0o777:04o}): run "
            f"chmod 600 {path}, and create a new key if others may have read it"
        )


def authorized_keys(folder: Path, earlier: Mapping[str, Key] = {}) -> dict[str, Key]:
    """Read the authorized keys, by public key; invalid files are skipped with a warning.

    Args:
        folder: the key folder.
        earlier: result of an earlier call; its key is used for a file that cannot be read now.

    Raises:
        OSError: the folder cannot be read; earlier results remain valid.
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
                raise EndpointError(f"key {path} is ignored: {problem}")
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
