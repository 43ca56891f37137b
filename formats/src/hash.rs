//! SHA-256, as manifests and journals write it.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

/// The SHA-256 of bytes that come in pieces.
#[derive(Debug, Clone, Default)]
pub struct ContentHash(Sha256);

impl ContentHash {
    /// The hash of no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The hash of `bytes`, in hexadecimal.
    pub fn of(bytes: impl AsRef<[u8]>) -> String {
        let mut hash = Self::new();
        hash.update(bytes);
        hash.finish()
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.update(bytes);
    }

    /// The hash of all bytes taken in, in hexadecimal.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Write for ContentHash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hash_as_the_whole() {
        let mut hash = ContentHash::new();
        hash.update("ab");
        hash.write_all(b"c").unwrap();
        assert_eq!(hash.finish(), ContentHash::of("abc"));
        assert_eq!(ContentHash::of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
