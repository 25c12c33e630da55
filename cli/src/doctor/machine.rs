//! This machine: GPUs, disks, shared memory, limits, ports.

#![allow(unsafe_code, reason = "the system is asked for free room and limits")]

use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use super::programs;
use super::report::Check;
use crate::args::DoctorArgs;
use crate::show::words;

const GIB: u64 = 1 << 30;
/// Less than this and the next checkpoint fails.
const DISK_FULL: u64 = GIB;
/// Less than this is worth a word.
const DISK_LOW: u64 = 10 * GIB;
/// Ranks of a gang on one machine hand gradients to each other in here.
const SHM_LOW: u64 = GIB;
/// Open files: connections of many nodes, and every shard that is being served.
const FILES_LOW: u64 = 4096;
const FILES_NONE: u64 = 256;
const NVIDIA_SMI: Duration = Duration::from_secs(20);

pub async fn check(args: &DoctorArgs) -> Vec<Check> {
    let mut checks = vec![gpus(args.gpu).await];
    let temporary = [std::env::temp_dir()];
    let folders = if args.disk.is_empty() { &temporary[..] } else { &args.disk[..] };
    checks.extend(folders.iter().map(|folder| disk(folder, space(folder))));
    checks.push(shared_memory(space(Path::new("/dev/shm"))));
    checks.push(open_files(limit(libc::RLIMIT_NOFILE)));
    checks.push(locked_memory(limit(libc::RLIMIT_MEMLOCK), has_infiniband()));
    checks.extend(args.port.iter().map(|port| free_port(*port)));
    checks
}

async fn gpus(wanted: bool) -> Check {
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    let listed = programs::output(Path::new("nvidia-smi"), &query, NVIDIA_SMI).await;
    judge_gpus(driver.is_some(), listed, wanted)
}

fn judge_gpus(driver: bool, listed: Result<String, String>, wanted: bool) -> Check {
    let name = "gpus";
    match (driver, listed) {
        (_, Ok(text)) if !text.trim().is_empty() => {
            let gpus: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Check::ok(name, format!("{}: {}", gpus.len(), gpus.join("; ")))
        }
        (true, Ok(_)) => Check::failed(
            name,
            "the NVIDIA driver is loaded and shows no GPU",
            "in a container: give it GPUs (nvidia.com/gpu, --gpus); on a host: look at dmesg",
        ),
        (true, Err(why)) => Check::failed(
            name,
            format!("the NVIDIA driver is loaded, but {why}"),
            "install the driver's own nvidia-smi, or reboot after an upgrade of the driver",
        ),
        (false, _) if wanted => Check::failed(
            name,
            "no NVIDIA driver is loaded",
            "install a driver for CUDA 13 (580 or later); in a container: start it with the NVIDIA runtime",
        ),
        (false, _) => Check::ok(name, "none; ranks compute on the CPU (--gpu makes this a failure)"),
    }
}

/// Bytes that are free for this user, and all, of the disk that a folder is on.
fn space(folder: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: statvfs writes the whole structure or fails; zero is a valid value of each of its fields.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, and the structure lives through the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let unit = found.f_frsize;
    Ok((found.f_bavail.saturating_mul(unit), found.f_blocks.saturating_mul(unit)))
}

fn disk(folder: &Path, space: io::Result<(u64, u64)>) -> Check {
    let name = "disk";
    let shown = folder.display();
    let (free, all) = match space {
        Ok(found) => found,
        Err(error) => {
            return Check::failed(name, format!("{shown}: {error}"), "name a folder that exists with --disk");
        }
    };
    let found = format!("{shown} has {} free of {}", words::bytes(free), words::bytes(all));
    match free {
        free if free < DISK_FULL => {
            Check::failed(name, found, "make room: checkpoints and shards cannot be written")
        }
        free if free < DISK_LOW => {
            Check::warning(name, found, "make room: a checkpoint of a rank-512 LoRA takes gigabytes")
        }
        _ => Check::ok(name, found),
    }
}

fn shared_memory(space: io::Result<(u64, u64)>) -> Check {
    let name = "shared memory";
    match space {
        Err(error) => {
            Check::warning(name, format!("/dev/shm: {error}"), "mount a tmpfs there, where ranks run")
        }
        Ok((_, all)) if all < SHM_LOW => Check::warning(
            name,
            format!("/dev/shm has {}", words::bytes(all)),
            "give containers with several ranks more (sharedMemorySize in the chart, --shm-size of docker)",
        ),
        Ok((free, all)) => {
            Check::ok(name, format!("/dev/shm has {} free of {}", words::bytes(free), words::bytes(all)))
        }
    }
}

