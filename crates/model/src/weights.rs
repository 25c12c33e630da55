//! Safetensors files in and out.
//!
//! A base of tens of gigabytes is read straight into its tensors. Nothing in a file is trusted: the header is checked
//! against the file's real length before any tensor is touched. Files are read, not mapped: one that is cut short under
//! a running process is an error of that read, where a map would end the process.

#![allow(unsafe_code, reason = "tensors are read into their own memory")]

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crescendo_dataset::whole_file;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::foreign;

/// Tensors by name, in the order of their names.
pub type TensorMap = BTreeMap<String, Tensor>;

/// An opened safetensors file: header read and checked, tensors read on demand.
pub struct TensorFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start_bytes: u64,
}

/// Bytes of a header at most, as the format has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes at the start of a file that say how long its header is.
const LENGTH_BYTES: u64 = 8;

/// What stands in a file's header.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    strings: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TensorFile {
    /// Opens `path` and checks its header: lengths, offsets and shapes against the file's size.
    pub fn open(path: &Path) -> Result<Self> {
        let io_error = |source| ModelError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error)?;
        let size_bytes = file.metadata().map_err(io_error)?.len();
        if size_bytes == 0 {
            return Err(broken(path, foreign::explain(&[], 0).unwrap_or_default()));
        }
        let unlike = |reason: String| {
            let mut start = vec![0; size_bytes.min(foreign::LOOKED_AT as u64) as usize];
            let told =
                file.read_exact_at(&mut start, 0).ok().and_then(|()| foreign::explain(&start, size_bytes));
            broken(path, told.unwrap_or(reason))
        };
        let cut = || unlike("the file is cut short within its header".to_owned());
        let read = |bytes: &mut [u8], at| match file.read_exact_at(bytes, at) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(cut()),
            outcome => outcome.map_err(io_error),
        };
        let mut length = [0; LENGTH_BYTES as usize];
        read(&mut length, 0)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(unlike(SafeTensorError::HeaderTooLarge.to_string()));
        }
        if header_bytes > size_bytes.saturating_sub(LENGTH_BYTES) {
            return Err(cut());
        }
        let mut header = vec![0; header_bytes as usize];
        read(&mut header, LENGTH_BYTES)?;
        let metadata = metadata_of(&header).map_err(|error| unlike(error.to_string()))?;
        let data_start_bytes = LENGTH_BYTES + header_bytes;
        let data_bytes = size_bytes - data_start_bytes;
        if metadata.data_len() as u64 != data_bytes {
            return Err(unlike(match first_tensor_past(data_bytes, &metadata) {
                Some(name) => format!("the file is cut short: tensor {name} reaches past its end"),
                None => "the file's length does not match its header".to_owned(),
            }));
        }
        Ok(Self { path: path.to_owned(), file, metadata, data_start_bytes })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort();
        names
    }

    /// Shape and dtype of one tensor, without reading it.
    pub fn info(&self, name: &str) -> Option<(Vec<i64>, Dtype)> {
        let info = self.metadata.info(name)?;
        Some((info.shape.iter().map(|d| *d as i64).collect(), info.dtype))
    }

    /// The free-form strings of the header.
    pub fn strings(&self) -> HashMap<String, String> {
        self.metadata.metadata().clone().unwrap_or_default()
    }

    /// Reads one tensor onto the CPU in the dtype that it has in the file.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self
            .metadata
            .info(name)
            .ok_or_else(|| broken(&self.path, format!("tensor {name} is missing")))?;
        let kind = kind_of(info.dtype).ok_or_else(|| {
            broken(&self.path, format!("tensor {name} has unsupported dtype {:?}", info.dtype))
        })?;
        let (start, end) = info.data_offsets;
        let bytes = end.saturating_sub(start);
        let numel = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        if numel.and_then(|n| n.checked_mul(kind.elt_size_in_bytes())) != Some(bytes) {
            return Err(broken(
                &self.path,
                format!("tensor {name} has {bytes} bytes, which its shape does not explain"),
            ));
        }
        let shape: Vec<i64> = info.shape.iter().map(|d| *d as i64).collect();
        let tensor = Tensor::f_empty(&shape, (kind, Device::Cpu))?;
        if bytes == 0 {
            return Ok(tensor);
        }
        // SAFETY: a new tensor on the CPU is contiguous, has this many bytes by the check above, and nobody else has it.
        let memory = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), bytes) };
        match self.file.read_exact_at(memory, self.data_start_bytes.saturating_add(start as u64)) {
            Ok(()) => Ok(tensor),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(broken(
                &self.path,
                format!(
                    "tensor {name} reaches past the end of the file, which was cut short while it was in use"
                ),
            )),
            Err(source) => Err(ModelError::Io { path: self.path.clone(), source }),
        }
    }

    /// Reads every tensor onto the CPU.
    pub fn all(&self) -> Result<TensorMap> {
        self.names()
            .into_iter()
            .map(|name| {
                let tensor = self.tensor(&name)?;
                Ok((name, tensor))
            })
            .collect()
    }
}

