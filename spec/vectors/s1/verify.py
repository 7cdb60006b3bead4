"""Makes every byte of handshakes.json, others.json and frames.json again, from secure.md alone, and what upgrade.json has behind ML-KEM.

A second implementation, independent of the Rust one. Needs Python 3.11 with `cryptography` and `blake3`:
    python3 verify.py
"""

import hashlib
import hmac
import json
import pathlib
import struct

import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = pathlib.Path(__file__).parent


def raw(key):
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def kdf(context, data):
    return blake3.blake3(data, derive_key_context=context).digest()


def mac(key, data):
    return blake3.blake3(data, key=key).digest()[:16]


def hm(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def expand(prk, info, length=32):
    out, block, n = b"", b"", 1
    while len(out) < length:
        block = hm(prk, block + info + bytes([n]))
        out, n = out + block, n + 1
    return out[:length]


class Noise:
    """IKpsk2, as seen by somebody who has all secrets."""

    def __init__(self, prologue, responder):
        self.h = self.ck = hashlib.sha256(b"Noise_IKpsk2_25519_ChaChaPoly_SHA256").digest()
        self.mix_hash(prologue)
        self.mix_hash(responder)

    def mix_hash(self, data):
        self.h = hashlib.sha256(self.h + data).digest()

    def mix_key(self, data):
        out = expand(hm(self.ck, data), b"", 64)
        self.ck, self.k, self.n = out[:32], out[32:], 0

    def mix_psk(self, psk):
        out = expand(hm(self.ck, psk), b"", 96)
        self.ck, self.k, self.n = out[:32], out[64:], 0
        self.mix_hash(out[32:64])

    def ephemeral(self, public):
        self.mix_hash(public)
        self.mix_key(public)
        return public

    def agree(self, secret, public):
        self.mix_key(X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public)))

    def seal(self, plain):
        nonce = bytes(4) + struct.pack("<Q", self.n)
        sealed = ChaCha20Poly1305(self.k).encrypt(nonce, plain, self.h)
        self.n += 1
        self.mix_hash(sealed)
        return sealed

    def split(self):
        out = expand(hm(self.ck, b""), b"", 64)
        return out[:32], out[32:]


def mask(suite, key, sample):
    if suite == 1:
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(sample)[:5]
    return Cipher(algorithms.ChaCha20(key, sample), None).encryptor().update(bytes(5))


def check_certificate(identity, prekey, certificate):
    fields, signature = certificate[:20], certificate[20:]
    signed = b"pilotage-prekey-v1\0" + identity + prekey + fields
    Ed25519PublicKey.from_public_bytes(identity).verify(signature, signed)


def check_handshake(case):
    v = {name: bytes.fromhex(value) for name, value in case.items() if isinstance(value, str) and name != "name"}
    public = lambda name: raw(X25519PrivateKey.from_private_bytes(v[name]).public_key())
    for side in "ir":
        assert raw(Ed25519PrivateKey.from_private_bytes(v[f"identity_{side}_seed"]).public_key()) == v[f"identity_{side}"]
        assert public(f"prekey_{side}_secret") == v[f"prekey_{side}"]
        check_certificate(v[f"identity_{side}"], v[f"prekey_{side}"], v[f"certificate_{side}"])
    assert kdf("pilotage 2026 prekey-id", v["prekey_r"])[:8] == v["prekey_r_id"]

    early = len(v["payload_1"]) > 156
    header = b"PILI\x01" + bytes([early, 0, 0]) + bytes.fromhex("a1a2a3a4") + v["prekey_r_id"]
    prologue = b"pilotage/s1" + header + v["identity_r"]
    assert prologue == v["prologue"]
    noise = Noise(prologue, v["prekey_r"])
    pili = header + noise.ephemeral(public("ephemeral_i_secret"))
    noise.agree(v["ephemeral_i_secret"], v["prekey_r"])
    pili += noise.seal(v["prekey_i"])
    noise.agree(v["prekey_i_secret"], v["prekey_r"])
    pili += noise.seal(v["payload_1"])
    pili += mac(kdf("pilotage 2026 mac1", v["identity_r"]), pili) + bytes(16)
    assert pili == v["pili"]

    pilr = b"PILR\x01" + bytes([early, 0, 0]) + bytes.fromhex("b1b2b3b4a1a2a3a4")
    e_i = public("ephemeral_i_secret")
    pilr += noise.ephemeral(public("ephemeral_r_secret"))
    noise.agree(v["ephemeral_r_secret"], e_i)
    noise.agree(v["ephemeral_r_secret"], v["prekey_i"])
    noise.mix_psk(v["psk"])
    pilr += noise.seal(v["payload_2"])
    pilr += mac(kdf("pilotage 2026 mac1", v["identity_i"]), pilr)
    assert pilr == v["pilr"]
    k1, k2 = noise.split()
    assert (k1, k2, noise.h) == (v["split_to_responder"], v["split_to_initiator"], v["handshake_hash"])

    suite = bytes([case["suite"]])
    master = hm(noise.h, k1 + k2)
    assert expand(master, b"pilotage s1 exporter" + suite) == v["exporter"]
    traffic = [expand(master, b"pilotage s1 traffic" + suite + bytes([d])) for d in (0, 1)]
    assert traffic == [v["traffic_from_initiator"], v["traffic_from_responder"]]
    for packet in case["packets"]:
        check_packet(case["suite"], traffic, packet)


