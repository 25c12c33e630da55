//! The report as one HTML file: figures, pictures and curves, with nothing to load from elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;

use super::curve::{Series, escape, smooth, svg_chart};
use super::history::StepRecord;
use super::job::Distribution;
use super::score::Score;

/// Everything that the page shows.
pub struct Report<'a> {
    pub job_id: &'a str,
    pub job_name: &'a str,
    pub stages: Vec<StageReport<'a>>,
    /// One row a model: base, then each stage.
    pub scores: &'a [Score],
    /// Real held-out pictures that the image encoder itself assigns, with one subject and with two: the ceilings.
    pub ceilings: &'a [Score],
    /// Pictures to choose from in each score.
    pub candidates: usize,
    /// PNG of the grid reference | prompt | before | after each stage.
    pub grid_png: &'a [u8],
    /// Path of the LoRA that the job ended with, as shown to the reader.
    pub lora_path: &'a str,
    pub spec_yaml: &'a str,
}

/// One stage of the job.
pub struct StageReport<'a> {
    pub name: &'a str,
    pub references: u32,
    pub steps: u64,
    pub restarts: u32,
    pub pairs_accepted: u64,
    /// Reason and count.
    pub pairs_rejected: Vec<(&'a str, u64)>,
    /// Of each score, over all candidates.
    pub scores: &'a BTreeMap<String, Distribution>,
    pub history: &'a [StepRecord],
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse}\
td,th{padding:.25rem .8rem;border-bottom:1px solid #dde3ea;text-align:left}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
figure{margin:1rem 0}figcaption{font-weight:600}figcaption small{font-weight:400;color:#667}svg{width:100%;height:auto}\
.grid{stroke:#e6eaef}.tick{font-size:10px;fill:#667}.legend span{margin-right:1rem;font-size:.85rem}\
.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem;border-radius:2px}\
img.grid-picture{width:100%;image-rendering:pixelated}.note{color:#667}pre{background:#f5f7f9;padding:1rem;overflow:auto;font-size:.85rem}\
.bar{display:inline-block;height:.7rem;background:#2a6fdb;border-radius:2px}";

/// Renders the whole page.
pub fn render(report: &Report) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{name}</title><style>{STYLE}</style><h1>{name} <small class=\"note\">{id}</small></h1>",
        name = escape(report.job_name),
        id = escape(report.job_id)
    );
    let _ = write!(html, "<p>Trained LoRA: <code>{}</code></p>", escape(report.lora_path));
    push_scores(&mut html, report);
    let _ = write!(
        html,
        "<h2>Subjects that training never saw</h2><img class=\"grid-picture\" alt=\"reference, prompt, before, after each stage\" \
         src=\"data:image/png;base64,{}\">",
        base64::engine::general_purpose::STANDARD.encode(report.grid_png)
    );
    for stage in &report.stages {
        push_stage(&mut html, stage);
    }
    let _ = write!(html, "<h2>Job spec, as resolved</h2><pre>{}</pre></html>", escape(report.spec_yaml));
    html
}

fn push_scores(html: &mut String, report: &Report) {
    let _ = write!(
        html,
        "<h2>How often is the nearest subject the right one?</h2><p class=\"note\">Each drawn picture is compared by the image encoder \
         with {n} held-out subjects; one of them is right, so chance is {chance:.1} %. The rows of real pictures are the ceiling.</p><table><tr><th>model</th><th>references</th><th class=\"n\">right</th>\
         <th class=\"n\">standard error</th><th class=\"n\">draws</th><th></th></tr>",
        n = report.candidates,
        chance = 100.0 / report.candidates as f64,
    );
    for score in report.scores.iter().chain(report.ceilings) {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{:.1} %</td><td class=\"n\">± {:.1}</td><td class=\"n\">{}</td>\
             <td><span class=\"bar\" style=\"width:{:.0}px\"></span></td></tr>",
            escape(&score.label),
            score.references,
            100.0 * score.share(),
            100.0 * score.standard_error(),
            score.draws(),
            200.0 * score.share(),
        );
    }
    html.push_str("</table>");
}

fn push_stage(html: &mut String, stage: &StageReport) {
    let _ = write!(
        html,
        "<h2>{}</h2><table><tr><th>references</th><th class=\"n\">steps</th><th class=\"n\">restarts</th>\
         <th class=\"n\">pairs accepted</th><th>pairs rejected</th></tr><tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td>{}</td></tr></table>",
        escape(stage.name),
        stage.references,
        stage.steps,
        stage.restarts,
        stage.pairs_accepted,
        if stage.pairs_rejected.is_empty() {
            "none".to_owned()
        } else {
            let all: Vec<String> =
                stage.pairs_rejected.iter().map(|(reason, n)| format!("{} {n}", escape(reason))).collect();
            all.join(", ")
        }
    );
    for (name, scores) in stage.scores {
        html.push_str(&bars(name, scores));
    }
    let column = |value: fn(&StepRecord) -> f64| -> Vec<(f64, f64)> {
        stage.history.iter().map(|r| (r.step as f64, value(r))).collect()
    };
    let loss = column(|r| r.loss);
    let smoothed = smooth(&loss, 0.95);
    html.push_str(&svg_chart(
        "loss",
        "optimizer steps",
        &[
            Series { label: "each step", color: "#b9cdea", points: loss },
            Series { label: "moving average", color: "#2a6fdb", points: smoothed },
        ],
    ));
    html.push_str(&svg_chart(
        "gradient norm before clipping",
        "optimizer steps",
        &[Series { label: "gradient norm", color: "#c2571a", points: column(|r| r.grad_norm) }],
    ));
    let rate = |r: &StepRecord| if r.seconds > 0.0 { 1.0 / r.seconds } else { f64::NAN };
    html.push_str(&svg_chart(
        "steps per second",
        "optimizer steps",
        &[Series { label: "steps per second", color: "#2d8a4e", points: smooth(&column(rate), 0.9) }],
    ));
}

/// A score's distribution as bars.
fn bars(name: &str, scores: &Distribution) -> String {
    let Distribution { least, most, counts } = scores;
    let (wide, high) = (600.0, 90.0);
    let top = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let step = wide / counts.len().max(1) as f64;
    let mut svg = format!(
        "<figure><figcaption>{} <small>all candidates, accepted or not: {}</small></figcaption><svg viewBox=\"0 0 {wide} {}\">",
        escape(name),
        counts.iter().sum::<u64>(),
        high + 14.0
    );
    for (n, count) in counts.iter().enumerate() {
        let bar = high * *count as f64 / top;
        let _ = write!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{bar:.1}\" fill=\"#2a6fdb\"/>",
            n as f64 * step,
            high - bar,
            (step - 1.0).max(0.5)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"tick\" x=\"0\" y=\"{y}\">{least}</text>\
         <text class=\"tick\" x=\"{wide}\" y=\"{y}\" text-anchor=\"end\">{most}</text></svg></figure>",
        y = high + 12.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_self_contained_and_escapes_what_users_wrote() {
        let history = [StepRecord { step: 1, loss: 0.5, grad_norm: 1.0, learning_rate: 1e-3, seconds: 0.5 }];
        let similarity = Distribution { least: -1.0, most: 1.0, counts: vec![1, 11] };
        let scores = BTreeMap::from([("similarity".to_owned(), similarity)]);
        let score = Score { label: "base".into(), references: 0, per_subject: vec![vec![true, false]] };
        let page = render(&Report {
            job_id: "x-1",
            job_name: "<script>alert(1)</script>",
            stages: vec![StageReport {
                name: "stage-1",
                references: 1,
                steps: 1,
                restarts: 0,
                pairs_accepted: 10,
                pairs_rejected: vec![("similarity_low", 2)],
                scores: &scores,
                history: &history,
            }],
            scores: std::slice::from_ref(&score),
            ceilings: std::slice::from_ref(&score),
            candidates: 16,
            grid_png: b"png",
            lora_path: "dit_lora.safetensors",
            spec_yaml: "kind: TrainingJob",
        });
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
        assert!(page.contains("accepted or not: 12"), "{page}");
        assert!(page.contains("similarity_low 2") && page.contains("50.0 %"), "{page}");
    }
}
