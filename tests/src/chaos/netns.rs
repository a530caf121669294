//! Network namespaces on one bridge: each worker a host of its own, whose links can be cut.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail};

use crate::process::program_of;

/// Host parts of the addresses; the bridge is .1.
const FIRST_HOST: u8 = 2;
/// An address that no host has: what is sent to it is lost, silently.
const NOWHERE: &str = "02:00:00:00:00:99";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A bridge with its namespaces; all is removed when dropped.
pub struct Network {
    id: String,
    subnet: [u8; 3],
    hosts: Vec<String>,
}

/// One namespace: a host of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    namespace: String,
    /// The bridge's end of its link.
    link: String,
    pub ip: Ipv4Addr,
}

impl Network {
    /// Makes the bridge; an error where this machine does not allow it (no root, no `ip`).
    pub fn start() -> Result<Network> {
        let pid = std::process::id();
        sweep();
        // Never the same again: the kernel takes its time to remove a namespace's links.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // In hex: a link's name has at most 15 characters.
        let id = format!("{pid:x}-{:x}", number % 256);
        // 10.64.0.0 to 10.127.255.0: two processes at once rarely choose the same, and then `ip` says so.
        let place = pid.wrapping_mul(131).wrapping_add(number);
        let subnet = [10, 64 + (place % 64) as u8, (place / 64 % 256) as u8];
        let network = Network { id, subnet, hosts: Vec::new() };
        let bridge = network.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", network.gateway()), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        Ok(network)
    }

    /// The address of this machine's own side.
    pub fn gateway(&self) -> IpAddr {
        self.address(1).into()
    }

    /// A further host.
    pub fn add(&mut self) -> Result<Host> {
        let number = u8::try_from(self.hosts.len()).ok().and_then(|n| n.checked_add(FIRST_HOST));
        let number = number.filter(|n| *n < 255).context("the network is full")?;
        let host = Host {
            namespace: format!("lf{}-{number:x}", self.id),
            link: format!("lfv{}-{number:x}", self.id),
            ip: self.address(number),
        };
        ip(&["netns", "add", &host.namespace])?;
        self.hosts.push(host.namespace.clone());
        ip(&["link", "add", &host.link, "type", "veth", "peer", "name", "eth0", "netns", &host.namespace])?;
        ip(&["link", "set", &host.link, "master", &self.bridge(), "up"])?;
        host.ip_inside(&["addr", "add", &format!("{}/24", host.ip), "dev", "eth0"])?;
        host.ip_inside(&["link", "set", "eth0", "up"])?;
        host.ip_inside(&["link", "set", "lo", "up"])?;
        Ok(host)
    }

    fn bridge(&self) -> String {
        format!("lfb{}", self.id)
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, host)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            // The links go with the namespace.
            let _ = ip(&["netns", "del", host]);
        }
        let _ = ip(&["link", "del", &self.bridge()]);
    }
}

impl Host {
    /// A command that runs a program on this host; it keeps the process id that it starts with.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program_of("ip"));
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// Takes the host's link down, or up again.
    pub fn set_link(&self, up: bool) -> Result<()> {
        ip(&["link", "set", &self.link, if up { "up" } else { "down" }])
    }

    /// What this host sends to `to` is lost from now on; what comes from there arrives.
    pub fn cut(&self, to: IpAddr) -> Result<()> {
        let to = to.to_string();
        self.ip_inside(&["neigh", "replace", &to, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent"])
    }

    /// Undoes [`Host::cut`], if nobody has: two cuts of the same pair may overlap.
    pub fn mend(&self, to: IpAddr) -> Result<()> {
        self.cut(to)?;
        self.ip_inside(&["neigh", "del", &to.to_string(), "dev", "eth0"])
    }

    /// Limits what comes to the host, in kilobits a second; nothing ends the limit.
    pub fn set_rate(&self, kilobits: Option<u32>) -> Result<()> {
        match kilobits {
            Some(rate) => run(Command::new(program_of("tc")).args([
                "qdisc",
                "replace",
                "dev",
                &self.link,
                "root",
                "tbf",
                "rate",
                &format!("{rate}kbit"),
                "burst",
                "32k",
                "latency",
                "400ms",
            ])),
            None => run(Command::new(program_of("tc")).args(["qdisc", "del", "dev", &self.link, "root"])),
        }
    }

    fn ip_inside(&self, args: &[&str]) -> Result<()> {
        let mut all = vec!["-n", &self.namespace];
        all.extend(args);
        ip(&all)
    }
}

/// Removes what killed processes left behind.
fn sweep() {
    let stale = |name: &str, prefix: &str| {
        let pid =
            name.strip_prefix(prefix).and_then(|rest| u32::from_str_radix(rest.split('-').next()?, 16).ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    let names = |dir: &str| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    for name in names("/run/netns").iter().filter(|name| stale(name, "lf")) {
        let _ = ip(&["netns", "del", name]);
    }
    for name in names("/sys/class/net").iter().filter(|name| stale(name, "lfb")) {
        let _ = ip(&["link", "del", name]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    run(Command::new(program_of("ip")).args(args))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