pub(crate) fn broken(path: &Path, reason: String) -> ModelError {
    ModelError::File { path: path.to_owned(), reason }
}

/// What a header says, with offsets that follow each other and fit shapes and dtypes.
fn metadata_of(header: &[u8]) -> std::result::Result<Metadata, SafeTensorError> {
    let text = std::str::from_utf8(header).map_err(SafeTensorError::InvalidHeader)?;
    let Header { strings, tensors } =
        serde_json::from_str(text).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    let mut tensors: Vec<(String, TensorInfo)> = tensors.into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    Metadata::new(strings, tensors)
}

/// The name of the tensor with the lowest offset whose data lies past `data_bytes`.
fn first_tensor_past(data_bytes: u64, metadata: &Metadata) -> Option<String> {
    let past = |info: &TensorInfo| info.data_offsets.1 as u64 > data_bytes;
    let tensors = metadata.tensors();
    let found = tensors.into_iter().filter(|(_, info)| past(info));
    found.min_by_key(|(_, info)| info.data_offsets).map(|(name, _)| name)
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F8_E4M3 => Kind::Float8e4m3fn,
        Dtype::F8_E5M2 => Kind::Float8e5m2,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Bool => Dtype::BOOL,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Float8e4m3fn => Dtype::F8_E4M3,
        Kind::Float8e5m2 => Dtype::F8_E5M2,
        _ => return None,
    })
}

/// The bytes of one tensor on the host, with its shape and dtype.
struct HostTensor {
    dtype: Dtype,
    shape: Vec<i64>,
    bytes: Vec<u8>,
}

fn to_host(name: &str, tensor: &Tensor) -> Result<HostTensor> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let kind = tensor.f_kind()?;
    let dtype =
        dtype_of(kind).ok_or_else(|| ModelError::input(name, format!("dtype {kind:?} cannot be saved")))?;
    let numel = tensor.numel();
    let mut bytes = vec![0u8; numel * kind.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, numel)?;
    Ok(HostTensor { dtype, shape: tensor.size(), bytes })
}

/// What precedes the data of a safetensors file whose tensors, by name, dtype and shape, follow each other in this order.
pub(crate) fn header<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [i64])>,
    strings: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !strings.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(strings));
    }
    let mut offset = 0;
    for (name, dtype, shape) in tensors {
        let elements: u64 = shape.iter().map(|side| side.unsigned_abs()).product();
        let end = offset + elements * dtype.bitsize() as u64 / 8;
        let entry =
            serde_json::json!({ "dtype": dtype.to_string(), "shape": shape, "data_offsets": [offset, end] });
        header.insert(name.to_owned(), entry);
        offset = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = Vec::with_capacity(8 + text.len());
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&text);
    bytes
}

/// The safetensors bytes of `tensors`, with `strings` in the header. The same content gives the same bytes
/// (the library's own writer orders the strings by a hash that differs from process to process).
pub fn to_bytes(tensors: &TensorMap, strings: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut host = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.as_str(), to_host(name, tensor)?)))
        .collect::<Result<Vec<_>>>()?;
    // Wide elements first, so that every tensor is aligned to its own element size.
    host.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.dtype.bitsize()), *name));
    let header =
        header(host.iter().map(|(name, tensor)| (*name, tensor.dtype, tensor.shape.as_slice())), strings);
    let data_bytes: usize = host.iter().map(|(_, tensor)| tensor.bytes.len()).sum();
    let mut bytes = Vec::with_capacity(header.len() + data_bytes);
    bytes.extend_from_slice(&header);
    for (_, tensor) in &host {
        bytes.extend_from_slice(&tensor.bytes);
    }
    Ok(bytes)
}