def check_packet(suite, traffic, packet):
    direction = 0 if packet["from"] == "initiator" else 1
    header_key = expand(traffic[direction], b"pilotage s1 header")
    secret = traffic[direction]
    for _ in range(packet["phase"]):
        secret = expand(secret, b"pilotage s1 update")
    assert secret.hex() == packet["traffic"]
    key, iv = expand(secret, b"pilotage s1 key"), expand(secret, b"pilotage s1 iv", 12)
    assert iv.hex() == packet["iv"]
    index = bytes.fromhex("b1b2b3b4" if direction == 0 else "a1a2a3a4")
    header = bytes([0xB0 | (packet["phase"] & 1) << 3]) + index + struct.pack(">I", packet["number"])
    number = struct.pack(">Q", packet["number"])
    nonce = iv[:4] + bytes(a ^ b for a, b in zip(iv[4:], number))
    aead = AESGCM(key) if suite == 1 else ChaCha20Poly1305(key)
    sealed = aead.encrypt(nonce, bytes.fromhex(packet["frames"]), header)
    m = mask(suite, header_key, sealed[:16])
    masked = bytes([header[0] ^ m[0] & 0x0F]) + index + bytes(a ^ b for a, b in zip(header[5:], m[1:]))
    assert (masked + sealed).hex() == packet["datagram"]


def rotl(x, n):
    return (x << n | x >> 32 - n) & 0xFFFFFFFF


def hchacha20(key, nonce16):
    s = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce16))

    def quarter(a, b, c, d):
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] = rotl(s[z] ^ s[x], n)

    for _ in range(10):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            quarter(a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(a, b, c, d)
    return struct.pack("<8I", *(s[:4] + s[12:]))


def check_others(case):
    v = {name: bytes.fromhex(value) for name, value in case.items()}
    key = hchacha20(kdf("pilotage 2026 cookie", v["identity_r"]), v["nonce"][:16])
    sealed = ChaCha20Poly1305(key).encrypt(bytes(4) + v["nonce"][16:], v["cookie"], v["mac1_of_pili_answered"])
    assert b"PILC" + bytes.fromhex("a1a2a3a4") + v["nonce"] + sealed == v["pilc"]
    piln = v["piln"]
    assert piln[:24] == b"PILN" + bytes.fromhex("a1a2a3a4") + v["mac1_of_pili_answered"]
    check_certificate(v["identity_r"], piln[24:56], piln[56:])
    token = mac(kdf("pilotage 2026 reset", v["device"]), bytes.fromhex("b1b2b3b4"))
    assert v["pilx"] == b"PILX" + bytes.fromhex("b1b2b3b4") + token
    assert v["mac2"] == mac(v["cookie"] + bytes(16), v["mac2_input"])


def check_upgrade(case):
    """From the secret of ML-KEM-768 on; its own values are those of FIPS 203 (`key`, `ciphertext`, `secret` of `seed` and `message`)."""
    v = {name: bytes.fromhex(value) for name, value in case.items() if isinstance(value, str)}
    assert (len(v["seed"]), len(v["message"]), len(v["key"]), len(v["ciphertext"])) == (64, 32, 1184, 1088)
    assert hashlib.sha256(v["key"] + v["ciphertext"]).digest() == v["transcript"]
    for phase in case["phases"]:
        following = expand(bytes.fromhex(phase["traffic_0"]), b"pilotage s1 update")
        traffic = expand(hm(following, v["secret"] + v["transcript"]), b"pilotage s1 post-quantum")
        assert traffic.hex() == phase["traffic_1"]
        assert expand(traffic, b"pilotage s1 key").hex() == phase["key_1"]
        assert expand(traffic, b"pilotage s1 iv", 12).hex() == phase["iv_1"]


def variable(n):
    for size, tag in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if n < 1 << 8 * size - 2:
            return (n | tag << 8 * size - 2).to_bytes(size, "big")
    raise ValueError(n)


def check_frame(case):
    made = bytes.fromhex(case["type"])
    for kind, value in case["fields"]:
        if kind == "v":
            made += variable(value)
        elif kind == "hex":
            made += bytes.fromhex(value)
        else:
            made += value.to_bytes({"u16": 2, "u32": 4}[kind], "big")
    assert made.hex() == case["bytes"], case["name"]


if __name__ == "__main__":
    handshakes = json.loads((HERE / "handshakes.json").read_text())["cases"]
    for handshake in handshakes:
        check_handshake(handshake)
        print("handshake", handshake["name"], "and", len(handshake["packets"]), "packets: ok")
    check_others(json.loads((HERE / "others.json").read_text()))
    print("PILC, PILN, PILX, mac2: ok")
    check_upgrade(json.loads((HERE / "upgrade.json").read_text()))
    print("post-quantum upgrade: ok")
    frames = json.loads((HERE / "frames.json").read_text())["frames"]
    for frame in frames:
        check_frame(frame)
    print(len(frames), "frames: ok")
