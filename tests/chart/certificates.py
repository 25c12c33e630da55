"""What cert-manager would make of rendered Certificates: the secrets, as folders of files. Authorities live for one test."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USAGES = {"server auth": ExtendedKeyUsageOID.SERVER_AUTH, "client auth": ExtendedKeyUsageOID.CLIENT_AUTH}


def of_kind(objects, kind):
    return [item for item in objects if item["kind"] == kind and item["apiVersion"] == "cert-manager.io/v1"]


def covers(pattern, name):
    """Whether a certificate for `pattern` is one for `name`: a wildcard stands for one label."""
    if pattern.startswith("*."):
        return name.partition(".")[2] == pattern[2:]
    return pattern == name


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


class Authority:
    def __init__(self, name):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self.sign(self.name, self.key.public_key(), [(x509.BasicConstraints(ca=True, path_length=None), True)])

    def sign(self, subject, key, extensions):
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, spec, addresses):
        """(certificate, key) in PEM for a Certificate's spec, and for further addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(name) for name in spec.get("dnsNames", [])]
        names += [x509.IPAddress(ipaddress.ip_address(text)) for text in [*spec.get("ipAddresses", []), *addresses]]
        names += [x509.UniformResourceIdentifier(uri) for uri in spec.get("uris", [])]
        extensions = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([USAGES[usage] for usage in spec["usages"] if usage in USAGES]), False),
        ]
        if names:
            extensions.append((x509.SubjectAlternativeName(names), False))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, spec["commonName"])])
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem(self.sign(subject, key.public_key(), extensions)), private


def issuers(objects):
    """Name of each issuer that has an authority, with the secret of that authority."""
    return {item["metadata"]["name"]: item["spec"]["ca"]["secretName"] for item in of_kind(objects, "Issuer") if "ca" in item["spec"]}


def write_secrets(objects, folder, hosts):
    """Every Certificate's secret below `folder`. `hosts` are DNS names with their addresses: where names are resolved by hand,
    certificates have to be for the addresses too."""
    certificates = [item["spec"] for item in of_kind(objects, "Certificate")]
    authorities = {spec["secretName"]: Authority(spec["commonName"]) for spec in certificates if spec.get("isCA")}
    by_issuer = {name: authorities[secret] for name, secret in issuers(objects).items()}
    for spec in certificates:
        if spec.get("isCA"):
            continue
        authority = by_issuer[spec["issuerRef"]["name"]]
        addresses = {
            address for name, address in hosts.items() if any(covers(pattern, name) for pattern in spec.get("dnsNames", []))
        }
        certificate, key = authority.issue(spec, sorted(addresses))
        secret = folder / spec["secretName"]
        secret.mkdir(parents=True)
        for name, content in {"tls.crt": certificate, "tls.key": key, "ca.crt": pem(authority.certificate)}.items():
            (secret / name).write_bytes(content)
            (secret / name).chmod(0o400)
