//! The report as one HTML file: figures, pictures and curves, with nothing to load from elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Cursor;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};
use image::{ImageFormat, RgbImage};

use super::curve::{Series, escape, smooth, svg_chart};
use super::figures::{Figures, ScoreFigures, StageFigures, Table};
use super::history::StepRecord;
use super::job::Distribution;
use super::pictures::PictureBlock;
use super::rejected::Rejected;
use crate::measures::Measure;

/// Longest side of a picture on the page, pixels.
const MOST_PIXELS: u32 = 320;
/// Pictures up to this many pixels a side are kept to the bit.
const SMALL: u32 = 96;
const JPEG_QUALITY: u8 = 88;

/// What the page shows beside the figures.
pub struct Page<'a> {
    pub figures: &'a Figures,
    pub pictures: &'a [PictureBlock<'a>],
    /// Of each stage, in the order of the figures.
    pub histories: Vec<&'a [StepRecord]>,
    /// Of each stage, by reason.
    pub rejected: Vec<BTreeMap<String, Vec<Rejected>>>,
    pub spec_yaml: &'a str,
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#dde3ea;--paper:#fff;--panel:#f5f7f9;--blue:#2a6fdb;--pale:#a9c4ee}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#a0a9b6;--line:#343b46;--paper:#15181d;--panel:#1e2229;--blue:#6aa1f4;--pale:#33527f}}\
*{box-sizing:border-box}\
body{font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',Ubuntu,Cantarell,'Helvetica Neue',Arial,sans-serif;\
max-width:64rem;margin:0 auto;padding:1.5rem 1rem 3rem;color:var(--ink);background:var(--paper)}\
h1{font-size:1.6rem;line-height:1.25;margin:0 0 1rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}h3{font-size:1rem;margin:1.4rem 0 .3rem}\
p{margin:.4rem 0}.soft,small{color:var(--soft)}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}\
.notes{background:var(--panel);border-left:3px solid #d08a2b;padding:.6rem 1rem;margin:1.2rem 0}.notes ul{margin:0;padding-left:1.1rem}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
td,th{padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}th{font-weight:600;color:var(--soft)}\
.track{position:relative;display:block;width:7rem;height:.5rem;background:var(--panel);border-radius:2px}\
.track i{position:absolute;left:0;top:0;bottom:0;background:var(--blue);border-radius:2px}.track.real i{background:var(--pale)}\
.track b{position:absolute;top:-.15rem;bottom:-.15rem;width:2px;background:var(--ink)}\
.case{border-top:1px solid var(--line);padding:.7rem 0}.case p{margin:0 0 .4rem}.case div{display:flex;flex-wrap:wrap;gap:.7rem}\
.case figure{margin:0;width:8rem}.case img{display:block;width:100%;background:var(--panel);border-radius:3px}.case img.small{image-rendering:pixelated}\
.case figcaption{font-size:.8rem;color:var(--soft)}.case .given figcaption{color:var(--ink);font-weight:600}\
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}\
.charts figure{margin:0}.charts figcaption{font-weight:600;font-size:.95rem}svg{width:100%;height:auto}.grid{stroke:var(--line)}.tick{font-size:14px;fill:var(--soft)}\
.legend span{margin-right:1rem;font-size:.85rem}.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem;border-radius:2px}\
pre{background:var(--panel);padding:1rem;overflow:auto;font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}\
summary{cursor:pointer;font-size:1.2rem;font-weight:600;margin:2.2rem 0 .6rem}\
@media(max-width:36rem){.case figure{width:calc((100% - 1.4rem)/3)}}";

