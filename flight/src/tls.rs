//! The certificates and keys of the transport.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::error::ServeError;

/// Labels of PEM blocks that are certificates.
const CERTIFICATES: &[&str] = &["CERTIFICATE"];

/// Labels of PEM blocks that are private keys.
const KEYS: &[&str] = &["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];

/// The files of TLS, PEM each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority that clients' certificates must be signed by; clients need none without.
    pub client_ca: Option<PathBuf>,
}

/// The encryption of new connections, which can be read anew.
pub(crate) struct Encryption {
    files: TlsFiles,
    acceptor: RwLock<TlsAcceptor>,
}

impl Encryption {
    /// # Errors
    /// As [`acceptor`].
    pub(crate) fn new(files: TlsFiles) -> Result<Self, ServeError> {
        let acceptor = RwLock::new(acceptor(&files)?);
        Ok(Self { files, acceptor })
    }

    /// What encrypts the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files anew.
    ///
    /// # Errors
    /// As [`acceptor`]; then connections are encrypted as before.
    pub(crate) fn reload(&self) -> Result<(), ServeError> {
        let acceptor = acceptor(&self.files)?;
        *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }
}

/// TLS with a server's certificate and key. With `client_ca`, clients must have a certificate that it signed.
///
/// # Errors
///
/// A file cannot be read or has not what it should have, or key and certificate are not of one another: the message
/// names the files, and shows nothing of the key.
fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ServeError> {
    let certificate = pem_file(&files.certificate, "certificate", CERTIFICATES)?;
    let key = pem_file(&files.key, "private key", KEYS)?;
    let authority = files.client_ca.as_ref().map(|path| pem_file(path, "certificate", CERTIFICATES)).transpose()?;
    match config(&certificate, &key, authority.as_deref()) {
        Ok(config) => Ok(TlsAcceptor::from(Arc::new(config))),
        Err(error) => Err(ServeError::Configuration(unusable(files, &*error))),
    }
}

/// What the transport needs of PEM texts.
fn config(certificate: &[u8], key: &[u8], authority: Option<&[u8]>) -> Result<ServerConfig, Box<dyn Error>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for (number, certificate) in certificates(authority)?.into_iter().enumerate() {
                let unusable = |error| format!("certificate {} of the authority cannot be used: {error}", number + 1);
                roots.add(certificate).map_err(unusable)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    // What the parser says of a block shows its bytes.
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "the private key cannot be read")?;
    let mut config = builder.with_single_cert(certificates(certificate)?, key)?;
    config.alpn_protocols.push(b"h2".to_vec());
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| "a PEM block cannot be read")
}

/// What the transport says of files that are PEM.
fn unusable(files: &TlsFiles, reason: &dyn Error) -> String {
    let mut message =
        format!("TLS cannot use the certificate {} with the key {}", files.certificate.display(), files.key.display());
    if let Some(path) = &files.client_ca {
        message = format!("{message} and the clients' authority {}", path.display());
    }
    format!("{message}: {reason}")
}

/// The bytes of a PEM file with at least one block of some labels.
fn pem_file(path: &Path, what: &str, labels: &[&str]) -> Result<Vec<u8>, ServeError> {
    let bytes = std::fs::read(path).map_err(|source| ServeError::io(path, source))?;
    let text = String::from_utf8_lossy(&bytes);
    match check_pem(&text, what, labels) {
        Ok(()) => Ok(bytes),
        Err(problem) => Err(ServeError::File { path: path.to_path_buf(), problem }),
    }
}

fn check_pem(text: &str, what: &str, labels: &[&str]) -> Result<(), String> {
    let blocks = blocks_of(text)?;
    let wanted = |block: &&Block| labels.contains(&block.label);
    let of_key = labels == KEYS;
    if of_key && blocks.iter().any(|block| block.encrypted) {
        return Err("the private key is encrypted: store it without a passphrase, readable by the server alone \
                    (`openssl pkey -in FILE -out FILE`)"
            .to_string());
    }
    if let Some(damaged) = blocks.iter().filter(wanted).find(|block| block.damaged) {
        return Err(format!("the PEM block {} is damaged", damaged.label));
    }
    if blocks.iter().any(|block| wanted(&block)) {
        return Ok(());
    }
    let mut found: Vec<&str> = blocks.iter().map(|block| block.label).collect();
    found.dedup();
    let found = match found.as_slice() {
        [] => "no PEM block at all".to_string(),
        labels => format!("PEM blocks {}", labels.join(", ")),
    };
    Err(format!("it has no {what} (`-----BEGIN {}-----`), but {found}", labels[0]))
}

/// A block of a PEM file.
struct Block<'a> {
    label: &'a str,
    encrypted: bool,
    damaged: bool,
}

