"""Signed caches: one allowed key, every byte; made and checked by OpenSSH itself."""

from __future__ import annotations

import shutil
import subprocess

import fsspec
import pytest
from conftest import RECIPE

from l2d.data.cache import store
from l2d.data.errors import CorruptPart, DataError, UsageError
from l2d.data.library import fetch, push, sign, verify

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH")


@pytest.fixture
def keys(tmp_path):
    """A signer's key, a stranger's, and a file that allows the first."""
    for name in ("signer", "stranger"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(tmp_path / name)]
        subprocess.run(words, check=True)
    allowed = tmp_path / "allowed_signers"
    allowed.write_text("ann@example.org " + (tmp_path / "signer.pub").read_text())
    return tmp_path / "signer", tmp_path / "stranger", allowed


def test_a_signature_travels_and_covers_everything(workshop, keys, tmp_path):
    mine, _, allowed = keys
    workshop.build(RECIPE)
    cache = workshop.folder / "cache"
    with pytest.raises(DataError, match="not signed"):
        verify(cache, signed=allowed)
    sign(cache, mine)
    assert verify(cache, signed=allowed) == verify(cache)
    fsspec.filesystem("memory").store.clear()
    push(cache, "memory://bucket/signed")
    fetch("memory://bucket/signed", tmp_path / "copy")
    verify(tmp_path / "copy", signed=allowed)
    for path in sorted(path for path in (tmp_path / "copy").rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        with pytest.raises(DataError):
            verify(tmp_path / "copy", signed=allowed)
        path.write_bytes(content)
    verify(tmp_path / "copy", signed=allowed)


def test_a_cache_that_was_rewritten_with_right_digests_is_not_what_was_signed(workshop, keys):
    """Digests tell damage; only the signature tells a forger."""
    mine, _, allowed = keys
    workshop.build(RECIPE)
    cache = workshop.folder / "cache"
    sign(cache, mine)
    record = cache / "agents" / "expert" / "agent.json"
    value = store.read_json(record)
    store.commit_json(record, value | {"description": "another one"}, replace=True)
    verify(cache)
    with pytest.raises(CorruptPart, match=r"not what ann@example\.org signed"):
        verify(cache, signed=allowed)
    sign(cache, mine)
    verify(cache, signed=allowed)


def test_a_stranger_and_a_key_that_is_none_are_refused(workshop, keys, tmp_path):
    _, other, allowed = keys
    workshop.build(RECIPE)
    cache = workshop.folder / "cache"
    sign(cache, other)
    with pytest.raises(DataError, match="not allowed"):
        verify(cache, signed=allowed)
    (tmp_path / "no key").write_text("not a key")
    with pytest.raises(UsageError, match="cannot be signed"):
        sign(cache, tmp_path / "no key")
    with pytest.raises(UsageError, match="allowed signers"):
        verify(cache, signed=tmp_path / "nowhere")


def test_a_signature_for_something_else_does_not_count(workshop, keys):
    from l2d.data.cache.pieces import SIGNATURE
    from l2d.data.cache.reader import CostCache
    from l2d.data.cache.signature import statement

    mine, _, allowed = keys
    workshop.build(RECIPE)
    message = workshop.folder / "message"
    message.write_bytes(statement(CostCache(workshop.folder / "cache")))
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", str(mine), "-n", "file", str(message)], check=True)
    (workshop.folder / "cache" / SIGNATURE).write_bytes((workshop.folder / "message.sig").read_bytes())
    with pytest.raises(CorruptPart, match="not what"):
        verify(workshop.folder / "cache", signed=allowed)
