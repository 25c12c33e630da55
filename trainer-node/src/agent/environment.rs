//! Environment variables that ranks get beside those of their agent.

use std::net::IpAddr;

use super::interface;

/// The interfaces that NCCL meets over. `=` before a name: this one, not all that begin so.
const NCCL_INTERFACE: &str = "NCCL_SOCKET_IFNAME";
/// What libtorch's CUDA allocator is configured by: 2.11 reads the first that is set.
const ALLOCATOR: [&str; 2] = ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"];
/// Segments grow in place. Samples of several shapes, and the copies for a checkpoint, would otherwise leave holes that
/// nothing fits into.
const ALLOCATOR_SETTINGS: &str = "expandable_segments:True";

/// For ranks on GPUs, given the interface that carries the address at which others reach them. What `is_set` says that a
/// person has set stays as it is.
fn of_gpu_ranks(
    interface: Option<&str>,
    is_set: impl Fn(&'static str) -> bool,
) -> Vec<(&'static str, String)> {
    let mut variables = Vec::new();
    if let Some(name) = interface.filter(|_| !is_set(NCCL_INTERFACE)) {
        variables.push((NCCL_INTERFACE, format!("={name}")));
    }
    if !ALLOCATOR.into_iter().any(is_set) {
        variables.push((ALLOCATOR[0], ALLOCATOR_SETTINGS.to_owned()));
    }
    variables
}

/// For the ranks of an agent that others reach at `bind_ip`.
pub fn of_ranks(cuda: bool, bind_ip: IpAddr) -> Vec<(&'static str, String)> {
    if !cuda {
        return Vec::new();
    }
    let found = interface::carrying(bind_ip);
    if !matches!(found, Ok(Some(_))) {
        let error = found.as_ref().err().map(ToString::to_string);
        tracing::warn!(
            %bind_ip,
            error,
            "no network interface of this machine carries the address of its ranks: NCCL chooses one"
        );
    }
    let variables = of_gpu_ranks(found.ok().flatten().as_deref(), |name| std::env::var_os(name).is_some());
    for (name, value) in &variables {
        tracing::info!(name, value, "set for ranks");
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_has_set_stays() {
        let set = |variables: &'static [&'static str], interface: Option<&str>| -> Vec<String> {
            let all = of_gpu_ranks(interface, |name| variables.contains(&name));
            all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        let (nccl, allocator) =
            ("NCCL_SOCKET_IFNAME==eth0", "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True");
        assert_eq!(set(&[], Some("eth0")), [nccl, allocator]);
        assert_eq!(set(&[], None), [allocator]);
        assert_eq!(set(&["NCCL_SOCKET_IFNAME"], Some("eth0")), [allocator]);
        assert_eq!(set(&["PYTORCH_CUDA_ALLOC_CONF"], Some("eth0")), [nccl]);
        // Set beside it, the first name would hide it.
        assert_eq!(set(&["PYTORCH_ALLOC_CONF"], Some("eth0")), [nccl]);
    }

    #[test]
    fn ranks_on_cpus_get_none() {
        assert!(of_ranks(false, IpAddr::from([127, 0, 0, 1])).is_empty());
    }
}
