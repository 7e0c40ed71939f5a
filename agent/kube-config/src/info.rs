//! `kube-config info`: the machine, then the node. Works without the agent too, and says so.

use std::path::Path;

use anyhow::Result;
use procfs::Current;

use crate::wire::{self, Info};

/// Prints the lines that kubernetes-on-arm printed, in its order.
pub(crate) async fn print(socket: &Path) -> Result<()> {
    machine()?;
    println!();
    println!("Bramble: ");
    println!("Version: {}", env!("CARGO_PKG_VERSION"));
    println!();
    match wire::call(socket, "GET", "/info", &(), |_| {}).await {
        Ok(value) => node(&serde_json::from_value(value)?),
        Err(error) => println!("agent: {error}"),
    }
    Ok(())
}

fn machine() -> Result<()> {
    let system = rustix::system::uname();
    let cpu = procfs::CpuInfo::current()?;
    let memory = procfs::Meminfo::current()?;
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let available = memory.mem_available.unwrap_or(memory.mem_free);
    println!("Architecture: {}", system.machine().to_string_lossy());
    println!("Kernel: Linux {}", system.release().to_string_lossy());
    match megahertz(&cpu) {
        Some(mhz) => println!("CPU: {} cores x {mhz} MHz", cpu.num_cores()),
        None => println!("CPU: {} cores", cpu.num_cores()),
    }
    println!();
    println!("Used RAM Memory: {} MiB", mib(memory.mem_total.saturating_sub(available)));
    println!("RAM Memory: {} MiB", mib(memory.mem_total));
    println!();
    let disk = rustix::fs::statvfs("/var/lib")?;
    let kib = |blocks: u64| blocks.saturating_mul(disk.f_frsize) / 1024;
    let (used, free) = (kib(disk.f_blocks - disk.f_bfree), kib(disk.f_bavail));
    println!("Used disk space: {} ({used} KB)", gigabytes(used));
    println!("Free disk space: {} ({free} KB)", gigabytes(free));
    Ok(())
}

/// The highest clock rate, from cpufreq as a Pi has it or from /proc/cpuinfo as a PC has it.
fn megahertz(cpu: &procfs::CpuInfo) -> Option<u64> {
    let cpufreq = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq");
    let khz = cpufreq.ok().and_then(|text| text.trim().parse::<u64>().ok());
    khz.map(|khz| khz / 1000).or_else(|| cpu.get_field(0, "cpu MHz")?.split('.').next()?.parse().ok())
}

fn gigabytes(kib: u64) -> String {
    let tenths = kib * 10 / (1024 * 1024);
    if tenths >= 100 { format!("{}GB", tenths / 10) } else { format!("{}.{}GB", tenths / 10, tenths % 10) }
}

fn node(info: &Info) {
    println!("kubernetes server version: {}", info.kubernetes);
    println!("node: {}", info.node);
    println!("role: {}", info.role);
    if info.role != "none" {
        println!("leader: {}", info.leader.as_deref().unwrap_or("none: a majority of the voters is away"));
        println!("voters: {}", info.voters.join(" "));
    }
    if let Some(problem) = &info.problem {
        println!("problem: {problem}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_as_2016_printed_them() {
        assert_eq!(super::gigabytes(2_424_044), "2.3GB");
        assert_eq!(super::gigabytes(11_382_472), "10GB");
    }
}
