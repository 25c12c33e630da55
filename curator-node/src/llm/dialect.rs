//! How an endpoint wants to be asked. Newer hosted models take no temperature but their own, or call the limit of an answer
//! differently, and refuse the whole request for it; older servers know only the older name. So the request is made as most
//! take it, and once it was refused for a field, without that field. What was taken is remembered by address and model.

use super::server_error::ServerError;

/// The fields of a request about which servers do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// `temperature: 0` is sent.
    pub has_temperature: bool,
    /// What the limit of an answer's tokens is called.
    pub limit: LimitField,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitField {
    MaxTokens,
    MaxCompletionTokens,
}

impl LimitField {
    pub fn name(self) -> &'static str {
        match self {
            LimitField::MaxTokens => "max_tokens",
            LimitField::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

impl Default for Dialect {
    fn default() -> Dialect {
        Dialect { has_temperature: true, limit: LimitField::MaxTokens }
    }
}

impl Dialect {
    /// What to try next after a request in this dialect was refused so; `None` if it was refused for something else. At most
    /// two steps lead from the default to the end.
    pub fn after(self, error: &ServerError) -> Option<Dialect> {
        if !matches!(error.status, 400 | 422) {
            return None;
        }
        // Looked at first: some name both fields when they tell of the newer one.
        if self.limit == LimitField::MaxTokens && error.is_about("max_tokens") {
            return Some(Dialect { limit: LimitField::MaxCompletionTokens, ..self });
        }
        (self.has_temperature && error.is_about("temperature"))
            .then_some(Dialect { has_temperature: false, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, message: &str, param: Option<&str>) -> ServerError {
        let param = param.map(str::to_owned);
        ServerError { status, message: message.into(), param, ..ServerError::default() }
    }

    #[test]
    fn a_field_that_is_refused_is_left_out_or_called_differently() {
        let first = Dialect::default();
        let unsupported = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.";
        let second = first.after(&refused(400, unsupported, Some("max_tokens"))).expect("another name");
        assert_eq!(second.limit.name(), "max_completion_tokens");
        assert_eq!(second.after(&refused(400, unsupported, Some("max_tokens"))), None);
        let value = "Unsupported value: 'temperature' does not support 0 with this model.";
        let third = second.after(&refused(400, value, Some("temperature"))).expect("without it");
        assert!(!third.has_temperature && third.limit == LimitField::MaxCompletionTokens);
        assert_eq!(third.after(&refused(400, value, None)), None);
        // Without a param the words are looked at.
        let extra =
            refused(422, r#"{"loc":["body","temperature"],"msg":"Extra inputs are not permitted"}"#, None);
        assert!(!first.after(&extra).expect("without it").has_temperature);
    }

    #[test]
    fn other_refusals_change_nothing() {
        let first = Dialect::default();
        assert_eq!(first.after(&refused(400, "this content is not allowed", None)), None);
        assert_eq!(first.after(&refused(400, "temperature", Some("messages"))), None);
        assert_eq!(first.after(&refused(503, "max_tokens", None)), None);
    }
}
