//! `lorafleet usage`: who used how much of the fleet.

use std::time::Duration;

use clap::ValueEnum;
use lorafleet::{UsageQuery, pb};

use super::{Exit, Fleet, output};
use crate::show::usage_table;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what this tenant used.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// How far back: 90m, 12h, 7d, 4w.
    #[arg(long, default_value = "7d", value_name = "TIME", value_parser = time)]
    since: Duration,
    /// What the lines are.
    #[arg(long, value_enum, default_value_t = By::Tenant)]
    by: By,
    /// At most this many jobs, newest first.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Tenant,
    /// Of the last hours, those in which something was used.
    Hour,
    /// Those that ran in this time, each with all that it used.
    Job,
}

impl From<By> for pb::UsageGrouping {
    fn from(by: By) -> Self {
        match by {
            By::Tenant => Self::Tenant,
            By::Hour => Self::Hour,
            By::Job => Self::Job,
        }
    }
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let query = UsageQuery {
        tenant: args.tenant.unwrap_or_default(),
        since: args.since,
        group_by: args.by.into(),
        limit: if args.by == By::Job { args.limit } else { usize::MAX },
    };
    let entries = fleet.connect().await?.get_usage(&query).await?;
    let table = usage_table(&entries, query.group_by);
    let answer = pb::GetUsageResponse { entries, ..Default::default() };
    output::list(args.json, &answer, "nothing was used in this time; --since looks further back", &table)
}

/// A whole number with a unit.
fn time(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let seconds: u64 = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err("is not a whole number with a unit: m, h, d or w".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "must begin with a whole number".to_owned())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        assert_eq!(
            ["90m", "12h", "7d", "4w"].map(|text| time(text).map(|time| time.as_secs() / 60)),
            [Ok(90), Ok(720), Ok(10_080), Ok(40_320)]
        );
        for wrong in ["", "7", "d", "-1d", "1.5h", "7 d", "99999999999999999999d", "9999999999999999999w"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
