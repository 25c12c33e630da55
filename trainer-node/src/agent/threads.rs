//! Where the threads of a process stand, as far as the kernel tells: for the log of a rank that hangs.

use std::fs;
use std::path::{Path, PathBuf};

/// Threads that are told of at most; the one that trains goes first.
const MAX_THREADS: usize = 48;
/// Most characters of one thread.
const MAX_CHARS: usize = 600;
/// Name of the thread that trains.
const TRAIN: &str = "train";

/// One line a thread of the process: its name, state, and what the kernel shows of where it waits. What may not be read is
/// left out: the kernel's stack needs `CAP_SYS_ADMIN`. Empty if there is no such process.
pub fn of(pid: u32) -> Vec<String> {
    in_folder(&PathBuf::from(format!("/proc/{pid}/task")))
}

/// In what state a process is and where in the kernel it waits, as in `state D in nfs_wait_bit_killable`; `None` if there is no such
/// process.
pub fn stand(pid: u32) -> Option<String> {
    let path = PathBuf::from(format!("/proc/{pid}"));
    // `PID (NAME) STATE …`, where the name may hold anything.
    let about = text(&path, "stat")?;
    let state = about.rsplit_once(')')?.1.trim_start().chars().next()?;
    let wait = text(&path, "wchan").filter(|wait| !wait.is_empty() && wait != "0");
    Some(wait.map_or_else(|| format!("state {state}"), |wait| format!("state {state} in {wait}")))
}

fn in_folder(tasks: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(tasks) else { return Vec::new() };
    let named = entries.flatten().map(|entry| {
        let path = entry.path();
        (text(&path, "comm").unwrap_or_default(), path)
    });
    let mut threads: Vec<(String, PathBuf)> = named.collect();
    threads.sort_by_key(|(name, path)| (name != TRAIN, path.clone()));
    threads.iter().take(MAX_THREADS).map(|(name, path)| line(name, path)).collect()
}

fn line(name: &str, path: &Path) -> String {
    let id = path.file_name().unwrap_or_default().display();
    let mut line = format!("thread {name} ({id})");
    let status = text(path, "status").unwrap_or_default();
    if let Some(state) = status.lines().find_map(|line| line.strip_prefix("State:")) {
        line.push_str(&format!(": {}", state.trim()));
    }
    for (what, file) in [("waits in", "wchan"), ("system call", "syscall")] {
        if let Some(found) = text(path, file).filter(|found| !found.is_empty() && found != "0") {
            line.push_str(&format!("; {what} {found}"));
        }
    }
    if let Some(stack) = text(path, "stack").filter(|stack| !stack.is_empty()) {
        let calls: Vec<&str> = stack.lines().filter_map(|call| call.split_whitespace().last()).collect();
        line.push_str(&format!("; kernel stack {}", calls.join(" < ")));
    }
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARS).collect()
}

fn text(path: &Path, file: &str) -> Option<String> {
    Some(fs::read_to_string(path.join(file)).ok()?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_a_process_are_told_the_one_that_trains_first() {
        let (wait, held) = std::sync::mpsc::channel::<()>();
        let thread =
            std::thread::Builder::new().name(TRAIN.into()).spawn(move || held.recv()).expect("a thread");
        // It names itself a moment after it begins.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let lines = loop {
            let lines = of(std::process::id());
            if lines.first().is_some_and(|line| line.starts_with("thread train (")) {
                break lines;
            }
            assert!(std::time::Instant::now() < deadline, "{lines:?}");
            std::thread::yield_now();
        };
        assert!(lines[0].contains("): S (sleeping)") || lines[0].contains("): R (running)"), "{lines:?}");
        assert!(lines.len() >= 2 && lines.iter().all(|line| line.len() <= 4 * MAX_CHARS), "{lines:?}");
        drop(wait);
        let _ = thread.join();
        assert!(of(u32::MAX).is_empty());
        let stands = stand(std::process::id()).expect("it is there");
        assert!(stands.starts_with("state S") || stands.starts_with("state R"), "{stands}");
        assert_eq!(stand(u32::MAX), None);
    }
}
