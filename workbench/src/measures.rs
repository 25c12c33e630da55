//! What is measured of drawings, each by an encoder that never saw the network that drew.
//!
//! | measure | right, if |
//! |---|---|
//! | [`Measure::Subject`] | the picture is nearest to the right one of 16 subjects |
//! | [`Measure::Colour`], [`Measure::Outline`] | so it is by its colours, or its brightness, alone |
//! | [`Measure::Scene`] | of 16 scenes the one asked for is the nearest |
//! | [`Measure::Place`] | subjects are read where the prompt wants them |
//! | [`Measure::Count`] | as many are read as the prompt names |
//! | [`Measure::Prompt`] | scene, place and count are right at once |
//! | [`Measure::Copy`] | of 16 pictures of the subject, placed at random, it is nearest to the very reference by place, size and direction |
//!
//! Subject, prompt and copy have to be read together: a picture that is the reference once more has the first and the last and
//! lacks the second; what a prompt asks, drawn as it asks, has the first two and the last by chance.

pub mod judge;
pub mod phrases;
pub mod score;
#[cfg(test)]
mod tests;
pub mod views;

use serde::Serialize;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    Subject,
    Prompt,
    Copy,
    Colour,
    Outline,
    Scene,
    Place,
    Count,
}

impl Measure {
    /// Those that are read together.
    pub const WHOLE: [Measure; 3] = [Measure::Subject, Measure::Prompt, Measure::Copy];
    /// Parts of the subject's and the prompt's.
    pub const PARTS: [Measure; 5] =
        [Measure::Colour, Measure::Outline, Measure::Scene, Measure::Place, Measure::Count];

    /// As reports call it.
    pub fn word(self) -> &'static str {
        match self {
            Measure::Subject => "subject",
            Measure::Prompt => "prompt",
            Measure::Copy => "copy",
            Measure::Colour => "colour",
            Measure::Outline => "outline",
            Measure::Scene => "scene",
            Measure::Place => "place",
            Measure::Count => "count",
        }
    }
}
