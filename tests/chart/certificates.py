"""What cert-manager would make of rendered Certificates, and the release's own Job of its plan: the secrets, as folders of files.
Authorities live for one test."""

import datetime
import ipaddress

import yaml
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


def plan(objects):
    """The file by which the release makes its own certificates, or None."""
    for item in objects:
        if item["kind"] == "ConfigMap" and "plan.yaml" in item["data"]:
            return yaml.safe_load(item["data"]["plan.yaml"])
    return None


def wanted(objects):
    """(authorities, certificates) that are asked for, of cert-manager or of the release's own Job: the spec of each by its secret.
    `authority` of a certificate is its authority's secret."""
    if own := plan(objects):
        return {item["secret"]: item for item in own["authorities"]}, {item["secret"]: item for item in own["certificates"]}
    specs = {item["spec"]["secretName"]: item["spec"] for item in of_kind(objects, "Certificate")}
    authorities = {secret: spec for secret, spec in specs.items() if spec.get("isCA")}
    by_issuer = issuers(objects)
    leaves = {
        secret: {**spec, "authority": by_issuer.get(spec["issuerRef"]["name"], spec["issuerRef"]["name"])}
        for secret, spec in specs.items()
        if secret not in authorities
    }
    return authorities, leaves


def write_secrets(objects, folder, hosts):
    """Every certificate's secret below `folder`. `hosts` are DNS names with their addresses: where names are resolved by hand,
    certificates have to be for the addresses too."""
    authorities, certificates = wanted(objects)
    authorities = {secret: Authority(spec["commonName"]) for secret, spec in authorities.items()}
    for name, spec in certificates.items():
        authority = authorities[spec["authority"]]
        addresses = {
            address for name, address in hosts.items() if any(covers(pattern, name) for pattern in spec.get("dnsNames", []))
        }
        certificate, key = authority.issue(spec, sorted(addresses))
        secret = folder / name
        secret.mkdir(parents=True)
        for file, content in {"tls.crt": certificate, "tls.key": key, "ca.crt": pem(authority.certificate)}.items():
            (secret / file).write_bytes(content)
            (secret / file).chmod(0o400)
