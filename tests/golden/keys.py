#!/usr/bin/env python3
"""Computes the golden values of tests/unit/store-crypto from docs/format/keys.md alone, without the project's code.

AES-256-GCM is written out here (slowly) so that only Python's standard library is needed."""
import hashlib
import hmac


def derive(key, salt, info):
    extracted = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def make_sbox():
    sbox = [0] * 256
    p = q = 1
    while True:
        p = p ^ ((p << 1) & 0xFF) ^ (0x1B if p & 0x80 else 0)
        q ^= q << 1
        q ^= q << 2
        q ^= q << 4
        q &= 0xFF
        q ^= 0x09 if q & 0x80 else 0
        rotated = q
        value = q
        for _ in range(4):
            rotated = ((rotated << 1) | (rotated >> 7)) & 0xFF
            value ^= rotated
        sbox[p] = value ^ 0x63
        if p == 1:
            break
    sbox[0] = 0x63
    return sbox


SBOX = make_sbox()


def double(b):
    return ((b << 1) ^ (0x1B if b & 0x80 else 0)) & 0xFF


def expand(key):
    words = [list(key[i : i + 4]) for i in range(0, 32, 4)]
    round_constant = 1
    for i in range(8, 60):
        word = list(words[-1])
        if i % 8 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= round_constant
            round_constant = double(round_constant)
        elif i % 8 == 4:
            word = [SBOX[b] for b in word]
        words.append([a ^ b for a, b in zip(word, words[-8])])
    return [sum(words[i : i + 4], []) for i in range(0, 60, 4)]


def encrypt_block(keys, block):
    state = [a ^ b for a, b in zip(block, keys[0])]
    for number, key in enumerate(keys[1:], 1):
        state = [SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]
        if number < 14:
            mixed = []
            for column in range(0, 16, 4):
                a = state[column : column + 4]
                for i in range(4):
                    mixed.append(double(a[i]) ^ double(a[(i + 1) % 4]) ^ a[(i + 1) % 4] ^ a[(i + 2) % 4] ^ a[(i + 3) % 4])
            state = mixed
        state = [a ^ b for a, b in zip(state, key)]
    return bytes(state)


def multiply(x, y):
    product = 0
    for i in range(127, -1, -1):
        if (y >> i) & 1:
            product ^= x
        x = (x >> 1) ^ (0xE1 << 120 if x & 1 else 0)
    return product


def gcm_seal(key, nonce, associated, plain):
    keys = expand(key)
    hash_key = int.from_bytes(encrypt_block(keys, bytes(16)), "big")
    sealed = b""
    for i in range(0, len(plain), 16):
        stream = encrypt_block(keys, nonce + (i // 16 + 2).to_bytes(4, "big"))
        sealed += bytes(a ^ b for a, b in zip(plain[i : i + 16], stream))
    pad = lambda data: data + bytes(-len(data) % 16)
    lengths = (8 * len(associated)).to_bytes(8, "big") + (8 * len(sealed)).to_bytes(8, "big")
    ghash = 0
    hashed = pad(associated) + pad(sealed) + lengths
    for i in range(0, len(hashed), 16):
        ghash = multiply(ghash ^ int.from_bytes(hashed[i : i + 16], "big"), hash_key)
    mask = encrypt_block(keys, nonce + (1).to_bytes(4, "big"))
    return sealed + bytes(a ^ b for a, b in zip(ghash.to_bytes(16, "big"), mask))


def seal_frame(master, kind_info, salt, associated, plain):
    kind_key = derive(master, b"", kind_info)
    frame_key = hmac.new(kind_key, b"stillpoint frame 1" + salt, hashlib.sha256).digest()
    return salt + gcm_seal(frame_key, bytes(12), associated, plain)


if __name__ == "__main__":
    # NIST's GCM test case 14 (AES-256, one zero block) checks the code above first.
    assert gcm_seal(bytes(32), bytes(12), b"", bytes(16)).hex() == (
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919")
    master = bytes([7]) * 32
    print("frame ", seal_frame(master, b"stillpoint packs 1", b"s" * 24, b"head", b"hello").hex())
    print("id key", derive(master, b"", b"stillpoint ids 1").hex())
