//! Compressed files, unpacked as they are read.

use std::{
    cell::Cell,
    fmt,
    io::{self, Read},
    rc::Rc,
};

/// What a file is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip (RFC 1952), also several members one after the other.
    Gzip,
    /// Zstandard (RFC 8878), also several frames one after the other.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl Compression {
    /// A reader of what is packed in `source`.
    pub(super) fn decoder<'a>(self, source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(source)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(source)?),
        })
    }
}

/// Remembers whether reading failed below the decompression: then the packed data is not to blame.
pub(super) struct Watched<R> {
    inner: R,
    failed: Rc<Cell<bool>>,
}

impl<R: Read> Watched<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, failed: Rc::default() }
    }

    /// Whether it failed, also when it is gone.
    pub fn failed(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.failed)
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failed.set(true);
            }
        })
    }
}

/// Fails when more than so many bytes are read before [`Budget::renew`]: a row without an end would fill the memory.
pub(super) struct Metered<R> {
    inner: R,
    budget: Budget,
}

/// Bytes that may still be read.
#[derive(Clone)]
pub(super) struct Budget {
    left: Rc<Cell<usize>>,
    bytes: usize,
}

impl Budget {
    /// As many bytes as in the beginning.
    pub fn renew(&self) {
        self.left.set(self.bytes);
    }

    /// Whether it ran out.
    pub fn is_spent(&self) -> bool {
        self.left.get() == 0
    }
}

impl<R: Read> Metered<R> {
    pub fn new(inner: R, bytes: usize) -> (Self, Budget) {
        let budget = Budget { left: Rc::new(Cell::new(bytes)), bytes };
        (Self { inner, budget: budget.clone() }, budget)
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.budget.left.get();
        if left == 0 {
            return Err(io::Error::other(format!("a row has more than {} bytes", super::MAX_LINE)));
        }
        let allowed = buffer.len().min(left);
        let n = self.inner.read(&mut buffer[..allowed])?;
        self.budget.left.set(left - n);
        Ok(n)
    }
}
