use std::sync::mpsc;

use tch::Kind;

use super::*;
use crate::training::{AdamWConfig, Update};
use crate::weights::{TensorMap, published_strings, to_bytes};

const TRAINED: &str = "trained";

/// Bounds that nothing here reaches.
fn wide() -> SnapshotLimits {
    SnapshotLimits { staged_bytes: u64::MAX, cloned_bytes: 0, patience: Duration::from_secs(60) }
}

/// Parameters of two blocks and the stem, a little more than a chunk in the largest file.
struct Trained {
    params: FlatParams,
    optimizer: AdamW,
    ema: Ema,
}

impl Trained {
    fn new() -> Self {
        tch::manual_seed(7);
        let mut tensors: Vec<(String, Tensor)> = [
            ("img_in.weight", vec![3, 5]),
            ("double_blocks.0.a", vec![1024, 1025]),
            ("double_blocks.0.b", vec![7]),
            ("double_blocks.10.a", vec![1024, 1024]),
            ("double_blocks.2.a", vec![1]),
        ]
        .into_iter()
        .map(|(name, shape)| (name.to_owned(), Tensor::randn(shape.as_slice(), (Kind::Float, Device::Cpu))))
        .collect();
        let params = FlatParams::adopt(Device::Cpu, &mut |visit| {
            tensors.iter_mut().for_each(|(name, tensor)| visit(name.clone(), tensor));
        })
        .unwrap();
        let optimizer = AdamW::new(AdamWConfig::default(), &params).unwrap();
        let ema = Ema::new(0.9, &params).unwrap();
        let mut trained = Self { params, optimizer, ema };
        trained.step(&mut |_| Ok(()));
        trained
    }

    fn step(&mut self, before: &mut dyn FnMut(usize) -> Result<()>) {
        for bucket in self.params.buckets() {
            drop(bucket.grads().shallow_clone().uniform_(-1.0, 1.0));
        }
        let update = Update { ema: Some(&mut self.ema), ..Update::at(0.1) };
        self.optimizer.step_after(&mut self.params, update, before).unwrap();
    }

    /// The files as they are written from whole copies.
    fn files(&self) -> Vec<Vec<u8>> {
        let bytes = |tensors: TensorMap| to_bytes(&tensors, &published_strings()).unwrap();
        vec![
            bytes(self.params.values().unwrap()),
            bytes(self.ema.export(&self.params).unwrap()),
            bytes(self.optimizer.export(&self.params).unwrap()),
        ]
    }

    fn take(&self, limits: SnapshotLimits) -> (Hold, Reader) {
        take(&self.params, &self.optimizer, Some(&self.ema), TRAINED, limits).unwrap()
    }
}

/// Content of all files, each chunk dropped as soon as it is read; `before` is called ahead of each.
fn read(reader: &mut Reader, before: &mut dyn FnMut()) -> Result<Vec<Vec<u8>>> {
    let (mut files, mut file) = (Vec::new(), Vec::new());
    loop {
        before();
        let Some(chunk) = reader.next_chunk(&mut FromHost)? else { return Ok(files) };
        assert!(chunk.is_last_of_file || chunk.as_ref().len() == CHUNK_BYTES);
        file.extend_from_slice(chunk.as_ref());
        if chunk.is_last_of_file {
            files.push(std::mem::take(&mut file));
        }
    }
}

#[test]
fn files_are_the_ones_that_whole_copies_give() {
    let trained = Trained::new();
    let (hold, mut reader) = trained.take(wide());
    let sizes: Vec<u64> = reader.files().iter().map(|file| file.size_bytes).collect();
    let names: Vec<&str> = reader.files().iter().map(|file| file.name).collect();
    assert_eq!(names, [TRAINED, EMA_FILE, OPTIMIZER_FILE]);
    let chunks = reader.chunks();
    let mut asked = 0;
    let files = read(&mut reader, &mut || asked += 1).unwrap();
    assert_eq!(files, trained.files());
    assert_eq!(sizes, files.iter().map(|file| file.len() as u64).collect::<Vec<_>>());
    // Once more for the end; some file has more than one.
    assert_eq!(asked, chunks + 1);
    assert!(chunks > files.len());
    assert!(hold.is_done());
}

