//! The contact sheet: one HTML file with small pictures inside, and nothing to load from elsewhere.

use std::fmt::Write as _;
use std::io::Cursor;

use base64::Engine as _;
use crescendo_proto::v1::{Histogram, StageStatus};
use image::{ImageFormat, ImageReader, Limits};

use super::gather::Found;

/// Longest side of a picture on the sheet, pixels.
const MOST_PIXELS: u32 = 192;
/// Pixels, and memory for decoding, beyond which a picture is not shown.
const MAX_PIXELS: u64 = 100_000_000;
const MAX_DECODING_BYTES: u64 = 1 << 30;

const STYLE: &str = "body{font:14px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',Ubuntu,'Helvetica Neue',Arial,sans-serif;margin:1.5rem;color:#1c2430;background:#fff}\
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}.note{color:#667}table{border-collapse:collapse}\
td{padding:.1rem .7rem .1rem 0}td.n{text-align:right;font-variant-numeric:tabular-nums}.bar{display:inline-block;height:.7rem;background:#c2571a}\
.ok .bar{background:#2d8a4e}.cards{display:flex;flex-wrap:wrap;gap:.8rem}.card{width:15rem;max-width:100%;border:1px solid #dde3ea;border-radius:6px;padding:.5rem}\
.pictures{display:flex;flex-wrap:wrap;gap:.3rem;margin-bottom:.3rem}.pictures figure{margin:0;width:96px}.pictures figcaption{font-size:.75rem;color:#667}\
.card img{display:block;width:96px;height:96px;object-fit:contain;image-rendering:auto;background:#f2f4f7}.card.rejected{border-color:#e3b9a2}\
.why{color:#a8430f;font-weight:600}.scores{font-variant-numeric:tabular-nums}details{color:#556;font-size:.8rem;overflow-wrap:anywhere}\
.figures{display:flex;flex-wrap:wrap;gap:2rem}svg{display:block}.tick{font-size:10px;fill:#667}";

/// What the sheet shows.
pub struct Sheet<'a> {
    pub job_id: &'a str,
    pub stage: &'a StageStatus,
    pub accepted: &'a [Found],
    pub rejected: &'a [Found],
}

/// The whole page.
pub fn render(sheet: &Sheet) -> String {
    let Sheet { job_id, stage, accepted, rejected } = sheet;
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{id} {name}</title><style>{STYLE}</style>\
         <h1>{id} <span class=\"note\">{name}</span></h1>",
        id = escape(job_id),
        name = escape(&stage.name)
    );
    push_counts(&mut html, stage);
    html.push_str("<div class=\"figures\">");
    for (name, histogram) in &stage.scores {
        html.push_str(&chart(name, histogram));
    }
    html.push_str("</div>");
    let mut at = 0;
    while let Some(first) = rejected.get(at) {
        let reason = first.stored.facts.rejected();
        let group = rejected[at..].iter().take_while(|one| one.stored.facts.rejected() == reason).count();
        let total = stage.pairs_rejected.get(reason).copied().unwrap_or(0).max(group as u64);
        let _ = write!(html, "<h2>Rejected, {}: {group} of {total}</h2>", escape(reason));
        push_cards(&mut html, &rejected[at..at + group]);
        at += group;
    }
    let _ = write!(html, "<h2>Accepted: {} of {}</h2>", accepted.len(), stage.pairs_committed);
    push_cards(&mut html, accepted);
    html.push_str("</html>");
    html
}

fn push_counts(html: &mut String, stage: &StageStatus) {
    let mut rows = vec![("accepted", stage.pairs_committed, "ok")];
    rows.extend(stage.pairs_rejected.iter().map(|(reason, count)| (reason.as_str(), *count, "")));
    rows.get_mut(1..).unwrap_or_default().sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let most = rows.iter().map(|row| row.1).max().unwrap_or(0).max(1);
    let all: u64 = rows.iter().map(|row| row.1).sum();
    html.push_str("<table>");
    for (name, count, class) in rows {
        let share = 100.0 * count as f64 / all.max(1) as f64;
        let width = 300.0 * count as f64 / most as f64;
        let _ = write!(
            html,
            "<tr class=\"{class}\"><td>{}</td><td class=\"n\">{count}</td><td class=\"n\">{share:.1} %</td>\
             <td><span class=\"bar\" style=\"width:{width:.0}px\"></span></td></tr>",
            escape(name)
        );
    }
    html.push_str("</table>");
}

