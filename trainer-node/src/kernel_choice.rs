//! What runs blocks between matrix products, as a command's argument.

use clap::ValueEnum;
use crescendo_model::fused::Kernels;

/// Value of `--kernels`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum KernelChoice {
    /// Fused passes, where the device has them
    #[default]
    Fused,
    /// Libtorch's operations alone: slower
    Eager,
}

impl KernelChoice {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fused => "fused",
            Self::Eager => "eager",
        }
    }
}

impl From<KernelChoice> for Kernels {
    fn from(choice: KernelChoice) -> Self {
        match choice {
            KernelChoice::Fused => Self::Fused,
            KernelChoice::Eager => Self::Eager,
        }
    }
}
