"""A sigstore of one's own, without a network: a certificate authority, its log of certificates, a log of signatures.

It makes bundles as `sigstore` 3 and 4 upload them (v0.3, a hashedrekord entry with promise and proof of inclusion), and
the trusted root to hold them against.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

_ISSUER = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2 = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_DER = serialization.Encoding.DER
_MINUTES = timedelta(minutes=1)


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(_DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def _der_string(tag: int, data: bytes) -> bytes:
    length = bytes([len(data)]) if len(data) < 128 else b"\x82" + struct.pack("!H", len(data))
    return bytes([tag]) + length + data


@dataclass
class SigstoreWorld:
    """The authority and the two logs; every instance is another world."""

    ca: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    certificates: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    signatures: ec.EllipticCurvePrivateKey = field(default_factory=_key)

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        now = datetime.now(timezone.utc)
        self._root = (
            x509.CertificateBuilder(name, name, self.ca.public_key(), x509.random_serial_number())
            .not_valid_before(now - 60 * _MINUTES)
            .not_valid_after(now + 60 * _MINUTES)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.ca.public_key()), critical=False)
            .sign(self.ca, hashes.SHA256())
        )

    def trusted_root(self) -> bytes:
        """What a user is given."""
        start = {"start": "2020-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            public = {
                "rawBytes": _text(_spki(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": start,
            }
            log_id = {"keyId": _text(hashlib.sha256(_spki(key)).digest())}
            return {
                "baseUrl": "https://log",
                "hashAlgorithm": "SHA2_256",
                "publicKey": public,
                "logId": log_id,
            }

        authority = {
            "subject": {"organization": "tests", "commonName": "authority"},
            "uri": "https://authority",
            "certChain": {"certificates": [{"rawBytes": _text(self._root.public_bytes(_DER))}]},
            "validFor": start,
        }
        data = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.signatures)],
            "ctlogs": [log(self.certificates)],
            "certificateAuthorities": [authority],
        }
        return json.dumps(data).encode()

    def bundle(self, artifact: bytes, identity: str, issuer: str) -> bytes:
        """A signature of `identity` over `artifact`."""
        key = _key()
        certificate = self._certificate(key, identity, issuer)
        signature, digest = _sign(key, artifact), hashlib.sha256(artifact)
        der = certificate.public_bytes(_DER)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        body = json.dumps(
            {
                "apiVersion": "0.0.1",
                "kind": "hashedrekord",
                "spec": {
                    "data": {"hash": {"algorithm": "sha256", "value": digest.hexdigest()}},
                    "signature": {"content": _text(signature), "publicKey": {"content": _text(pem)}},
                },
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
        data = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": _text(der)},
                "tlogEntries": [self._log_entry(body)],
            },
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": _text(digest.digest())},
                "signature": _text(signature),
            },
        }
        return json.dumps(data).encode()

    def _certificate(self, key: ec.EllipticCurvePrivateKey, identity: str, issuer: str) -> x509.Certificate:
        """A certificate of ten minutes, with the promise of the log of certificates in it."""
        now = datetime.now(timezone.utc)
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = (
            x509.CertificateBuilder(
                self._root.subject, x509.Name([]), key.public_key(), x509.random_serial_number()
            )
            .not_valid_before(now - _MINUTES)
            .not_valid_after(now + 10 * _MINUTES)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca.public_key()), critical=False
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True
            )
            .add_extension(x509.UnrecognizedExtension(_ISSUER, issuer.encode()), critical=False)
            .add_extension(
                x509.UnrecognizedExtension(_ISSUER_V2, _der_string(0x0C, issuer.encode())), critical=False
            )
        )
        promised = self._promise(builder.sign(self.ca, hashes.SHA256()).tbs_certificate_bytes)
        listed = struct.pack("!HH", len(promised) + 2, len(promised)) + promised
        extension = x509.UnrecognizedExtension(_SCT_LIST, _der_string(0x04, listed))
        return builder.add_extension(extension, critical=False).sign(self.ca, hashes.SHA256())

    def _promise(self, precertificate: bytes) -> bytes:
        """RFC 6962's signed certificate timestamp for a certificate without one."""
        now_ms = int(time.time() * 1000)
        issuer = hashlib.sha256(_spki(self.ca)).digest()
        entry = issuer + struct.pack("!I", len(precertificate))[1:] + precertificate
        signature = _sign(self.certificates, struct.pack("!BBQH", 0, 0, now_ms, 1) + entry + b"\0\0")
        head = b"\0" + hashlib.sha256(_spki(self.certificates)).digest() + struct.pack("!QH", now_ms, 0)
        return head + struct.pack("!BBH", 4, 3, len(signature)) + signature

    def _log_entry(self, body: bytes) -> dict[str, Any]:
        """The only entry of the log of signatures: a promise, and a proof of inclusion with its checkpoint."""
        log_id, now = hashlib.sha256(_spki(self.signatures)).digest(), int(time.time())
        said = {"body": _text(body), "integratedTime": now, "logID": log_id.hex(), "logIndex": 0}
        promise = _sign(self.signatures, json.dumps(said, sort_keys=True, separators=(",", ":")).encode())
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"log - 1\n1\n{_text(root)}\n"
        seal = _text(log_id[:4] + _sign(self.signatures, note.encode()))
        return {
            "logIndex": "0",
            "logId": {"keyId": _text(log_id)},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.1"},
            "integratedTime": str(now),
            "inclusionPromise": {"signedEntryTimestamp": _text(promise)},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _text(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\u2014 log {seal}\n"},
            },
            "canonicalizedBody": _text(body),
        }
