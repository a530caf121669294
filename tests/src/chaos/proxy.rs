//! A TCP proxy that can delay, hold, refuse and reset: what stands in for a bad network.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};

const CHUNK: usize = 64 * 1024;

/// Where the proxy connects to.
#[derive(Clone, Debug)]
pub enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What happens to bytes on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Each chunk waits this long.
    pub delay: Duration,
    /// Nothing goes from clients to the server.
    pub hold_up: bool,
    /// Nothing goes from the server to clients.
    pub hold_down: bool,
    /// New connections are reset at once.
    pub refuse: bool,
    /// Connections of an older epoch are reset.
    epoch: u64,
}

impl Mode {
    /// A slow line.
    pub fn slow(delay: Duration) -> Mode {
        Mode { delay, ..Mode::default() }
    }

    /// A line on which nothing moves, without a connection being closed.
    pub fn stalled() -> Mode {
        Mode { hold_up: true, hold_down: true, ..Mode::default() }
    }

    fn holds(&self, up: bool) -> bool {
        if up { self.hold_up } else { self.hold_down }
    }
}

/// What the proxy has done so far; shows whether a fault met anything.
#[derive(Debug, Default)]
pub struct Counts {
    connections: AtomicU64,
    /// Chunks that were delayed or held.
    disturbed: AtomicU64,
    /// Connections that were reset or refused.
    reset: AtomicU64,
}

impl Counts {
    /// Connections taken in.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Chunks and connections that a fault has met.
    pub fn met(&self) -> u64 {
        self.disturbed.load(Ordering::Relaxed) + self.reset.load(Ordering::Relaxed)
    }
}

/// A running proxy on a port of its own; stops when dropped.
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    counts: Arc<Counts>,
    accept: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of `ip`, and passes everything on.
    pub async fn start(ip: std::net::IpAddr, upstream: Upstream) -> Result<Proxy> {
        let listener = TcpListener::bind((ip, 0)).await.with_context(|| format!("listen on {ip}"))?;
        let address = listener.local_addr()?;
        let (mode, watched) = watch::channel(Mode::default());
        let counts = Arc::new(Counts::default());
        let accept = tokio::spawn(accept(listener, upstream, watched, Arc::clone(&counts)));
        Ok(Proxy { address, mode, counts, accept })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on bytes are treated so.
    pub fn set(&self, mode: Mode) {
        self.mode.send_modify(|now| *now = Mode { epoch: now.epoch, ..mode });
    }

    /// Resets all connections.
    pub fn reset(&self) {
        self.mode.send_modify(|mode| mode.epoch += 1);
    }

    /// What it has done.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept.abort();
        // Its connections end, too: the watched mode is gone.
    }
}

async fn accept(listener: TcpListener, upstream: Upstream, mode: watch::Receiver<Mode>, counts: Arc<Counts>) {
    while let Ok((client, _)) = listener.accept().await {
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let (upstream, mode, counts) = (upstream.clone(), mode.clone(), Arc::clone(&counts));
        tokio::spawn(async move {
            if mode.borrow().refuse {
                counts.reset.fetch_add(1, Ordering::Relaxed);
                reset(&client);
                return;
            }
            match upstream {
                Upstream::Tcp(address) => match TcpStream::connect(address).await {
                    Ok(server) => serve(client, server, mode, &counts).await,
                    Err(_) => reset(&client),
                },
                Upstream::Unix(path) => match UnixStream::connect(path).await {
                    Ok(server) => serve(client, server, mode, &counts).await,
                    Err(_) => reset(&client),
                },
            }
        });
    }
}

/// Closing it then sends RST instead of FIN.
fn reset(client: &TcpStream) {
    // A connection that is gone already needs no reset.
    let _ = client.set_zero_linger();
}

async fn serve<S>(client: TcpStream, server: S, mode: watch::Receiver<Mode>, counts: &Counts)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = client.set_nodelay(true);
    let epoch = mode.borrow().epoch;
    let mut ending = mode.clone();
    let (mut client, mut server) = (client, server);
    let broken = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = split(&mut server);
        let up = pump(client_read, server_write, mode.clone(), true, counts);
        let down = pump(server_read, client_write, mode, false, counts);
        tokio::select! {
            _ = ending.wait_for(|mode| mode.epoch != epoch) => {
                counts.reset.fetch_add(1, Ordering::Relaxed);
                true
            }
            ends = async { tokio::join!(up, down) } => ends.0.is_err() || ends.1.is_err(),
        }
    };
    if broken {
        reset(&client);
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
    up: bool,
    counts: &Counts,
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await?;
        let now = *mode.borrow();
        if now.holds(up) || !now.delay.is_zero() {
            counts.disturbed.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(now.delay).await;
        if mode.wait_for(|mode| !mode.holds(up)).await.is_err() {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn bytes_pass_are_held_and_pass_again() {
        let proxy = Proxy::start(LOOPBACK, Upstream::Tcp(echo().await)).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let mut answer = [0; 2];
        client.write_all(b"hi").await.unwrap();
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(proxy.counts().met(), 0);

        proxy.set(Mode { hold_down: true, ..Mode::default() });
        client.write_all(b"yo").await.unwrap();
        let held = tokio::time::timeout(Duration::from_millis(100), client.read_exact(&mut answer)).await;
        assert!(held.is_err(), "{answer:?} came through");
        proxy.set(Mode::default());
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"yo");
        assert!(proxy.counts().met() > 0);
    }

    #[tokio::test]
    async fn connections_are_reset_and_refused() {
        let proxy = Proxy::start(LOOPBACK, Upstream::Tcp(echo().await)).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0; 1]).await.unwrap();
        proxy.reset();
        let error = client.read_exact(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

        proxy.set(Mode { refuse: true, ..Mode::default() });
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(client.read_exact(&mut [0; 1]).await.is_err());
        assert_eq!(proxy.counts().met(), 2);
    }
}
