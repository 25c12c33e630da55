//! What lies under the name of a weight file without being one, told from its first bytes.

/// Bytes at the start that tell.
pub(crate) const LOOKED_AT: usize = 512;
/// Characters of a text that are shown.
const SHOWN: usize = 60;

/// What the file is and what to do, if its first bytes are those of something that people have in place of a safetensors
/// file. `size_bytes` is the length of all of it.
pub(crate) fn explain(bytes: &[u8], size_bytes: u64) -> Option<String> {
    let start = bytes.get(..bytes.len().min(LOOKED_AT))?;
    let begins = |with: &[u8]| start.starts_with(with);
    if start.is_empty() {
        return Some("it is empty: the download failed, or is still under way".to_owned());
    }
    if begins(b"version https://git-lfs") {
        return Some(pointer(start));
    }
    if begins(b"GGUF") {
        return Some(
            "it is a GGUF file, whose weights are quantised for other programs: take the safetensors file of the same model"
                .to_owned(),
        );
    }
    if begins(b"PK\x03\x04") {
        return Some(format!("it is a zip archive, as torch.save writes pickles. {CONVERT}"));
    }
    // Protocol 2 to 5 of pickle, as older versions of torch.save write it.
    if matches!(start, [0x80, 2..=5, ..]) {
        return Some(format!("it is a Python pickle. {CONVERT}"));
    }
    let of_others: [(&[u8], &str); 6] = [
        (b"\x89HDF", "an HDF5 file, as Keras writes it"),
        (b"\x1f\x8b", "compressed with gzip: unpack it"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it"),
        (b"7z\xbc\xaf", "a 7z archive: unpack it"),
        (b"\x89PNG", "a picture (PNG)"),
        (b"\xff\xd8\xff", "a picture (JPEG)"),
    ];
    if let Some((_, what)) = of_others.iter().find(|(magic, _)| begins(magic)) {
        return Some(format!("it is {what}"));
    }
    text(start, size_bytes)
}

const CONVERT: &str = "Pickles can run code and are not read: take the safetensors file of the same model, or write one with safetensors.torch.save_file";

fn pointer(start: &[u8]) -> String {
    let text = String::from_utf8_lossy(start);
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
    let of = size.map_or_else(String::new, |bytes| format!(" to a file of {:.2} GB", bytes as f64 / 1e9));
    format!("it is a Git-LFS pointer{of}, not the file itself: fetch that with `git lfs pull`")
}

/// A web page or a message that was saved under the file's name. The first eight bytes of a safetensors file are a length, of
/// which the upper ones are zero.
fn text(start: &[u8], size_bytes: u64) -> Option<String> {
    let readable = |text: &&str| text.chars().all(|c| !c.is_control() || c.is_whitespace());
    // The last character may be cut in two.
    let whole = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(start.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    let text = Some(whole).filter(readable)?.trim_start();
    let lower = text.to_ascii_lowercase();
    if lower.starts_with("<!doctype") || lower.starts_with("<html") || lower.starts_with("<?xml") {
        return Some(format!("it is a web page of {size_bytes} bytes, not weights: {DOWNLOAD}"));
    }
    let line: String = text.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
    Some(format!("it is text that begins with {line:?}, not weights: {DOWNLOAD}"))
}

const DOWNLOAD: &str = "the download wants a login or an accepted licence, or its address is wrong";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_have_instead_is_named_with_what_to_do() {
        let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 23802932552\n";
        for (bytes, parts) in [
            (lfs.as_bytes(), ["Git-LFS pointer", "23.80 GB", "git lfs pull"]),
            (b"GGUF\x03\0\0\0", ["GGUF", "quantised", "safetensors"]),
            (b"PK\x03\x04\0\0\0\0", ["zip", "pickle", "safetensors"]),
            (b"\x80\x02\x8a\x0al\xfc", ["pickle", "code", "safetensors"]),
            (b"\n <!DOCTYPE html><html>", ["web page", "login", "23 bytes"]),
            (b"Access to this model is restricted.\nx", ["Access to this", "login", "text"]),
            (b"{\"error\": \"not found\"}", ["error", "not weights", "text"]),
            (b"\x1f\x8b\x08\0", ["gzip", "unpack", "it is"]),
            (b"", ["empty", "download", "failed"]),
        ] {
            let found = explain(bytes, bytes.len() as u64).unwrap();
            assert!(parts.iter().all(|part| found.contains(part)), "{found}");
        }
        let long = "é".repeat(LOOKED_AT);
        assert!(explain(long.as_bytes(), 9).unwrap().contains("text"));
    }

    #[test]
    fn headers_of_safetensors_are_none_of_it() {
        for length in [2u64, 8, 80, 0x2020, 1 << 20, 1 << 32] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend_from_slice(b"{\"a\":{}}");
            assert_eq!(explain(&bytes, 16), None, "{length}");
        }
        assert_eq!(explain(&[0xff; 40], 40), None);
    }
}
