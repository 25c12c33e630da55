//! What curation asks of other models: endpoints, the judge, prompts.

use serde::{Deserialize, Serialize};

/// A language model behind an OpenAI-compatible interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointSpec {
    /// What the rest of the spec calls it: `[a-z0-9-]`, 1 to 40 characters, unique in the job.
    pub name: String,
    /// Base of its addresses, such as `https://host/v1`; requests go to `chat/completions` below it.
    pub url: String,
    /// Name of the model, as the endpoint knows it.
    pub model: String,
    /// Name of the key that the curators' operator has set up for this address; absent: none is sent.
    pub key: Option<String>,
    /// Requests under way at once, of one curator.
    pub concurrency: u32,
    /// Of one curator.
    pub requests_per_minute: u32,
    /// Tokens, asked and answered, of one curator.
    pub tokens_per_minute: u64,
    /// Time for one try, from connecting to the last byte, seconds.
    pub timeout_seconds: f64,
    /// Tries of one request.
    pub tries: u32,
    /// Tokens that one answer may have.
    pub max_tokens: u32,
    /// Price of a million tokens asked, in the money of `spend_limit`.
    pub input_price: f64,
    /// Price of a million tokens answered.
    pub output_price: f64,
    /// Money that the job may spend here, over all curators; absent: no limit.
    pub spend_limit: Option<f64>,
}

/// The filter that scores pairs part by part (UNO paper, section 3.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")] // `flatten` rules out `deny_unknown_fields`
pub struct JudgeFilter {
    /// Least score of a pair that is kept, 0 to 4.
    pub min: f64,
    #[serde(flatten)]
    pub kind: JudgeKind,
}

/// Who judges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum JudgeKind {
    /// A vision-language model, asked in three turns.
    Endpoint {
        /// Name of one of the job's endpoints.
        endpoint: String,
        /// How often a reply that cannot be read is asked for again.
        retries: u32,
        /// Pictures are sent with at most this many pixels on their longer side.
        image_side: u32,
    },
    /// Cosines of CLIP features, mapped to 0 to 4: the weaker judge, for clusters without an endpoint.
    Clip {
        /// Weights in the published naming, a `config.json` beside them.
        weights: String,
        /// `tokenizer.json` of the text tower.
        tokenizer: String,
        /// Cosines of reference and target that score 0 and 4.
        likeness: (f64, f64),
        /// Cosines of target and prompt that score 0 and 4.
        agreement: (f64, f64),
    },
}

/// What drawn pictures are to show (UNO paper, section 3.2 and appendix).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PromptSpec {
    /// File of categories; absent: the one that is built in. Not looked at where `subjects` is given.
    pub taxonomy: Option<String>,
    /// Subjects to be taken as they are.
    pub subjects: Option<SubjectList>,
    /// At least one, each once.
    pub styles: Vec<PromptStyle>,
    /// Subjects of each category in each style.
    pub subjects_per_category: u32,
    /// Scenes of each subject, at least 2.
    pub scenes_per_subject: u32,
    /// Name of the endpoint that writes subjects and scenes; absent: built-in templates do.
    pub endpoint: Option<String>,
}

/// Phrases that each name one subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SubjectList {
    /// A text file with one a line.
    File(String),
    List(Vec<String>),
}

/// How subjects are imagined (UNO paper, appendix).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptStyle {
    /// May be imaginary.
    Creative,
    /// Could be met in the world.
    Realistic,
    /// Carries visible lettering.
    TextDecorated,
}

impl PromptStyle {
    /// All of them, in their order.
    pub const ALL: [PromptStyle; 3] =
        [PromptStyle::Creative, PromptStyle::Realistic, PromptStyle::TextDecorated];

    /// The word that a spec has for it.
    pub fn word(self) -> &'static str {
        match self {
            PromptStyle::Creative => "creative",
            PromptStyle::Realistic => "realistic",
            PromptStyle::TextDecorated => "text-decorated",
        }
    }
}
