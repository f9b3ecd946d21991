"""CIDs: known values from elsewhere, and what must be refused."""

from __future__ import annotations

import hashlib

import pytest

from fused.cid import (
    CID,
    DAG_CBOR,
    DAG_PB,
    RAW,
    cid_from_bytes,
    cid_of,
    codec_of,
    encode_varint,
    format_cid,
    inline_block,
    parse_cid,
    verify,
)
from fused.errors import BlockCorrupt, DagError, UsageError

HELLO = "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"  # ipfs add --raw-leaves of "hello", any Kubo
EMPTY_DIRECTORY = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"  # in every Kubo repository


def identity(data: bytes, codec: int = RAW) -> CID:
    return CID(bytes((1, codec, 0, len(data))) + data)


def test_known_cids() -> None:
    assert format_cid(cid_of(RAW, b"hello")) == HELLO
    assert format_cid(cid_of(DAG_PB, b"\x0a\x02\x08\x01")) == EMPTY_DIRECTORY


@pytest.mark.parametrize("codec", [RAW, DAG_PB, DAG_CBOR])
def test_text_form_goes_there_and_back(codec: int) -> None:
    cid = cid_of(codec, b"x")
    assert parse_cid(format_cid(cid)) == cid
    assert codec_of(cid) == codec


@pytest.mark.parametrize(
    "text",
    [
        HELLO,
        HELLO.upper(),
        "zb2rhZfjRh2FHHB2RkHVEvL2vJnCTcu7kwRqgVsf9gpkLgteo",
        "f015512202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    ],
)
def test_every_base_names_the_same_block(text: str) -> None:
    assert parse_cid(text) == cid_of(RAW, b"hello")


def test_version_0_becomes_the_version_1_of_the_same_block() -> None:
    assert parse_cid("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn") == parse_cid(EMPTY_DIRECTORY)
    digest = hashlib.sha256(b"x").digest()
    assert cid_from_bytes(b"\x12\x20" + digest) == cid_of(DAG_PB, b"x")


@pytest.mark.parametrize(
    "text", ["", "hello", "/ipfs/" + HELLO, HELLO[:-1], HELLO + "a", "Qm", "b", "\udcff", "bafk\n"]
)
def test_what_is_no_cid_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="is not a CID"):
        parse_cid(text)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not a CID"),
        (b"\x01", "not a CID"),
        (b"\x02\x55\x12\x20" + bytes(32), "not a CID"),
        (b"\x01\x55\x12\x20" + bytes(31), "wrong length"),
        (b"\x01\x55\x12\x20" + bytes(33), "wrong length"),
        (b"\x01\x55\x12\x10" + bytes(16), "digest of 16 bytes"),
        (b"\x01\x55\x13\x81\x01" + bytes(129), "digest of 129 bytes"),
        (b"\x01\x55\x00\x81\x01" + bytes(129), "inline block of 129 bytes"),
        (b"\x01\xd5\x00\x12\x20" + bytes(32), "not a CID"),  # a varint that is longer than it need be
        (b"\x01" + b"\xff" * 20, "not a CID"),
        (b"\x12\x20" + bytes(31), "not a CID"),
    ],
)
def test_malformed_bytes_are_refused(raw: bytes, why: str) -> None:
    with pytest.raises(DagError, match=why):
        cid_from_bytes(raw)


def test_verify_accepts_the_block_and_refuses_another() -> None:
    cid = cid_of(RAW, b"hello")
    verify(cid, b"hello")
    with pytest.raises(BlockCorrupt, match=HELLO):
        verify(cid, b"hellO")


@pytest.mark.parametrize(
    ("function", "digest"),
    [
        (0x11, hashlib.sha1(b"x").digest()),
        (0x12, hashlib.sha256(b"x").digest()[:20]),
        (0x13, hashlib.sha512(b"x").digest()),
        (0x16, hashlib.sha3_256(b"x").digest()),
        (0x56, hashlib.sha256(hashlib.sha256(b"x").digest()).digest()),
        (0xB220, hashlib.blake2b(b"x", digest_size=32).digest()),
        (0xB260, hashlib.blake2s(b"x").digest()),
        (0x00, b"x"),
    ],
)
def test_other_hash_functions_are_verified_too(function: int, digest: bytes) -> None:
    cid = cid_from_bytes(b"\x01\x55" + encode_varint(function) + encode_varint(len(digest)) + digest)
    verify(cid, b"x")
    assert parse_cid(format_cid(cid)) == cid
    with pytest.raises(BlockCorrupt):
        verify(cid, b"y")


def test_unknown_hash_function_is_said_to_be_so() -> None:
    cid = cid_from_bytes(b"\x01\x55\x1e\x20" + bytes(32))
    with pytest.raises(DagError, match="hash function 0x1e"):
        verify(cid, b"x")


def test_identity_cid_carries_its_block() -> None:
    assert inline_block(cid_from_bytes(identity(b"inside"))) == b"inside"
    assert inline_block(cid_from_bytes(identity(b""))) == b""
    assert inline_block(cid_of(RAW, b"x")) is None
    dag_json = cid_from_bytes(b"\x01\xa9\x02\x12\x20" + bytes(32))  # a codec of two bytes
    assert inline_block(dag_json) is None
    assert codec_of(dag_json) == 0x0129


def test_formatting_never_fails() -> None:
    assert "not a CID" in format_cid(CID(b"junk"))
    assert "not a CID" in format_cid(CID(b""))


@pytest.mark.parametrize("function", [0x00, 0x63], ids=["inline block", "unknown hash"])
def test_cid_with_a_long_digest_has_a_text_form(function: int) -> None:
    """Found by fuzzing: an error about such a block could not name it, as libipld knows no digest above 64 bytes."""
    cid = cid_from_bytes(bytes((1, RAW, function, 99)) + b"c" * 99)
    text = format_cid(cid)
    assert text.startswith("baf")
    assert parse_cid(text) == cid
    with pytest.raises(UsageError):
        parse_cid(text[:-1] + "b")  # the same bytes, had not the last bits to be zero
    with pytest.raises(UsageError):
        parse_cid(text.upper())


def test_text_of_any_length_is_refused_at_once() -> None:
    """Decoding base 58 takes time with the square of the length."""
    for text in ("z" * 3_000_000, "Qm" * 1_000_000, "k" * 3_000_000):
        with pytest.raises(UsageError, match="is not a CID") as caught:
            parse_cid(text)
        assert len(str(caught.value)) < 100
