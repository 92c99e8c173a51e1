# SPDX-License-Identifier: BSD-3-Clause
"""RSA signatures verified by the arithmetic itself: one modular power, compared with the one correct padded block.

Hardened OpenSSL policies refuse SHA-1, and the whitelist's signature has no DigestInfo.  Pure.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey


def signed_block_matches(key: RSAPublicKey, signature: bytes, payload: bytes) -> bool:
    """Tell whether `signature` is `payload` in PKCS#1 v1.5 type-1 padding under `key`.

    `payload` is everything after the padding's zero byte: a DigestInfo with digest, or, for whitelists, bare text.
    """
    size = (key.key_size + 7) // 8
    filling = size - 3 - len(payload)
    if len(signature) != size or filling < 8:
        return False
    numbers = key.public_numbers()
    number = int.from_bytes(signature, "big")
    if number >= numbers.n:
        return False
    block = pow(number, numbers.e, numbers.n).to_bytes(size, "big")
    return block == b"\x00\x01" + b"\xff" * filling + b"\x00" + payload
