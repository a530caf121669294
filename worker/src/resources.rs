//! What this machine has: memory, and the kind that decides which workers compute the same bits.

use std::{fs, io, path::Path};

use lorafleet_proto::v1 as pb;
use lorafleet_store::Digest;

/// What the coordinator is told.
///
/// # Errors
/// This program's own file cannot be read.
pub fn resources(threads: usize) -> io::Result<pb::WorkerResources> {
    Ok(pb::WorkerResources {
        device: "cpu".to_owned(),
        memory_bytes: memory_bytes(),
        threads: threads as u32,
        slots: 1,
        kind: kind()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Same build, processor, instruction set and cache sizes: workers of one kind compute the same bits.
fn kind() -> io::Result<String> {
    let build = Digest::of(&fs::read(std::env::current_exe()?)?).to_string();
    let (model, flags) = processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let traits = Digest::of(format!("{model}\n{flags}\n{}", caches()).as_bytes()).to_string();
    let model = if model.is_empty() { std::env::consts::ARCH } else { &model };
    Ok(format!("cpu {model}; traits {}; build {}", &traits[..8], &build[..8]))
}

/// Model and instruction set from /proc/cpuinfo.
fn processor(cpuinfo: &str) -> (String, String) {
    let field = |names: &[&str]| {
        let pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let found =
            pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| names.contains(name));
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    (field(&["model name", "CPU part"]), field(&["flags", "Features"]))
}

/// Sizes of the first core's caches, which may choose a product's blocking.
fn caches() -> String {
    let dir = Path::new("/sys/devices/system/cpu/cpu0/cache");
    let size = |index: u32| fs::read_to_string(dir.join(format!("index{index}/size"))).unwrap_or_default();
    (0..8).map(|index| format!("{} ", size(index).trim())).collect()
}

/// The machine's memory, or what this container may use of it.
pub(crate) fn memory_bytes() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").unwrap_or_default();
    memory(&meminfo, &limit)
}

fn memory(meminfo: &str, cgroup_limit: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    let total = total.and_then(|kilobytes| kilobytes.trim().parse::<u64>().ok()).map_or(0, |kb| kb * 1024);
    match cgroup_limit.trim().parse::<u64>() {
        Ok(limit) if total == 0 || limit < total => limit,
        _ => total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_smaller_of_machine_and_container() {
        let meminfo = "MemTotal:       16384 kB\nMemFree: 1 kB\n";
        assert_eq!(memory(meminfo, "max\n"), 16 << 20);
        assert_eq!(memory(meminfo, "1048576\n"), 1 << 20);
        assert_eq!(memory(meminfo, "99999999999\n"), 16 << 20);
        assert_eq!(memory("", ""), 0);
    }

    #[test]
    fn the_processor_is_read() {
        let cpuinfo =
            "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2\n\nprocessor\t: 1\n";
        assert_eq!(processor(cpuinfo), ("Some CPU @ 2 GHz".to_owned(), "fpu avx2".to_owned()));
        let one = resources(2).unwrap();
        assert_eq!(one.kind, resources(1).unwrap().kind);
    }
}
