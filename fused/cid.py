"""CIDs as plain bytes: cheap to hash, to compare and to keep by the hundred thousand.

A `CID` is the binary form of a CIDv1 (https://github.com/multiformats/cid): version, codec, multihash.
Everything this program writes uses sha2-256; foreign trees may use other hashes and CIDv0, which is
turned into the CIDv1 of the same block on the way in.
"""

from __future__ import annotations

import hashlib
from base64 import b32decode, b32encode
from typing import TYPE_CHECKING, NewType

import libipld

from fused.errors import BlockCorrupt, DagError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

CID = NewType("CID", bytes)

RAW = 0x55
DAG_PB = 0x70
DAG_CBOR = 0x71

IDENTITY = 0x00
SHA2_256 = 0x12

# The limits of Kubo (boxo verifcid/cid.go): a shorter digest could be forged, a longer one names no known hash,
# and an identity "digest", which is the block itself, is allowed for tiny blocks only.
MIN_DIGEST = 20
MAX_DIGEST = 128
MAX_IDENTITY = 128

_BASE32 = "b"  # the multibase prefix of what we print

_MAX_TEXT = 2048  # characters: the longest CID that we take has 147 bytes, eight characters each in base 2

_SHA2_256_HEADS = {codec: bytes((0x01, codec, SHA2_256, 32)) for codec in (RAW, DAG_PB, DAG_CBOR)}
_KNOWN_HEADS = frozenset(_SHA2_256_HEADS.values())
_sha256 = hashlib.sha256

# https://github.com/multiformats/multicodec/blob/master/table.csv, as far as Kubo allows them and the
# standard library has them. BLAKE3 and Keccak are missing there; hardly any tree uses them.
_HASHES: dict[int, Callable[[bytes], bytes]] = {
    0x11: lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    SHA2_256: lambda data: hashlib.sha256(data).digest(),
    0x13: lambda data: hashlib.sha512(data).digest(),
    0x14: lambda data: hashlib.sha3_512(data).digest(),
    0x15: lambda data: hashlib.sha3_384(data).digest(),
    0x16: lambda data: hashlib.sha3_256(data).digest(),
    0x17: lambda data: hashlib.sha3_224(data).digest(),
    0x56: lambda data: hashlib.sha256(hashlib.sha256(data).digest()).digest(),
}


def cid_of(codec: int, data: bytes) -> CID:
    """The CIDv1 of `data` under sha2-256. `codec` is RAW, DAG_PB or DAG_CBOR."""
    return CID(_SHA2_256_HEADS[codec] + _sha256(data).digest())


def cid_from_bytes(raw: bytes) -> CID:
    """The CID whose binary form is exactly `raw`; a CIDv0 becomes the CIDv1 of the same block.

    Raises DagError: binary CIDs come out of blocks that others may have made.
    """
    if len(raw) == 36 and raw[:4] in _KNOWN_HEADS:  # nearly every link that we ever see
        return CID(raw)
    if len(raw) == 34 and raw[0] == SHA2_256 and raw[1] == 32:
        return CID(_SHA2_256_HEADS[DAG_PB] + raw[2:])
    version, at = _varint(raw, 0)
    if version != 1:
        raise DagError(f"a link holds {raw[:40].hex()}, which is not a CID")
    _, at = _varint(raw, at)
    function, at = _varint(raw, at)
    length, at = _varint(raw, at)
    if len(raw) - at != length:
        raise DagError(f"a link holds {raw[:40].hex()}, which is a CID of the wrong length")
    if function == IDENTITY:
        if length > MAX_IDENTITY:
            raise DagError(f"a CID with an inline block of {length} bytes; at most {MAX_IDENTITY} are allowed")
    elif not MIN_DIGEST <= length <= MAX_DIGEST:
        raise DagError(f"a CID with a digest of {length} bytes; {MIN_DIGEST} to {MAX_DIGEST} are allowed")
    return CID(raw)