/// The blocks of a PEM file; fails if one has no end.
fn blocks_of(text: &str) -> Result<Vec<Block<'_>>, String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("-----BEGIN ") else { continue };
        // What is not a label may be a key.
        let of_label = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == ' ';
        let Some(label) = rest.strip_suffix("-----").filter(|label| label.chars().all(of_label)) else {
            return Err(
                "a PEM block has more than `-----BEGIN …-----` in its first line: its lines are joined".to_string()
            );
        };
        let end = format!("-----END {label}-----");
        let mut body = String::new();
        let mut encrypted = label.starts_with("ENCRYPTED");
        loop {
            match lines.next() {
                Some(line) if line == end => break,
                Some(line) if line.starts_with("-----") => return Err(format!("the PEM block {label} has no end")),
                None => return Err(format!("the PEM block {label} has no end")),
                // A header of an old key.
                Some(line) if line.contains(':') => encrypted |= line.contains("ENCRYPTED"),
                Some(line) if encrypted && line.is_empty() => {}
                Some(line) => body.push_str(line),
            }
        }
        let damaged = !encrypted && STANDARD.decode(&body).map_or(true, |der| der.is_empty());
        blocks.push(Block { label, encrypted, damaged });
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Files {
        directory: tempfile::TempDir,
        certificate: String,
        key: String,
    }

    impl Files {
        fn new() -> Self {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).unwrap();
            let directory = tempfile::tempdir().unwrap();
            Self { directory, certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        fn of(&self, certificate: &str, key: &str, client_ca: Option<&str>) -> Result<(), String> {
            let files = TlsFiles {
                certificate: self.write("certificate.pem", certificate),
                key: self.write("key.pem", key),
                client_ca: client_ca.map(|text| self.write("authority.pem", text)),
            };
            acceptor(&files).map(|_| ()).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn files_that_fit() {
        let files = Files::new();
        files.of(&files.certificate, &files.key, None).unwrap();
        files.of(&files.certificate, &files.key, Some(&files.certificate)).unwrap();
        let both = format!("a comment\n{}{}", files.key, files.certificate);
        files.of(&both, &both, None).unwrap();
    }

    #[test]
    fn files_that_do_not() {
        let (files, others) = (Files::new(), Files::new());
        let (certificate, key) = (&*files.certificate, &*files.key);
        let damaged = certificate.replace("MII", "!!!");
        let cut = &certificate[..certificate.len() / 2];
        let encrypted = key.replace(" PRIVATE KEY", " ENCRYPTED PRIVATE KEY");
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n\
                   -----END RSA PRIVATE KEY-----\n";
        let begin = "-----BEGIN CERTIFICATE-----";
        let flat = key.replace('\n', " ");
        let followed = format!("{certificate}{}", key.replacen('\n', " ", 1));
        let bad = format!("{certificate}{begin}\nAAAA\n-----END CERTIFICATE-----\n");
        let body = key.lines().nth(1).unwrap();
        let cases = [
            ("", key, None, "certificate.pem: it has no certificate"),
            (key, key, None, "but PEM blocks PRIVATE KEY"),
            (certificate, certificate, None, "key.pem: it has no private key (`-----BEGIN PRIVATE KEY-----`), but PEM"),
            (certificate, "secret", None, "key.pem: it has no private key"),
            (&*damaged, key, None, "certificate.pem: the PEM block CERTIFICATE is damaged"),
            (cut, key, None, "certificate.pem: the PEM block CERTIFICATE has no end"),
            (certificate, &*encrypted, None, "key.pem: the private key is encrypted"),
            (certificate, old, None, "key.pem: the private key is encrypted"),
            (certificate, &*others.key, None, "TLS cannot use the certificate "),
            (certificate, &*flat, None, "key.pem: a PEM block has more than `-----BEGIN …-----` in its first line"),
            (&*followed, key, None, "certificate.pem: a PEM block has more than `-----BEGIN …-----` in its first"),
            (certificate, key, Some(&*bad), "certificate 2 of the authority cannot be used: "),
            (certificate, key, Some("x"), "authority.pem: it has no certificate (`-----BEGIN CERT"),
            (certificate, key, Some(begin), "authority.pem: the PEM block CERTIFICATE has no end"),
        ];
        for (certificate, key, authority, expected) in cases {
            let message = files.of(certificate, key, authority).unwrap_err();
            assert!(message.contains(expected), "{message}\n{expected}");
            assert!(!message.contains('\n') && !message.contains("secret"), "{message}");
            let (shown, bytes) = (&body[..20], format!("{:?}", &body.as_bytes()[..20]));
            assert!(!message.contains(shown) && !message.contains(bytes.trim_matches(['[', ']'])), "{message}");
        }
        let missing = TlsFiles { certificate: PathBuf::from("nowhere.pem"), key: PathBuf::new(), client_ca: None };
        assert!(acceptor(&missing).err().unwrap().to_string().starts_with("nowhere.pem: "));
    }
}
