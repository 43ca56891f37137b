//! Which instruction set runs the kernels.

use std::fmt;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
use crate::simd::scalar::Scalar;
use crate::simd::{Kernel, Simd};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};
use crate::{KernelError, Result};

/// An instruction set that this CPU has. Whichever it is, results are the same bytes.
#[derive(Clone, Copy)]
pub struct Isa(Kind);

#[derive(Clone, Copy)]
enum Kind {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Isa {
    /// The environment variable that forces an instruction set by name.
    pub const VARIABLE: &'static str = "ARROW_QUANT_ISA";

    /// Every instruction set of this CPU, the fastest first.
    pub fn available() -> Vec<Self> {
        let found: Vec<Option<Kind>> = vec![
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Kind::Avx512),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Kind::Avx2),
            #[cfg(target_arch = "aarch64")]
            Neon::detect().map(Kind::Neon),
            Some(Kind::Scalar(Scalar)),
        ];
        found.into_iter().flatten().map(Self).collect()
    }

    /// The one to use: the fastest, or the one that `ARROW_QUANT_ISA` (`scalar`, `avx2`, `avx512`, `neon`) names. Decided
    /// once in the life of the process.
    ///
    /// # Errors
    /// If the variable names an instruction set that this CPU does not have.
    pub fn active() -> Result<Self> {
        static ACTIVE: OnceLock<Result<Isa>> = OnceLock::new();
        ACTIVE
            .get_or_init(|| match std::env::var(Self::VARIABLE) {
                Ok(name) if !name.is_empty() => Self::named(&name),
                _ => Ok(Self::available()[0]),
            })
            .clone()
    }

    /// The one that every CPU has.
    pub(crate) fn scalar() -> Self {
        Self(Kind::Scalar(Scalar))
    }

    fn named(name: &str) -> Result<Self> {
        Self::available().into_iter().find(|isa| isa.name() == name).ok_or_else(|| KernelError::Isa {
            found: name.to_string(),
            available: Self::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// `scalar`, `avx2`, `avx512` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
        }
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Scalar(s) => s.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(s) => s.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(s) => s.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(s) => s.run(kernel),
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_instruction_set_is_refused_with_those_there_are() {
        let message = Isa::named("sse9").unwrap_err().to_string();
        assert!(message.contains("ARROW_QUANT_ISA is 'sse9'"), "{message}");
        assert!(message.contains("scalar"), "{message}");
    }
}
