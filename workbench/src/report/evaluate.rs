//! The image encoder that tells subjects apart, and the other networks that measure beside it.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use crescendo_model::dinov2::DinoV2;
use crescendo_model::tch::Device;

use super::cases::Places;
use crate::measures::judge::Encoders;

/// How the subject's encoder that comes with this program is called.
const SHIPPED_NAME: &str = "dinov2-nano, as shipped";

/// The networks that measure; how a reader may know the subject's; and a sentence where that is not the job's.
pub fn encoders(places: &Places, device: Device) -> Result<(Encoders, String, Option<String>)> {
    let named = places.spec.stages.iter().find_map(|stage| stage.data.filter.similarity.as_ref());
    let loaded = named.map(|filter| -> Result<DinoV2> {
        let path: PathBuf = places.resolve(&filter.encoder)?;
        Ok(DinoV2::load(&path, device)?)
    });
    let unnamed = || {
        anyhow!(
            "no stage names an image encoder (data.filter.similarity), so the shipped one compares; it was trained on drawings of \
             things, 32 pixels wide"
        )
    };
    match loaded.unwrap_or_else(|| Err(unnamed())) {
        Ok(network) => {
            let name = named.map_or(SHIPPED_NAME, |filter| filter.encoder.as_str()).to_owned();
            Ok((Encoders::open(Some(network), device)?, name, None))
        }
        Err(error) => {
            let note = match named {
                None => error.to_string(),
                Some(_) => format!(
                    "the job's image encoder cannot be used here, so the shipped one compares: {error:#}"
                ),
            };
            Ok((Encoders::open(None, device)?, SHIPPED_NAME.to_owned(), Some(note)))
        }
    }
}