/// Bars of one score's distribution.
fn chart(name: &str, histogram: &Histogram) -> String {
    let Histogram { least, most, counts } = histogram;
    let (wide, high) = (360.0, 80.0);
    let top = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let step = wide / counts.len().max(1) as f64;
    let mut svg = format!(
        "<figure><figcaption>{}, {} candidates</figcaption><svg width=\"{wide}\" height=\"{}\">",
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

fn push_cards(html: &mut String, found: &[Found]) {
    if found.is_empty() {
        html.push_str("<p class=\"note\">none to show</p>");
        return;
    }
    html.push_str("<div class=\"cards\">");
    for Found { unit, index, stored } in found {
        let facts = &stored.facts;
        let class = if index.is_some() { "card" } else { "card rejected" };
        let _ = write!(html, "<div class=\"{class}\"><div class=\"pictures\">");
        for (n, reference) in stored.references.iter().enumerate() {
            let label = if stored.references.len() == 1 {
                "reference".into()
            } else {
                format!("reference {}", n + 1)
            };
            html.push_str(&picture(&label, reference));
        }
        let _ = write!(html, "{}</div>", picture("target", &stored.target));
        let place =
            index.map_or_else(|| format!("unit {unit}"), |index| format!("pair {index}, unit {unit}"));
        let scores: Vec<String> =
            facts.scores.iter().map(|(name, value)| format!("{} {value:.3}", escape(name))).collect();
        let _ = write!(html, "<div>{}</div><div class=\"scores\">", escape(&facts.prompt));
        if !facts.rejected().is_empty() {
            let _ = write!(html, "<span class=\"why\">{}</span> ", escape(facts.rejected()));
        }
        let words = facts.reference_words.join(", ");
        let of_references =
            if words.is_empty() { String::new() } else { format!("references: {}<br>", escape(&words)) };
        let _ = write!(
            html,
            "{}</div><details><summary>{place}</summary>{of_references}{}</details></div>",
            scores.join(", "),
            escape(&facts.provenance.to_string())
        );
    }
    html.push_str("</div>");
}

/// A picture as a data URI, small, with what it is below; a note if it does not decode.
pub fn picture(what: &str, bytes: &[u8]) -> String {
    match small_png(bytes) {
        Some(png) => {
            let data = base64::engine::general_purpose::STANDARD.encode(png);
            format!(
                "<figure><img alt=\"{what}\" src=\"data:image/png;base64,{data}\"><figcaption>{what}</figcaption></figure>"
            )
        }
        None => format!("<span class=\"note\">({what} does not decode)</span>"),
    }
}

fn small_png(bytes: &[u8]) -> Option<Vec<u8>> {
    let reader = || ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok();
    let (width, height) = reader()?.into_dimensions().ok()?;
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return None;
    }
    let mut reader = reader()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODING_BYTES);
    reader.limits(limits);
    let mut decoded = reader.decode().ok()?;
    if width.max(height) > MOST_PIXELS {
        decoded = decoded.thumbnail(MOST_PIXELS, MOST_PIXELS);
    }
    let mut png = Cursor::new(Vec::new());
    decoded.to_rgb8().write_to(&mut png, ImageFormat::Png).ok()?;
    Some(png.into_inner())
}

pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_dataset::shard::StoredPair;
    use serde_json::json;

    fn png(width: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image::RgbImage::new(width, 10).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn found(index: Option<u64>, reason: &str) -> Found {
        let facts = json!({
            "prompt": "<script>alert(1)</script> a \"cup\"", "scores": { "similarity": 0.5 },
            "provenance": if reason.is_empty() { json!({ "unit": 3 }) } else { json!({ "rejected": reason }) },
        });
        let facts = serde_json::from_value(facts).unwrap();
        Found {
            unit: 3,
            index,
            stored: StoredPair { facts, target: png(900), references: vec![b"spoilt".to_vec()] },
        }
    }

    #[test]
    fn the_sheet_is_self_contained_and_escapes_what_it_shows() {
        let mut stage = StageStatus { name: "stage-1".into(), pairs_committed: 70, ..Default::default() };
        stage.pairs_rejected = [("similarity_low".to_owned(), 30)].into();
        let counts = vec![0, 5, 30];
        stage.scores = [("similarity".to_owned(), Histogram { least: -1.0, most: 1.0, counts })].into();
        let page = render(&Sheet {
            job_id: "uno-1",
            stage: &stage,
            accepted: &[found(Some(4), "")],
            rejected: &[
                found(None, "similarity_high"),
                found(None, "similarity_low"),
                found(None, "similarity_low"),
            ],
        });
        assert!(
            !page.contains("<script") && !page.contains("http://") && !page.contains("https://"),
            "{page}"
        );
        for says in [
            "&lt;script&gt;",
            "pair 4, unit 3",
            "Rejected, similarity_low: 2 of 30",
            "Rejected, similarity_high: 1 of 1",
            "70.0 %",
            "similarity, 35 candidates",
            "(reference does not decode)",
            "data:image/png;base64,",
            "<figcaption>target</figcaption>",
        ] {
            assert!(page.contains(says), "no {says} in {page}");
        }
        // 900 pixels wide in the store, small on the sheet.
        let small = small_png(&png(900)).unwrap();
        assert_eq!(image::load_from_memory(&small).unwrap().width(), MOST_PIXELS);
    }
}
