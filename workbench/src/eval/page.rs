//! The results as one HTML file with the pictures in it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use crescendo_dataset::pictures::Picture;
use image::DynamicImage;
use image::codecs::jpeg::JpegEncoder;

use super::benchmark::Benchmark;
use super::drawing;
use super::ledger::Scores;
use super::summary::{Means, Summary};
use crate::report::escape;

/// Longer side of a picture on the page, pixels: 4500 of them stay some 30 MB.
const THUMBNAIL: u32 = 128;
const JPEG_QUALITY: u8 = 80;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c2430}\
table{border-collapse:collapse}td,th{padding:.25rem .8rem;border-bottom:1px solid #dde3ea;text-align:left}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.note{color:#667}details{margin:1rem 0}summary{cursor:pointer;font-weight:600}\
.strip{display:flex;flex-wrap:wrap;gap:.6rem}figure{margin:0;width:128px}figcaption{font-size:.7rem;line-height:1.3;overflow-wrap:anywhere}\
img{display:block;max-width:128px}.lost{outline:3px solid #c2371a}";

/// Renders the page; the drawings are read from `drawings` once more.
pub fn render(benchmark: &Benchmark, summary: &Summary, scores: &Scores, drawings: &Path) -> Result<String> {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>evaluation</title><style>{STYLE}</style><h1>Evaluation</h1><p class=\"note\">{} pictures, {} a prompt; {}</p>",
        summary.pictures,
        summary.samples,
        escape(&summary.scorer)
    );
    let crops = summary.means.crops.is_some();
    html.push_str("<table><tr><th>subjects</th><th class=\"n\">DINO</th><th class=\"n\">CLIP-I</th><th class=\"n\">CLIP-T</th>");
    if crops {
        html.push_str(
            "<th class=\"n\">found</th><th class=\"n\">DINO of crops</th><th class=\"n\">CLIP-I of crops</th>",
        );
    }
    html.push_str("</tr>");
    push_line(&mut html, "all", &summary.means, crops);
    for group in &summary.groups {
        push_line(&mut html, &group.subjects, &group.means, crops);
    }
    html.push_str("</table>");
    if crops {
        html.push_str(
            "<p class=\"note\">Crops: each subject is looked for in the picture and compared by the box that it was found in; one \
             that was not found counts 0. Pictures that lack a subject are outlined.</p>",
        );
    }
    for group in &summary.groups {
        let _ = write!(html, "<details><summary>{}</summary><div class=\"strip\">", escape(&group.subjects));
        let subjects =
            benchmark.rows.get(group.first_row).map(|row| row.subjects.as_slice()).unwrap_or_default();
        for subject in subjects {
            let subject = &benchmark.subjects[*subject];
            if let Some(path) = subject.pictures.first() {
                push_picture(&mut html, path, &format!("<b>{}</b>", escape(&subject.name)), false)?;
            }
        }
        for ((row, sample), score) in scores.range((group.first_row, 0)..(group.first_row + group.rows, 0)) {
            let path = drawing(drawings, *row, *sample);
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
            let caption = format!(
                "{}<br>DINO {:.3} CLIP-I {:.3} CLIP-T {:.3}",
                escape(&benchmark.rows[*row].prompt),
                mean(&score.dino),
                mean(&score.clip_i),
                score.clip_t
            );
            let lost = score.crops.as_ref().is_some_and(|crops| crops.found.contains(&false));
            push_picture(&mut html, &path, &caption, lost)?;
        }
        html.push_str("</div></details>");
    }
    html.push_str("</html>");
    Ok(html)
}

fn push_line(html: &mut String, name: &str, means: &Means, crops: bool) {
    let _ = write!(
        html,
        "<tr><td>{}</td><td class=\"n\">{:.4}</td><td class=\"n\">{:.4}</td><td class=\"n\">{:.4}</td>",
        escape(name),
        means.dino,
        means.clip_i,
        means.clip_t
    );
    match &means.crops {
        Some(crops) => {
            let _ = write!(
                html,
                "<td class=\"n\">{:.1} %</td><td class=\"n\">{:.4}</td><td class=\"n\">{:.4}</td>",
                100.0 * crops.found,
                crops.dino,
                crops.clip_i
            );
        }
        None if crops => html.push_str("<td></td><td></td><td></td>"),
        None => {}
    }
    html.push_str("</tr>");
}

/// `caption` is HTML.
fn push_picture(html: &mut String, path: &Path, caption: &str, lost: bool) -> Result<()> {
    let picture =
        DynamicImage::ImageRgb8(Picture::open(path)?.to_rgb()).thumbnail(THUMBNAIL, THUMBNAIL).to_rgb8();
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
        .encode_image(&picture)
        .with_context(|| format!("shrink {}", path.display()))?;
    let _ = write!(
        html,
        "<figure><img{} alt=\"\" src=\"data:image/jpeg;base64,{}\"><figcaption>{caption}</figcaption></figure>",
        if lost { " class=\"lost\"" } else { "" },
        base64::engine::general_purpose::STANDARD.encode(jpeg)
    );
    Ok(())
}
