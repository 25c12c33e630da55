//! The commands of docs/security.md make certificates that do what it says.

use std::process::Command;

use crescendo_node::tls::{Identity, PeerCertificate, Tls, TlsFiles};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

#[tokio::test]
async fn the_documented_commands_make_certificates() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: openssl is not on the path");
        return;
    }
    let text = include_str!("../../../docs/security.md");
    let commands = text
        .split("```")
        .filter_map(|block| block.strip_prefix("sh\n"))
        .find(|block| block.starts_with("openssl req"))
        .expect("the page has the commands");
    let folder = tempfile::tempdir().unwrap();
    let ran = Command::new("bash").args(["-euc", commands]).current_dir(folder.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));

    let at = |name: &str| folder.path().join(name);
    for (name, roles, nodes, tenants) in [
        ("controller-0", &[][..], &[][..], &[][..]),
        ("trainer-0", &["node"], &["trainer-0"], &[]),
        ("curator-0", &["node"], &["curator-0"], &[]),
        ("alice", &["submitter"], &[], &["research"]),
    ] {
        let (cert, key) = (at(&format!("{name}.pem")), at(&format!("{name}.key")));
        let pem = std::fs::read(&cert).unwrap();
        let identity = Some(Identity { cert, key });
        Tls::load(TlsFiles { identity, ca: Some(at("ca.pem")) }).await.expect(name);
        let read = PeerCertificate::from_der(&CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        assert_eq!(read.subject, format!("CN={name}"));
        assert_eq!(read.roles().collect::<Vec<_>>(), roles, "{name}");
        assert_eq!(read.nodes().collect::<Vec<_>>(), nodes, "{name}");
        assert_eq!(read.tenants().collect::<Vec<_>>(), tenants, "{name}");
    }
}