def format_cid(cid: CID) -> str:
    """The text form, lower-case base32 (`bafy…`). Never fails, so that error messages can use it."""
    try:
        return str(libipld.encode_cid(bytes(cid)))
    except ValueError:
        try:
            cid_from_bytes(cid)
        except DagError:
            return f"(not a CID: {cid.hex()})"
        return _BASE32 + b32encode(cid).decode().rstrip("=").lower()  # as in _from_base32


def parse_cid(text: str) -> CID:
    """The CID that `text` names, in any base. Raises UsageError with a sentence for a person if it is none."""
    try:
        # libipld takes whatever stands before "/ipfs/" for nothing, and a second for 60,000 digits of base 58 or 36.
        if "/" in text or len(text) > _MAX_TEXT:
            raise ValueError
        try:
            parts = libipld.decode_cid(text)
        except ValueError:  # also for a digest above 64 bytes, which it does not know
            return _from_base32(text)
        digest = parts["hash"]
        if parts["version"] == 0:
            return cid_from_bytes(bytes((SHA2_256, 32)) + digest["digest"])
        head = b"".join(map(encode_varint, (1, parts["codec"], digest["code"], len(digest["digest"]))))
        return cid_from_bytes(head + digest["digest"])
    except (ValueError, DagError) as err:
        shown = text if len(text) <= _MAX_TEXT else text[:40] + "…"
        raise UsageError(f"{shown!r} is not a CID") from err


def _from_base32(text: str) -> CID:
    """The CID whose text form is exactly `text`. Raises ValueError, DagError."""
    cid = cid_from_bytes(b32decode(text[1:].upper() + "=" * (-(len(text) - 1) % 8)))
    if format_cid(cid) != text:
        raise ValueError
    return cid


def codec_of(cid: CID) -> int:
    """The codec in `cid`."""
    return cid[1] if cid[1] < 0x80 else _varint(cid, 1)[0]


def inline_block(cid: CID) -> bytes | None:
    """The block that an identity CID carries in itself, or None for a CID that is a hash.

    Such blocks are in no store: whoever fetches asks here first. Kubo makes them with `--inline`.
    """
    if cid[2] != IDENTITY and cid[1] < 0x80:
        return None
    function, digest = _multihash(cid)
    return digest if function == IDENTITY else None


def verify(cid: CID, data: bytes) -> None:
    """Raise BlockCorrupt unless `data` hashes to `cid`; DagError for a hash function that we don't know."""
    if cid[:4] in _KNOWN_HEADS:
        good = _sha256(data).digest() == cid[4:]
    else:
        function, digest = _multihash(cid)
        good = _hash(cid, function, len(digest), data) == digest
    if not good:
        raise BlockCorrupt(cid)


def encode_varint(value: int) -> bytes:
    """Unsigned LEB128, as multiformats and Protocol Buffers write their numbers."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """The multiformats varint at `at` and the offset behind it: minimal, at most 9 bytes (unsigned-varint spec)."""
    value = shift = 0
    for here in range(at, min(at + 9, len(raw))):
        byte = raw[here]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and here > at:
                break
            return value, here + 1
        shift += 7
    raise DagError(f"a link holds {raw[:40].hex()}, which is not a CID")


def _multihash(cid: CID) -> tuple[int, bytes]:
    """The hash function's code and the digest."""
    _, at = _varint(cid, 1)
    function, at = _varint(cid, at)
    _, at = _varint(cid, at)
    return function, cid[at:]


def _hash(cid: CID, function: int, length: int, data: bytes) -> bytes:
    """`data` under the hash function with this multihash code, cut to `length` as multihash allows."""
    if function == IDENTITY:
        return data
    if 0xB201 <= function <= 0xB240:  # blake2b-8 … blake2b-512
        return hashlib.blake2b(data, digest_size=function - 0xB200).digest()[:length]
    if 0xB241 <= function <= 0xB260:  # blake2s-8 … blake2s-256
        return hashlib.blake2s(data, digest_size=function - 0xB240).digest()[:length]
    if function not in _HASHES:
        raise DagError(f"its hash function {function:#x} is not known here, so it can't be verified", cid)
    return _HASHES[function](data)[:length]
