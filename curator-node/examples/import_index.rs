//! Measures what reading a label file of UNO-1M's size takes: writes one with as many records as asked for, indexes it and
//! reads units from its ends. Prints one line of JSON with the highest memory of the process.
//!
//! `cargo run -p crescendo-curator-node --example import_index -- [RECORDS]`

use anyhow::{Context, Result};
use crescendo_core::spec::{Directions, ImportFormat, ImportSpec, ScoreDisagreement, ScoreInvalid};
use crescendo_curator_node::sources::import::Uno1m;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

const UNIT_SIZE: u32 = 256;

fn main() -> Result<()> {
    let records: u64 = match std::env::args().nth(1) {
        Some(text) => text.parse().with_context(|| format!("RECORDS: {text}"))?,
        None => 1_011_093,
    };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("uno_1m_total_labels.json");
    write_labels(&path, records)?;
    let label_bytes = std::fs::metadata(&path)?.len();
    let resident_before = memory_mib("VmRSS")?;

    let spec = ImportSpec {
        path: String::new(),
        format: ImportFormat::Uno1m,
        min_score: 4.0,
        score_disagreement: ScoreDisagreement::Recompute,
        score_invalid: ScoreInvalid::Reject,
        directions: Directions::Both,
        orientation: Default::default(),
        resolution: 512,
    };
    let mut data_set = Uno1m::open(folder.path(), &spec, 1)?;
    let go = AtomicBool::new(false);
    let began = Instant::now();
    data_set.unit(0, UNIT_SIZE, &go)?;
    let index_seconds = began.elapsed().as_secs_f64();
    let last = (2 * records).div_ceil(u64::from(UNIT_SIZE)).saturating_sub(1);
    let began = Instant::now();
    let end = data_set.unit(last, UNIT_SIZE, &go)?;
    anyhow::ensure!(end.exhausted && !end.candidates.is_empty(), "the last unit is not where it should be");
    println!(
        "{}",
        serde_json::json!({
            "bench": "import_index", "records": records, "label_bytes": label_bytes,
            "index_seconds": (index_seconds * 100.0).round() / 100.0,
            "last_unit_seconds": (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            "resident_before_mib": resident_before, "resident_after_mib": memory_mib("VmRSS")?,
            "highest_resident_mib": memory_mib("VmHWM")?,
        })
    );
    Ok(())
}

/// Records as long as the published ones, about 840 bytes each.
fn write_labels(path: &Path, records: u64) -> Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    let filler =
        "in a sunlit kitchen, on a wooden table beside a window with a view of the garden, ".repeat(3);
    for n in 0..records {
        let split = n / 10_000 + 1;
        let record = serde_json::json!({
            "img_path1": format!("split{split}/object365_w1024_h1536_split_Bread_{n}_0_1_725x1024.png"),
            "img_path2": format!("split{split}/object365_w1024_h1536_split_Bread_{n}_0_2_811x1024.png"),
            "caption": {
                "img_path1": format!("bread number {n} {filler}"), "img_path2": format!("bread number {n} {filler}"),
                "judgment": "same", "subject": ["bread"],
            },
            "vlm_filter_cot": { "score_part": { "crust": 4.0, "shape": 3.0, "colour": 4.0 }, "score_final": 3.5 },
        });
        file.write_all(if n == 0 { b"[" } else { b"," })?;
        serde_json::to_writer(&mut file, &record)?;
    }
    file.write_all(b"]")?;
    file.flush()?;
    Ok(())
}

fn memory_mib(what: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(what)).with_context(|| format!("find {what}"))?;
    let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}