/// Renders the whole page.
pub fn render(page: &Page) -> Result<String> {
    let figures = page.figures;
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{name}</title><style>{STYLE}</style></head>\
         <body><h1>{name}</h1><dl>",
        name = escape(&figures.job_name),
    );
    for (name, value) in figures.facts() {
        let _ = write!(html, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    html.push_str("</dl>");
    push_notes(&mut html, &figures.all_notes());
    push_scores(&mut html, figures);
    for block in page.pictures {
        push_pictures(&mut html, block)?;
    }
    html.push_str("<h2>Stages</h2>");
    push_table(&mut html, &figures.stage_table(), &[]);
    for ((stage, history), rejected) in figures.stages.iter().zip(&page.histories).zip(&page.rejected) {
        push_stage(&mut html, stage, history, rejected)?;
    }
    if !figures.stated.is_empty() {
        html.push_str("<h2>What the spec changes</h2><p class=\"soft\">Fields that would be otherwise if the spec did not say them.</p>");
        push_table(&mut html, &figures.stated_table(), &[]);
    }
    let _ = write!(
        html,
        "<details><summary>Job spec, as resolved</summary><pre>{}</pre></details></body></html>",
        escape(page.spec_yaml)
    );
    Ok(html)
}

fn push_notes(html: &mut String, notes: &[String]) {
    if notes.is_empty() {
        return;
    }
    html.push_str("<div class=\"notes\"><ul>");
    for note in notes {
        let _ = write!(html, "<li>{}</li>", escape(note));
    }
    html.push_str("</ul></div>");
}

fn push_scores(html: &mut String, figures: &Figures) {
    if figures.models().is_empty() {
        return;
    }
    html.push_str(
        "<h2>Is it the subject, is it what the prompt asks, is it a copy?</h2><p class=\"soft\">Percent of drawings, by networks that \
         never saw the one that drew. <b>subject</b>: the nearest of several subjects is the right one. <b>prompt</b>: scene, place and \
         count are as asked. <b>copy</b>: of several pictures of the subject, placed at random, the very reference is the nearest by \
         place, size and direction; what is not copied comes out at chance, the line in each bar. Errors are standard errors over \
         subjects.",
    );
    if !figures.ceilings.is_empty() {
        html.push_str(
            " The rows <i>real</i> are pictures as they should be, <i>reference</i> the first reference itself: what the networks can \
             tell, and what copying would give.",
        );
    }
    html.push_str("</p>");
    push_score_table(html, figures, &Measure::WHOLE, &figures.score_table());
    let parts = figures.part_table();
    if !parts.rows.is_empty() {
        html.push_str("<h3>By parts</h3>");
        push_score_table(html, figures, &Measure::PARTS, &parts);
    }
}

/// A table of scores, each with its bar.
fn push_score_table(html: &mut String, figures: &Figures, measures: &[Measure], table: &Table) {
    let shown: Vec<Measure> =
        measures.iter().copied().filter(|measure| table.headings.contains(&measure.word())).collect();
    let bars: Vec<Vec<String>> = table
        .rows
        .iter()
        .map(|row| {
            let model = row.first().map_or("", String::as_str);
            let of = |measure: &Measure| figures.find(model, *measure).map_or_else(String::new, bar);
            std::iter::once(String::new()).chain(shown.iter().map(of)).collect()
        })
        .collect();
    push_table(html, table, &bars);
}

fn bar(score: &ScoreFigures) -> String {
    let real = score.model.starts_with("real, ") || score.model.starts_with("reference, ");
    format!(
        "<span class=\"track{}\"><i style=\"width:{:.1}%\"></i><b style=\"left:{:.1}%\"></b></span>",
        if real { " real" } else { "" },
        100.0 * score.right,
        100.0 * score.chance
    )
}

/// A table, with HTML below what stands in each cell where there is any.
fn push_table(html: &mut String, table: &Table, below: &[Vec<String>]) {
    html.push_str("<div class=\"wide\"><table><tr>");
    for heading in &table.headings {
        let _ = write!(html, "<th>{heading}</th>");
    }
    html.push_str("</tr>");
    for (n, row) in table.rows.iter().enumerate() {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let below = below.get(n).and_then(|cells| cells.get(column)).map_or("", String::as_str);
            let _ = write!(html, "<td>{}{below}</td>", escape(cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div>");
}

fn push_pictures(html: &mut String, block: &PictureBlock) -> Result<()> {
    let _ = write!(html, "<h2>{}</h2>", escape(&block.title));
    if let Some(why) = &block.unscored {
        let _ = write!(html, "<p class=\"soft\">{}</p>", escape(why));
    }
    for row in &block.rows {
        let _ = write!(html, "<div class=\"case\"><p>{}</p><div>", escape(row.prompt));
        for (heading, picture) in block.headings.iter().zip(&row.pictures) {
            let given = heading.starts_with("reference") || heading == "target";
            let (class, source) = embedded(picture)?;
            let _ = write!(
                html,
                "<figure{}><img class=\"{class}\" alt=\"{heading}\" src=\"{source}\"><figcaption>{heading}</figcaption></figure>",
                if given { " class=\"given\"" } else { "" },
                heading = escape(heading),
            );
        }
        html.push_str("</div></div>");
    }
    Ok(())
}

/// A picture as a class and a data URI: small ones to the bit, large ones shrunk and as JPEG.
fn embedded(picture: &RgbImage) -> Result<(&'static str, String)> {
    let longer = picture.width().max(picture.height());
    let mut bytes = Vec::new();
    let (class, kind) = if longer <= SMALL {
        picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).context("encode a picture")?;
        ("small", "png")
    } else {
        let scale = f64::from(MOST_PIXELS.min(longer)) / f64::from(longer);
        let scaled = |side: u32| ((f64::from(side) * scale) as u32).max(1);
        let small =
            resize(picture, scaled(picture.width()), scaled(picture.height()), FilterType::CatmullRom);
        small
            .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))
            .context("encode a picture")?;
        ("large", "jpeg")
    };
    Ok((
        class,
        format!("data:image/{kind};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes)),
    ))
}

fn push_stage(
    html: &mut String,
    stage: &StageFigures,
    history: &[StepRecord],
    rejected: &BTreeMap<String, Vec<Rejected>>,
) -> Result<()> {
    let nothing = stage.pairs_rejected.is_empty() && stage.distributions.is_empty() && history.is_empty();
    if nothing && stage.validation.is_empty() {
        return Ok(());
    }
    let _ = write!(html, "<h2>{}</h2>", escape(&stage.name));
    if !stage.pairs_rejected.is_empty() {
        push_rejected(html, stage, rejected)?;
    }
    html.push_str("<div class=\"charts\">");
    for (name, distribution) in &stage.distributions {
        html.push_str(&bars(name, distribution));
    }
    if !history.is_empty() {
        push_curves(html, history);
    }
    if !stage.validation.is_empty() {
        let points = stage.validation.iter().map(|one| (one.step as f64, one.loss)).collect();
        html.push_str(&svg_chart(
            "loss on pairs that training never saw",
            "optimizer steps",
            &[Series { label: "validation loss", color: "#2a6fdb", points }],
        ));
    }
    html.push_str("</div>");
    Ok(())
}

/// How many candidates were turned down for what, and a few of them.
fn push_rejected(
    html: &mut String,
    stage: &StageFigures,
    rejected: &BTreeMap<String, Vec<Rejected>>,
) -> Result<()> {
    let all: u64 = stage.pairs_rejected.values().sum();
    let share = 100.0 * all as f64 / (all + stage.pairs_accepted).max(1) as f64;
    let _ = write!(
        html,
        "<p>{} pairs accepted, {all} candidates rejected ({share:.1} %):</p><div class=\"wide\"><table>",
        stage.pairs_accepted
    );
    for (reason, count) in &stage.pairs_rejected {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{count}</td><td><span class=\"track\"><i style=\"width:{:.1}%\"></i></span></td></tr>",
            escape(reason),
            100.0 * *count as f64 / all.max(1) as f64
        );
    }
    html.push_str("</table></div>");
    for (reason, shown) in rejected {
        let _ = write!(html, "<h3>{}</h3>", escape(&format!("Turned down: {reason}")));
        for one in shown {
            let scores =
                if one.scores.is_empty() { String::new() } else { format!(" ({})", one.scores.join(", ")) };
            let _ = write!(
                html,
                "<div class=\"case\"><p>{}</p><div>",
                escape(&format!("{}{scores}", one.prompt))
            );
            let pictures = one.reference.iter().map(|picture| ("reference", picture));
            for (heading, picture) in pictures.chain([("candidate", &one.target)]) {
                let (class, source) = embedded(picture)?;
                let _ = write!(
                    html,
                    "<figure><img class=\"{class}\" alt=\"{heading}\" src=\"{source}\"><figcaption>{heading}</figcaption></figure>"
                );
            }
            html.push_str("</div></div>");
        }
    }
    Ok(())
}

fn push_curves(html: &mut String, history: &[StepRecord]) {
    let column = |value: fn(&StepRecord) -> f64| -> Vec<(f64, f64)> {
        history.iter().map(|r| (r.step as f64, value(r))).collect()
    };
    let loss = column(|r| r.loss);
    let smoothed = smooth(&loss, 0.9);
    html.push_str(&svg_chart(
        "loss",
        "optimizer steps",
        &[
            Series { label: "each step", color: "#8fb2e6", points: loss },
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
    let (wide, high) = (600.0, 150.0);
    let top = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let step = wide / counts.len().max(1) as f64;
    let mut svg = format!(
        "<figure><figcaption>{} <small>of all candidates, accepted or not: {}</small></figcaption><svg viewBox=\"0 0 {wide} {}\">",
        escape(name),
        counts.iter().sum::<u64>(),
        high + 16.0
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
        y = high + 13.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::figures::tests::figures;
    use crate::report::pictures::PictureRow;
    use crate::report::terminal;

    fn page(figures: &Figures) -> String {
        let history = [StepRecord { step: 1, loss: 0.5, grad_norm: 1.0, learning_rate: 1e-3, seconds: 0.5 }];
        let (small, large) = (RgbImage::new(32, 32), RgbImage::new(800, 400));
        let turned_down = Rejected {
            prompt: "a <mug>".into(),
            reference: Some(RgbImage::new(8, 8)),
            target: RgbImage::new(8, 8),
            scores: vec!["similarity 0.12".into()],
        };
        let rejected = BTreeMap::from([("<low>".to_owned(), vec![turned_down])]);
        let blocks = [PictureBlock {
            title: "Subjects".into(),
            unscored: Some("Not scored: <why>.".into()),
            headings: vec!["reference".into(), "target".into(), "<b>".into()],
            rows: vec![PictureRow { prompt: "a <cup>", pictures: vec![&small, &large, &small] }],
        }];
        let page = Page {
            figures,
            pictures: &blocks,
            histories: vec![&history],
            rejected: vec![rejected],
            spec_yaml: "kind: TrainingJob",
        };
        render(&page).unwrap()
    }

    #[test]
    fn the_page_is_self_contained_and_escapes_what_users_wrote() {
        let mut figures = figures();
        figures.job_name = "<script>alert(1)</script>".into();
        let page = page(&figures);
        assert!(!page.contains("<script") && !page.contains("<cup>"), "{page}");
        assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
        for says in [
            "accepted or not: 12",
            "<td>similarity_low</td><td>12</td>",
            "Turned down: &lt;low&gt;",
            "a &lt;mug&gt; (similarity 0.12)",
            "<td>stages[0].train.steps</td><td>500</td><td>1000</td>",
            "(1.8 %)",
            "loss on pairs that training never saw",
            "<td>0.625</td>",
            "<figcaption>reference</figcaption>",
            "<figcaption>target</figcaption>",
            "<figcaption>&lt;b&gt;</figcaption>",
            "data:image/png",
            "data:image/jpeg",
            "system-ui",
            "Not scored: &lt;why&gt;.",
        ] {
            assert!(page.contains(says), "no {says} in {page}");
        }
    }

    /// One struct is printed three times.
    #[test]
    fn terminal_json_and_page_say_the_same() {
        let figures = figures();
        let (page, terminal) = (page(&figures), terminal::render(&figures));
        for cell in figures.score_table().rows.iter().chain(&figures.stage_table().rows).flatten() {
            assert!(page.contains(&escape(cell)) && terminal.contains(cell.as_str()), "{cell}");
        }
        for note in figures.all_notes() {
            let joined = terminal.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(page.contains(&escape(&note)) && joined.contains(&note), "{note}");
        }
        let json = serde_json::to_value(&figures).unwrap();
        let score = &json["scores"][0];
        for (name, shown) in [("right", "50.0"), ("chance", "20.0")] {
            let number = 100.0 * score[name].as_f64().unwrap();
            assert_eq!(format!("{number:.1}"), shown);
            assert!(page.contains(shown) && terminal.contains(shown));
        }
        let error = format!("± {:.1}", 100.0 * score["standard_error"].as_f64().unwrap());
        assert!(page.contains(&error) && terminal.contains(&error), "{error}");
    }

    #[test]
    fn what_is_not_there_has_no_heading() {
        let mut figures = figures();
        figures.scores.clear();
        figures.notes.clear();
        figures.stages[0].pairs_rejected.clear();
        figures.stages[0].validation.clear();
        figures.stated.clear();
        let rejected = vec![BTreeMap::new()];
        let page = Page { figures: &figures, pictures: &[], histories: vec![&[]], rejected, spec_yaml: "" };
        let page = render(&page).unwrap();
        assert!(!page.contains("is it a copy") && !page.contains("class=\"notes\""), "{page}");
        assert!(!page.contains("rejected") && !page.contains("no data"), "{page}");
        assert!(!page.contains("What the spec changes"), "{page}");
    }
}
