//! The grid of pictures: a row for what is drawn, a column for a step. One HTML file that loads nothing from elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crescendo_dataset::shard::StoredPair;
use crescendo_proto::v1::Sampling;

use crate::pairs::sheet::{escape, picture};

const STYLE: &str = "body{font:14px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',Ubuntu,'Helvetica Neue',Arial,sans-serif;margin:1.5rem;color:#1c2430;background:#fff}\
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}.note{color:#667}.wide{overflow-x:auto}table{border-collapse:collapse}\
th,td{padding:.25rem;vertical-align:top;text-align:left;font-weight:400}thead th{font-variant-numeric:tabular-nums}\
th.what{min-width:12rem;max-width:18rem}figure{margin:0;display:inline-block}figcaption{display:none}img{display:block;width:128px;height:128px;object-fit:contain;background:#f2f4f7}\
.references img{width:64px;height:64px}";

/// What a row is of: the same is drawn at each step.
type What = (String, Vec<String>, u64);

fn what(pair: &StoredPair) -> What {
    let facts = &pair.facts;
    let which = facts.provenance.get("picture").and_then(serde_json::Value::as_u64).unwrap_or_default();
    (facts.prompt.clone(), facts.reference_words.clone(), which)
}

/// The whole page.
pub fn render(job: &str, drawn: &[(Sampling, Vec<StoredPair>)]) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Samples of {id}</title><style>{STYLE}</style><h1>Samples of {id}</h1>",
        id = escape(job)
    );
    let mut stages: Vec<&str> = drawn.iter().map(|(sampling, _)| sampling.stage.as_str()).collect();
    stages.dedup();
    for stage in stages {
        let columns: Vec<&(Sampling, Vec<StoredPair>)> =
            drawn.iter().filter(|(sampling, _)| sampling.stage == stage).collect();
        push_stage(&mut html, stage, &columns);
    }
    html.push_str("</html>");
    html
}

fn push_stage(html: &mut String, stage: &str, columns: &[&(Sampling, Vec<StoredPair>)]) {
    let _ = write!(html, "<h2>{}</h2><div class=\"wide\"><table><thead><tr><th></th>", escape(stage));
    for (Sampling { step, validation, .. }, _) in columns {
        let name = if *step == 0 { "before training".to_owned() } else { format!("step {step}") };
        let loss =
            validation.as_ref().map(|loss| format!("<br><span class=\"note\">loss {:.5}</span>", loss.mean));
        let _ = write!(html, "<th scope=\"col\">{name}{}</th>", loss.unwrap_or_default());
    }
    html.push_str("</tr></thead><tbody>");
    // In the order in which they were drawn first.
    let mut rows: Vec<What> = Vec::new();
    let mut cells: BTreeMap<(usize, usize), &StoredPair> = BTreeMap::new();
    for (column, (_, pictures)) in columns.iter().enumerate() {
        for pair in pictures {
            let of = what(pair);
            let row = rows.iter().position(|known| *known == of).unwrap_or_else(|| {
                rows.push(of);
                rows.len() - 1
            });
            cells.insert((row, column), pair);
        }
    }
    for (row, (prompt, _, _)) in rows.iter().enumerate() {
        let first = cells.range((row, 0)..(row + 1, 0)).next().map(|(_, pair)| *pair);
        let _ =
            write!(html, "<tr><th class=\"what\" scope=\"row\">{}<div class=\"references\">", escape(prompt));
        for reference in first.into_iter().flat_map(|pair| &pair.references) {
            html.push_str(&picture("reference", reference));
        }
        html.push_str("</div></th>");
        for column in 0..columns.len() {
            let drawn = cells.get(&(row, column)).map(|pair| picture("drawn", &pair.target));
            let _ = write!(html, "<td>{}</td>", drawn.unwrap_or_default());
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_proto::v1::ValidationLoss;
    use serde_json::json;
    use std::io::Cursor;

    fn drawn(step: u64, prompts: &[&str]) -> (Sampling, Vec<StoredPair>) {
        let mut png = Cursor::new(Vec::new());
        image::RgbImage::new(8, 8).write_to(&mut png, image::ImageFormat::Png).expect("write");
        let pair = |prompt: &&str| StoredPair {
            facts: serde_json::from_value(json!({ "prompt": prompt, "provenance": { "picture": 0 } }))
                .expect("facts"),
            target: png.get_ref().clone(),
            references: vec![png.get_ref().clone()],
        };
        let validation = Some(ValidationLoss { mean: 0.25, ..Default::default() });
        let sampling = Sampling { stage: "stage-1".into(), step, validation, ..Default::default() };
        (sampling, prompts.iter().map(pair).collect())
    }

    #[test]
    fn what_is_drawn_at_each_step_is_a_row_and_nothing_is_loaded_or_run() {
        let page = render("<script>", &[drawn(0, &["a cup"]), drawn(40, &["a cup", "<b>a dog</b>"])]);
        assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains("://"), "{page}");
        for says in ["before training", "step 40", "loss 0.25000", "&lt;b&gt;a dog"] {
            assert!(page.contains(says), "{says} is not in {page}");
        }
        assert_eq!(page.matches("<tr>").count(), 3, "a head and two rows");
        assert_eq!(page.matches("alt=\"drawn\"").count(), 3);
        assert_eq!(page.matches("<td></td>").count(), 1, "the dog was not drawn before training");
    }
}