/// Soft and hard limit of a resource; `None` is no limit.
type Limit = io::Result<(Option<u64>, Option<u64>)>;

fn limit(resource: libc::__rlimit_resource_t) -> Limit {
    let mut found = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives through the call, which writes it or fails.
    if unsafe { libc::getrlimit(resource, &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let finite = |value: libc::rlim_t| (value != libc::RLIM_INFINITY).then_some(value);
    Ok((finite(found.rlim_cur), finite(found.rlim_max)))
}

fn open_files(limit: Limit) -> Check {
    let name = "open files";
    match limit {
        Err(error) => Check::warning(name, error.to_string(), ""),
        Ok((None, _)) => Check::ok(name, "no limit"),
        Ok((Some(soft), hard)) => {
            let hard = hard.map_or_else(|| "none".into(), |hard| hard.to_string());
            let found = format!("at most {soft} (hard limit {hard})");
            let remedy = "raise it: ulimit -n 65536, LimitNOFILE= of a systemd unit";
            match soft {
                soft if soft < FILES_NONE => Check::failed(name, found, remedy),
                soft if soft < FILES_LOW => Check::warning(name, found, remedy),
                _ => Check::ok(name, found),
            }
        }
    }
}

fn has_infiniband() -> bool {
    std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some())
}

fn locked_memory(limit: Limit, infiniband: bool) -> Check {
    let name = "locked memory";
    match limit {
        Err(error) => Check::warning(name, error.to_string(), ""),
        Ok((None, _)) => Check::ok(name, "no limit"),
        Ok((Some(soft), _)) if infiniband => Check::warning(
            name,
            format!("at most {}, and there is InfiniBand", words::bytes(soft)),
            "NCCL registers its buffers with the adapter: ulimit -l unlimited for trainer nodes",
        ),
        Ok((Some(soft), _)) => Check::ok(
            name,
            format!("at most {}; there is no InfiniBand that would want more", words::bytes(soft)),
        ),
    }
}

fn free_port(port: u16) -> Check {
    let name = "port";
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => Check::ok(name, format!("{port} is free")),
        Err(error) => Check::failed(
            name,
            format!("{port}: {error}"),
            "find who has it (ss -ltnp), or choose another with --listen",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    #[test]
    fn disks_are_judged_by_what_is_free() {
        let status = |free| disk(Path::new("/d"), Ok((free, 100 * GIB))).status;
        assert_eq!(
            [status(GIB / 2), status(2 * GIB), status(50 * GIB)],
            [Status::Failed, Status::Warning, Status::Ok]
        );
        assert_eq!(disk(Path::new("/nowhere"), space(Path::new("/nowhere"))).status, Status::Failed);
        assert!(space(Path::new("/")).unwrap().1 > 0);
    }

    #[test]
    fn gpus_are_wanted_or_not() {
        let status = |driver, listed: Result<&str, &str>, wanted| {
            judge_gpus(driver, listed.map(str::to_owned).map_err(str::to_owned), wanted).status
        };
        assert_eq!(status(true, Ok("NVIDIA H100, 81559 MiB, 580.1\n"), true), Status::Ok);
        assert_eq!(status(true, Ok(""), false), Status::Failed);
        assert_eq!(status(true, Err("it hangs"), false), Status::Failed);
        assert_eq!(status(false, Err("not there"), true), Status::Failed);
        assert_eq!(status(false, Err("not there"), false), Status::Ok);
    }

    #[test]
    fn limits_are_judged_by_what_needs_them() {
        assert_eq!(open_files(Ok((Some(1024), None))).status, Status::Warning);
        assert_eq!(open_files(Ok((Some(65536), Some(65536)))).status, Status::Ok);
        assert_eq!(open_files(Ok((Some(64), None))).status, Status::Failed);
        assert_eq!(locked_memory(Ok((Some(65536), None)), true).status, Status::Warning);
        assert_eq!(locked_memory(Ok((Some(65536), None)), false).status, Status::Ok);
        assert!(limit(libc::RLIMIT_NOFILE).is_ok());
        assert_eq!(shared_memory(Ok((0, 64 << 20))).status, Status::Warning);
    }

    #[test]
    fn a_port_in_use_is_found() {
        let held = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        assert_eq!(free_port(held.local_addr().unwrap().port()).status, Status::Failed);
    }
}
