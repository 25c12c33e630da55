//! How often in a row an endpoint gave nothing that is of use. One pair, or one category, is to blame for one such answer; for
//! many in a row it is the endpoint, and asking on costs money. Pure.

/// Answers in a row that could not be understood before no more are asked for.
pub const MOST_UNREADABLE: u32 = 24;
/// Questions in a row that were refused before no more are asked.
pub const MOST_REFUSED: u32 = 32;

/// What is known of the answers since the last good one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    unreadable: u32,
    refused: u32,
    last: Last,
}

/// The last answer that was of no use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Last {
    why: String,
    said: String,
}

impl Streak {
    /// An answer was understood.
    pub fn understood(&mut self) {
        *self = Streak::default();
    }

    /// An answer was not understood; what it said, if anything, and why that is of no use.
    pub fn unreadable(&mut self, why: &str, said: &str) {
        if self.has_ended() {
            return;
        }
        self.unreadable = self.unreadable.saturating_add(1);
        self.last = Last { why: why.to_owned(), said: said.chars().take(MAX_SAID_CHARS).collect() };
    }

    /// A question was refused.
    pub fn refused(&mut self, why: &str) {
        if self.has_ended() {
            return;
        }
        self.refused = self.refused.saturating_add(1);
        self.last = Last { why: why.to_owned(), said: String::new() };
    }

    /// What was asked at the same time as the answer that ended it adds nothing: each of its askers tells the same reason.
    fn has_ended(&self) -> bool {
        self.unreadable >= MOST_UNREADABLE || self.refused >= MOST_REFUSED
    }

    /// Why no more is to be asked, if that is so.
    pub fn end(&self) -> Option<String> {
        let Last { why, said } = &self.last;
        if self.unreadable >= MOST_UNREADABLE {
            let said = if said.is_empty() { String::new() } else { format!("; the last one: {said}") };
            return Some(format!("{} answers in a row could not be read: {why}{said}", self.unreadable));
        }
        (self.refused >= MOST_REFUSED)
            .then(|| format!("it refused {} questions in a row, at last: {why}", self.refused))
    }
}

/// Characters of the last answer that are told: a reason is cut to 300 in all.
const MAX_SAID_CHARS: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_in_a_row_end_it_and_a_good_one_begins_anew() {
        let mut streak = Streak::default();
        for _ in 1..MOST_UNREADABLE {
            streak.unreadable("it has no JSON object", "all is well");
            assert_eq!(streak.end(), None);
        }
        let mut lucky = streak.clone();
        lucky.understood();
        lucky.unreadable("", "");
        assert_eq!(lucky.end(), None);
        streak.unreadable("it has no JSON object", "all is well");
        assert_eq!(
            streak.end().as_deref(),
            Some("24 answers in a row could not be read: it has no JSON object; the last one: all is well")
        );
        let ended = streak.clone();
        streak.unreadable("it was asked before that", "so was this");
        streak.refused("and this");
        assert_eq!(streak, ended, "whoever asked at the same time tells the same reason");
        let mut refused = Streak::default();
        (0..MOST_REFUSED).for_each(|_| refused.refused("no"));
        assert_eq!(refused.end().as_deref(), Some("it refused 32 questions in a row, at last: no"));
    }
}
