//! Tokens: what a request takes, as a server says or as is guessed.

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input: u64,
    pub output: u64,
}

impl Usage {
    pub fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// Tokens of a text, on the high side.
pub fn text_tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(3)
}
