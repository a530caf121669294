//! Numbers and times between Postgres, which is signed, and the API, which is not.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// As Postgres holds it; counts never come near the limit, and one that did is held there.
pub fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A time that Postgres computed; none before its begin.
pub fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// As Postgres holds it.
pub fn to_i32(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// A count; the schema keeps it from being negative.
pub fn to_u64(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// A count; the schema keeps it from being negative.
pub fn to_u32(n: i32) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

/// A time of the API; `None`: it is none.
pub fn time(time: &pbjson_types::Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}

/// A time as the API writes it.
pub fn timestamp(time: DateTime<Utc>) -> pbjson_types::Timestamp {
    let nanos = i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(0);
    pbjson_types::Timestamp { seconds: time.timestamp(), nanos }
}
