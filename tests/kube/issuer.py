"""What cert-manager would do with a namespace's Certificates, once: their secrets."""

import base64

from certificates import Authority, pem, wanted

KINDS = "issuers.cert-manager.io,certificates.cert-manager.io"


def fill(cluster, namespace, authorities=None):
    """Makes every certificate anew, by the given authorities or by new ones; the authorities by their secrets."""
    asked, certificates = wanted(cluster.get(KINDS, namespace=namespace))
    authorities = authorities or {secret: Authority(spec["commonName"]) for secret, spec in asked.items()}
    for secret, spec in certificates.items():
        authority = authorities[spec["authority"]]
        certificate, key = authority.issue(spec, [])
        files = {"tls.crt": certificate, "tls.key": key, "ca.crt": pem(authority.certificate)}
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": secret, "namespace": namespace},
                "data": {name: base64.b64encode(content).decode() for name, content in files.items()},
            }
        )
    return authorities