/// Writes a safetensors file so that `path` holds either its old content or all of the new one.
pub fn save(path: &Path, tensors: &TensorMap, strings: &BTreeMap<String, String>) -> Result<()> {
    let bytes = to_bytes(tensors, strings)?;
    let io_error = |source| ModelError::Io { path: path.to_owned(), source };
    whole_file::write(path, &bytes).map_err(io_error)
}

/// The header strings that published adapter files carry.
pub fn published_strings() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> TensorMap {
        BTreeMap::from([
            ("a".to_owned(), Tensor::from_slice(&[1.0f32, 2.0, 3.0])),
            ("b".to_owned(), Tensor::from_slice(&[1i64, 2]).view([2, 1])),
            ("c".to_owned(), Tensor::from_slice(&[0.5f32]).to_kind(Kind::BFloat16)),
            ("scalar".to_owned(), Tensor::from(7.0f32)),
        ])
    }

    fn reason(path: &Path) -> String {
        TensorFile::open(path).unwrap_err().to_string()
    }

    #[test]
    fn what_is_saved_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let strings =
            BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("step".to_owned(), "4".to_owned())]);
        save(&path, &sample(), &strings).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.strings(), strings.clone().into_iter().collect());
        for (name, tensor) in sample() {
            let read = file.tensor(&name).unwrap();
            assert_eq!(read, tensor, "{name}");
            assert_eq!(read.kind(), tensor.kind());
        }
        assert_eq!(to_bytes(&file.all().unwrap(), &strings).unwrap(), std::fs::read(&path).unwrap());
        assert!(file.tensor("z").is_err());
    }

    #[test]
    fn damage_is_an_error_that_names_file_and_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let bytes = to_bytes(&sample(), &BTreeMap::new()).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
        let text = reason(&path);
        assert!(text.contains("t.safetensors") && text.contains("tensor a"), "{text}");
        for cut in [7, 8, 40] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(reason(&path).contains("short"), "{}", reason(&path));
        }
        std::fs::write(&path, b"").unwrap();
        assert!(reason(&path).contains("empty"), "{}", reason(&path));
        std::fs::write(&path, b"GGUF\x03\0\0\0").unwrap();
        assert!(reason(&path).contains("t.safetensors") && reason(&path).contains("GGUF"));
        let mut lying = bytes.clone();
        lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(&path, &lying).unwrap();
        assert!(TensorFile::open(&path).is_err());
        let header = br#"{"x":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}"#;
        let mut wide = (header.len() as u64).to_le_bytes().to_vec();
        wide.extend_from_slice(header);
        wide.extend_from_slice(&[0; 4]);
        std::fs::write(&path, &wide).unwrap();
        assert!(TensorFile::open(&path).is_err());
        assert!(TensorFile::open(&folder.path().join("absent")).is_err());
    }

    #[test]
    fn a_file_that_is_cut_short_while_it_is_in_use_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        save(&path, &sample(), &BTreeMap::new()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let cut = File::options().write(true).open(&path).unwrap();
        cut.set_len(file.data_start_bytes + 20).unwrap();
        assert_eq!(file.tensor("b").unwrap(), sample()["b"], "what is still there");
        let text = file.tensor("a").unwrap_err().to_string();
        assert!(text.contains("t.safetensors") && text.contains("tensor a reaches past the end"), "{text}");
        cut.set_len(0).unwrap();
        assert!(file.all().is_err());
    }

    #[test]
    fn tensors_without_elements_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let nothing = BTreeMap::from([("e".to_owned(), Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)))]);
        save(&path, &nothing, &BTreeMap::new()).unwrap();
        assert_eq!(TensorFile::open(&path).unwrap().tensor("e").unwrap().size(), [0, 3]);
    }
}
