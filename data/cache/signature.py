"""Who made a cache: a detached SSH signature over its records, made and checked by OpenSSH's ``ssh-keygen -Y``.

What is signed is a list of SHA-256 digests: of ``cache.json``, every ``agent.json`` and every seal, and of what agents
froze. The seals hold the digests of all parts, so one signature covers every byte. It lies in the cache as
``signature.sshsig`` and travels with it. To check it takes a file of allowed signers (``ssh-keygen(1)``): lines of a
name and a public key.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from l2d.data.cache import store
from l2d.data.cache.integrity import sha256_of
from l2d.data.cache.pieces import MOST_SIGNATURE, SIGNATURE, read_pieces
from l2d.data.cache.places import Folder, Place
from l2d.data.cache.reader import CostCache
from l2d.data.errors import CorruptPart, DataError, UsageError

NAMESPACE = "l2d-cache"  # a signature made for something else does not count


def statement(cache: CostCache) -> bytes:
    """What is signed: a line ``DIGEST  NAME`` for each record and frozen file, in the order of names.

    Raises:
        IncompleteCache: a record or seal is missing.
    """
    pieces = read_pieces(_place(cache).read, cache.address)
    frozen = [piece.name for piece in pieces.parts if piece.size is None]
    lines = {piece.name: piece.sha256 for piece in pieces.records if piece.name != SIGNATURE}
    lines |= {name: sha256_of(cache.file(cache.path / name)) for name in frozen}
    return "".join(f"{lines[name]}  {name}\n" for name in sorted(lines)).encode()


def _place(cache: CostCache) -> Place:
    return Folder(cache.path) if cache.mirror is None else cache.mirror.place


def sign(cache: CostCache, key: Path) -> Path:
    """Sign a complete cache, in place of an earlier signature.

    Args:
        key: a private SSH key, or a public one whose private part an agent holds.

    Returns:
        The signature's file.

    Raises:
        IncompleteCache, CorruptPart: the cache is not whole.
        UsageError: the key cannot be used, or there is no ``ssh-keygen``.
    """
    cache.require_local()
    cache.verify()
    with tempfile.TemporaryDirectory(prefix="l2d-sign-") as folder:
        message = Path(folder) / "statement"
        with open(message, "wb") as file:
            file.write(statement(cache))
        done = _keygen("sign", "-f", str(key), "-n", NAMESPACE, str(message))
        signature = message.with_name("statement.sig")
        if done.returncode or not signature.is_file():
            raise UsageError(f"it cannot be signed: {_last(done)}", where=key, hint="give a private SSH key as --key")
        store.commit_bytes(cache.path / SIGNATURE, signature.read_bytes(), replace=True)
    return cache.path / SIGNATURE


def signer(cache: CostCache, allowed: Path) -> str:
    """The allowed signer who signed a cache as it is now.

    Args:
        allowed: a file of allowed signers.

    Raises:
        DataError: it is not signed, or not by one of them.
        CorruptPart: it is signed, and has changed since.
        UsageError: there is no such file, or no ``ssh-keygen``.
    """
    if not allowed.is_file():
        raise UsageError("there is no file of allowed signers", where=allowed, hint="lines of a name and a public key")
    content = _place(cache).read(SIGNATURE, MOST_SIGNATURE)
    if content is None:
        raise DataError("this cache is not signed", where=cache.address, hint="ask its maker to run l2d sign")
    with tempfile.TemporaryDirectory(prefix="l2d-signer-") as folder:
        signature = Path(folder) / SIGNATURE
        with open(signature, "wb") as file:
            file.write(content)
        found = _keygen("find-principals", "-f", str(allowed), "-s", str(signature))
        names = found.stdout.decode(errors="replace").split("\n")[0].split(",")
        if found.returncode or not names[0]:
            raise DataError(
                "it is signed by a key that is not allowed", where=cache.address, hint=f"allowed are those of {allowed}"
            )
        message = statement(cache)
        for name in names:
            about = ("-f", str(allowed), "-I", name, "-n", NAMESPACE, "-s", str(signature))
            checked = _keygen("verify", *about, message=message)
            if not checked.returncode:
                return name
    raise CorruptPart(
        f"is not what {names[0]} signed: {_last(checked)}", where=cache.address, hint="fetch it again, or ask its maker"
    )


def _keygen(action: str, *arguments: str, message: bytes = b"") -> subprocess.CompletedProcess:
    try:
        return subprocess.run(["ssh-keygen", "-Y", action, *arguments], input=message, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise UsageError("there is no ssh-keygen", hint="install OpenSSH 8.2 or newer") from error


def _last(done: subprocess.CompletedProcess) -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ssh-keygen ended with {done.returncode}"
