//! Free ports on this machine.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener},
};

use anyhow::{Context as _, bail};

/// Where the coordinator listens.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Its API.
    pub api: u16,
    /// Its metrics.
    pub metrics: u16,
}

impl Ports {
    /// The API's port as asked for (0: any free one), and one for the metrics: the next, so that a scraper finds it
    /// again, or any if that is taken.
    ///
    /// # Errors
    /// When the API's port is taken.
    pub fn choose(wanted: u16) -> anyhow::Result<Self> {
        let api = free_port(wanted)?;
        let next = wanted.checked_add(1).filter(|_| wanted > 0);
        let metrics = match next {
            Some(next) => free_port(next).or_else(|_| free_port(0))?,
            None => free_port(0)?,
        };
        Ok(Self { api, metrics })
    }
}

/// The port asked for if it is free, or any free one for 0.
///
/// Between this look and the listener's own, another program may take it; the listener then fails to start, and says so.
///
/// # Errors
/// When the port is taken.
fn free_port(wanted: u16) -> anyhow::Result<u16> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)) {
        Ok(listener) => Ok(listener.local_addr().context("a listener without an address")?.port()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "port {wanted} is taken by another program, perhaps another `lorafleet up`; choose one with --port PORT \
             (0: any free one)"
        ),
        Err(error) => Err(error).with_context(|| format!("cannot listen on port {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_told() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = free_port(port).unwrap_err().to_string();
        assert!(error.contains("--port"), "{error}");
        assert_ne!(free_port(0).unwrap(), 0);
    }
}
