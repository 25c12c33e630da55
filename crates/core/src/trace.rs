//! Which trace something belongs to, as W3C's Trace Context writes it: `00-<trace id>-<span id>-<flags>`.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;

/// A trace, and the span in it that something was started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: NonZeroU128,
    pub span: NonZeroU64,
}

/// Not a trace parent. Whoever gets it goes on without a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not 00-<32 hexadecimal digits>-<16 hexadecimal digits>-<2 hexadecimal digits>")]
pub struct NotATraceParent;

impl fmt::Display for TraceParent {
    /// With the flag that says that it is sampled: who reads it decides by the trace's id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace, self.span)
    }
}

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    /// Takes later versions too, of which the first four fields are known.
    fn from_str(text: &str) -> Result<Self, NotATraceParent> {
        let mut fields = text.split('-');
        let mut field = |digits: usize| {
            let text = fields.next().filter(|text| text.len() == digits)?;
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            text.bytes().all(lower).then_some(text)
        };
        let parts = (field(2), field(32), field(16), field(2));
        let (Some(version), Some(trace), Some(span), Some(_)) = parts else { return Err(NotATraceParent) };
        if version == "ff" || (version == "00" && fields.next().is_some()) {
            return Err(NotATraceParent);
        }
        let trace = u128::from_str_radix(trace, 16).ok().and_then(NonZeroU128::new);
        let span = u64::from_str_radix(span, 16).ok().and_then(NonZeroU64::new);
        match (trace, span) {
            (Some(trace), Some(span)) => Ok(Self { trace, span }),
            _ => Err(NotATraceParent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read() {
        let parent: TraceParent = TEXT.parse().expect("the standard's own example");
        assert_eq!(parent.span.get(), 0x00f0_67aa_0ba9_02b7);
        assert_eq!(parent.to_string(), TEXT);
        let later = TEXT.replacen("00", "01", 1) + "-more";
        assert_eq!(later.parse(), Ok(parent));
    }

    #[test]
    fn anything_else_is_refused() {
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_span = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        let upper = TEXT.to_uppercase();
        let more = format!("{TEXT}-00");
        let signed = TEXT.replacen("0af7", "+af7", 1);
        let wide = TEXT.replacen("0af7", "é7", 1);
        for bad in
            ["", "-", "00", "00---", &TEXT[..54], &zero_trace, &zero_span, &upper, &more, &signed, &wide]
        {
            assert_eq!(bad.parse::<TraceParent>(), Err(NotATraceParent), "{bad}");
        }
        assert!(TEXT.replacen("00", "ff", 1).parse::<TraceParent>().is_err());
    }
}
