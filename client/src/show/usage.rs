//! Usage as a table, with a line that sums it up.

use std::time::Duration;

use lorafleet::{pb, short_id};
use pb::UsageGrouping;

use super::{
    Table,
    text::{bytes, date, duration, scaled},
};

/// A line for each entry. Where entries add up, a last one sums them up.
pub fn usage_table(entries: &[pb::UsageEntry], by: UsageGrouping) -> Table {
    let heads: &[&str] = match by {
        UsageGrouping::Unspecified | UsageGrouping::Tenant => &["TENANT"],
        UsageGrouping::Hour => &["HOUR"],
        UsageGrouping::Job => &["JOB", "NAME", "TENANT"],
    };
    let has_stored = by != UsageGrouping::Hour;
    let mut titles = heads.to_vec();
    titles.extend([">WORKER TIME", ">TOKENS", ">FLOPS", ">WRITTEN"]);
    titles.extend(has_stored.then_some(">STORED"));
    let mut table = Table::new(&titles);
    for entry in entries {
        let head = match by {
            UsageGrouping::Unspecified | UsageGrouping::Tenant => vec![entry.tenant.clone()],
            UsageGrouping::Hour => vec![hour(entry)],
            UsageGrouping::Job => {
                vec![short_id(&entry.job).to_owned(), entry.display_name.clone(), entry.tenant.clone()]
            }
        };
        table.row(line(head, entry, has_stored));
    }
    if entries.len() > 1 {
        let mut head = vec![String::new(); heads.len()];
        "together".clone_into(&mut head[0]);
        table.row(line(head, &together(entries), has_stored));
    }
    table
}

fn line(mut cells: Vec<String>, entry: &pb::UsageEntry, has_stored: bool) -> Vec<String> {
    cells.push(duration(Duration::try_from_secs_f64(entry.worker_seconds).unwrap_or_default()));
    cells.push(scaled(entry.tokens as f64));
    // Of what is not known nothing is said.
    cells.push(if entry.flops > 0.0 { scaled(entry.flops) } else { String::new() });
    cells.push(bytes(entry.bytes_written));
    cells.extend(has_stored.then(|| bytes(entry.stored_bytes)));
    cells
}

fn together(entries: &[pb::UsageEntry]) -> pb::UsageEntry {
    entries.iter().fold(pb::UsageEntry::default(), |sum, entry| pb::UsageEntry {
        worker_seconds: sum.worker_seconds + entry.worker_seconds,
        tokens: sum.tokens + entry.tokens,
        flops: sum.flops + entry.flops,
        bytes_written: sum.bytes_written + entry.bytes_written,
        stored_bytes: sum.stored_bytes + entry.stored_bytes,
        ..sum
    })
}

/// By the calendar and clock of this machine, to the minute.
fn hour(entry: &pb::UsageEntry) -> String {
    let mut text = date(entry.hour.as_ref());
    text.truncate("2026-11-25 13:00".len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_in_units_and_summed_up() {
        let entry = |tenant: &str, worker_seconds, tokens, flops| pb::UsageEntry {
            tenant: tenant.into(),
            worker_seconds,
            tokens,
            flops,
            bytes_written: 3_000_000,
            stored_bytes: 1_000_000,
            ..Default::default()
        };
        let entries = [entry("default", 90.0, 900, 0.0), entry("games", 7200.0, 1_234_567, 8.9e15)];
        assert_eq!(
            usage_table(&entries, UsageGrouping::Tenant).to_string(),
            "TENANT    WORKER TIME  TOKENS   FLOPS  WRITTEN   STORED\n\
             default        1m 30s     900          3.00 MB  1.00 MB\n\
             games          2h 00m  1.23 M  8.90 P  3.00 MB  1.00 MB\n\
             together       2h 01m  1.24 M  8.90 P  6.00 MB  2.00 MB"
        );
        let one =
            [pb::UsageEntry { job: "jobs/7".into(), display_name: "styles".into(), ..entries[1].clone() }];
        assert_eq!(
            usage_table(&one, UsageGrouping::Job).to_string(),
            "JOB  NAME    TENANT  WORKER TIME  TOKENS   FLOPS  WRITTEN   STORED\n\
             7    styles  games        2h 00m  1.23 M  8.90 P  3.00 MB  1.00 MB"
        );
    }
}
