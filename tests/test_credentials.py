"""Content credentials, read from a file with a real signature. The package is an extra; without it they are not reported."""

import datetime
import io

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from pipeline.credentials import read

c2pa = pytest.importorskip("c2pa", reason="pip install -e '.[c2pa]' to read content credentials")
AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def certificate(name: str, key, issuer: str, signer, authority: bool) -> x509.Certificate:
    def called(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, common), x509.NameAttribute(NameOID.COMMON_NAME, common)])

    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(called(name)).issuer_name(called(issuer)).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=2))
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only", "decipher_only"),
        False,
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, **usage), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def signed() -> bytes:
    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = [certificate("Newsroom", key, "Authority", root, False), certificate("Authority", root, "Authority", root, True)]
    pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", pem, secret, None))
    actions = {"label": "c2pa.actions", "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": AI}]}}
    manifest = {"claim_generator_info": [{"name": "Painter", "version": "3"}], "format": "image/jpeg", "assertions": [actions]}
    out = io.BytesIO()
    c2pa.Builder(manifest).sign(signer, "image/jpeg", io.BytesIO(jpeg()), out)
    return out.getvalue()


def test_signer_program_and_ai_are_reported(signed):
    found = read(signed)
    assert found is not None and found.valid
    assert found.signer == "Newsroom" and found.claim_generator == "Painter 3" and found.ai_generated == ["trainedAlgorithmicMedia"]


def test_a_changed_file_is_not_valid(signed):
    changed = bytearray(signed)
    changed[-100] ^= 1
    found = read(bytes(changed))
    assert found is not None and not found.valid and any("mismatch" in problem for problem in found.problems)


def test_a_file_without_credentials_has_none(signed):
    assert read(jpeg()) is None
    assert read(jpeg() + b"c2pa") is None
    assert read(signed[:2000]) is None