#[test]
fn a_snapshot_is_of_its_step_while_the_next_one_runs() {
    let mut trained = Trained::new();
    for cloned_bytes in [0, 5_000_000, u64::MAX] {
        let expected = trained.files();
        let (mut hold, mut reader) = trained.take(SnapshotLimits { cloned_bytes, ..wide() });
        // The optimizer is ahead of every chunk: one is read each time that it has come to a bucket.
        let (arrived, at_bucket) = mpsc::channel();
        let reading = std::thread::spawn(move || {
            read(&mut reader, &mut || {
                let _ = at_bucket.recv_timeout(Duration::from_millis(50));
            })
        });
        trained.step(&mut |bucket| {
            let _ = arrived.send(());
            hold.before_change(bucket).map(drop)
        });
        drop(arrived);
        let files = reading.join().unwrap().unwrap();
        assert!(files == expected, "what changed meanwhile is in the files: clones of {cloned_bytes} bytes");
        assert!(trained.files() != expected);
    }
}

#[test]
fn clones_spare_the_wait() {
    let mut trained = Trained::new();
    let expected = trained.files();
    let (mut hold, mut reader) = trained.take(SnapshotLimits { cloned_bytes: u64::MAX, ..wide() });
    // Nobody has read anything, and the step ends all the same.
    trained.step(&mut |bucket| hold.before_change(bucket).map(drop));
    assert!(!hold.is_done());
    assert!(read(&mut reader, &mut || ()).unwrap() == expected);
}

#[test]
fn chunks_that_nobody_takes_hold_the_optimizer_up_for_a_while_only() {
    let mut trained = Trained::new();
    let expected = trained.files();
    let limits = SnapshotLimits {
        staged_bytes: 2 * CHUNK_BYTES as u64,
        patience: Duration::from_millis(20),
        ..wide()
    };
    let (mut hold, mut reader) = trained.take(limits);
    let reading = std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Some(chunk) = reader.next_chunk(&mut FromHost).unwrap() {
            kept.push(chunk);
        }
        kept.iter().flat_map(|chunk| chunk.as_ref().to_vec()).collect::<Vec<u8>>()
    });
    let mut lifted = 0;
    trained.step(&mut |bucket| {
        lifted += u32::from(hold.before_change(bucket)?.lifted);
        Ok(())
    });
    assert_eq!(lifted, 1);
    assert!(reading.join().unwrap() == expected.concat());
}

#[test]
fn training_that_goes_on_without_it_spoils_a_snapshot() {
    let trained = Trained::new();
    let (hold, mut reader) = trained.take(wide());
    let mut chunks = 0;
    let mut hold = Some(hold);
    let error = read(&mut reader, &mut || {
        chunks += 1;
        if chunks == 2 {
            hold = None;
        }
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "input snapshot: training went on without it");
    // A reader that is gone holds nobody up.
    let (mut hold, reader) = trained.take(wide());
    drop(reader);
    assert!(hold.is_done());
    assert!(!hold.before_change(0).unwrap().lifted);
}

#[test]
fn a_bucket_may_change_once_its_last_piece_is_copied() {
    let piece = |flat, bucket| Piece { flat, bucket, start: 0, len: 1 };
    // Values of buckets 0 and 1, then moments in another order.
    let order = CopyOrder::new(vec![piece(0, 0), piece(1, 1), piece(3, 1), piece(2, 0)], 3);
    for (bucket, needed) in [(0, 4), (1, 3), (2, 0)] {
        for copied in 0..=4 {
            assert_eq!(order.may_change(bucket, copied), copied >= needed, "{bucket} {copied}");
            assert_eq!(order.uncopied(bucket, copied).is_empty(), copied >= needed, "{bucket} {copied}");
        }
    }
    assert_eq!(order.uncopied(0, 0), BTreeSet::from([0, 2]));
    assert_eq!(order.uncopied(0, 2), BTreeSet::from([2]));
}

#[test]
fn bounds_follow_the_device() {
    let gigabyte = 1_000_000_000;
    let on_cpu = SnapshotLimits::new(3 * gigabyte, Device::Cpu, gigabyte);
    assert!(on_cpu.staged_bytes <= 3 * gigabyte / 2 && on_cpu.staged_bytes > gigabyte);
    assert_eq!(on_cpu.cloned_bytes, 0);
    let on_gpu = SnapshotLimits::new(3 * gigabyte, Device::Cuda(0), gigabyte);
    assert!(on_gpu.staged_bytes <= 3 * gigabyte && on_gpu.staged_bytes > 2 * gigabyte);
    assert_eq!(on_gpu.cloned_bytes, gigabyte / 2);
    // Small ones need not be sparing.
    assert_eq!(SnapshotLimits::new(1000, Device::Cpu, 0).staged_bytes, MIN_STAGED_BYTES);
}
