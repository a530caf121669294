//! Moments as requests hold them.

use std::time::SystemTime;

use pbjson_types::Timestamp;

/// A moment in whole seconds; the epoch for one before it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: 0 }
}
