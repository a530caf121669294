//! `lorafleet tenant …`: whose jobs are whose, and what each may use.

use std::time::Duration;

use lorafleet::{ClientError, FieldError, pb, short_id, tenant_name};

use super::{Exit, Fleet, output};
use crate::show::{Table, age, bytes, duration, number};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a tenant.
    Create(SetArgs),
    /// List tenants.
    List(ListArgs),
    /// Show a tenant's weight and quotas.
    Show(NameArgs),
    /// Change a tenant's weight or quotas.
    Update(SetArgs),
    /// Delete a tenant that has no jobs, with its tokens.
    Delete(NameArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct NameArgs {
    /// The tenant.
    tenant: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A quota, or none.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Quota<T> {
    None,
    Most(T),
}

#[derive(Debug, clap::Args)]
struct SetArgs {
    /// The tenant: lower-case letters, digits and hyphens.
    tenant: String,
    /// Its part of a contended fleet, against the weights of the others [default: 1]
    #[arg(long, value_name = "W")]
    weight: Option<f64>,
    /// Workers that its jobs hold at once; `none`: no limit.
    #[arg(long, value_name = "N", value_parser = quota::<u32>)]
    max_workers: Option<Quota<u32>>,
    /// Jobs of it that wait; `none`: no limit.
    #[arg(long, value_name = "N", value_parser = quota::<u32>)]
    max_queued: Option<Quota<u32>>,
    /// Hours of workers in each window; `none`: no limit.
    #[arg(long, value_name = "HOURS", value_parser = quota::<f64>)]
    max_worker_hours: Option<Quota<f64>>,
    /// The window of --max-worker-hours, as `24h` or `30d` [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    window: Option<Duration>,
    /// Bytes of the checkpoints that its jobs have in the store, as `500GB` or `2TiB`; `none`: no limit.
    #[arg(long, value_name = "BYTES", value_parser = stored)]
    max_stored_bytes: Option<Quota<u64>>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    match args.command {
        Command::Create(args) => {
            let (tenant, _) = settings(&args)?;
            let made = fleet.connect().await?.create_tenant(&tenant_name(&args.tenant)?, tenant).await?;
            show(&made, args.json)
        }
        Command::List(args) => list(&args, fleet).await,
        Command::Show(args) => {
            show(&fleet.connect().await?.get_tenant(&tenant_name(&args.tenant)?).await?, args.json)
        }
        Command::Update(args) => {
            let (tenant, fields) = settings(&args)?;
            if fields.is_empty() {
                return Err(wrong("--weight", "or a quota is required: there is nothing to change").into());
            }
            show(&fleet.connect().await?.update_tenant(tenant, fields).await?, args.json)
        }
        Command::Delete(args) => {
            let name = tenant_name(&args.tenant)?;
            fleet.connect().await?.delete_tenant(&name).await?;
            let gone = pb::Tenant { name, ..Default::default() };
            output::answer(args.json, &gone, || format!("{} is deleted", gone.name))
        }
    }
}

async fn list(args: &ListArgs, fleet: &Fleet) -> anyhow::Result<Exit> {
    let tenants = fleet.connect().await?.list_tenants().await?;
    if args.json {
        output::json(&pb::ListTenantsResponse { tenants, ..Default::default() })?;
        return Ok(Exit::Done);
    }
    let mut table =
        Table::new(&["TENANT", ">WEIGHT", ">WORKERS", ">QUEUED", ">WORKER TIME", ">STORED", ">AGE"]);
    for tenant in &tenants {
        table.row(vec![
            short_id(&tenant.name).to_owned(),
            tenant.weight.to_string(),
            tenant.max_workers.map_or(String::new(), |n| number(n.into())),
            tenant.max_queued.map_or(String::new(), |n| number(n.into())),
            worker_time(tenant).unwrap_or_default(),
            tenant.max_stored_bytes.map_or(String::new(), bytes),
            age(tenant.create_time.as_ref()),
        ]);
    }
    output::line(&table.to_string())?;
    Ok(Exit::Done)
}

fn show(tenant: &pb::Tenant, json: bool) -> anyhow::Result<Exit> {
    output::answer(json, tenant, || card(tenant))
}

/// A tenant's weight and quotas, one a line.
fn card(tenant: &pb::Tenant) -> String {
    let none = || "no limit".to_owned();
    let count = |n: Option<u32>| n.map_or_else(none, |n| number(n.into()));
    format!(
        "{}\n  weight        {}\n  workers       {}\n  queued jobs   {}\n  worker time   {}\n  stored        {}",
        tenant.name,
        tenant.weight,
        count(tenant.max_workers),
        count(tenant.max_queued),
        worker_time(tenant).unwrap_or_else(none),
        tenant.max_stored_bytes.map_or_else(none, bytes),
    )
}

/// `100 h in 7d 00h`.
fn worker_time(tenant: &pb::Tenant) -> Option<String> {
    let hours = tenant.max_worker_seconds? as f64 / 3600.0;
    let window = duration(Duration::from_secs(tenant.window_seconds));
    let hours = if hours < 10.0 { (hours * 100.0).round() / 100.0 } else { hours.round() };
    Some(format!("{hours} h in {}", window.trim_end_matches(" 00h")))
}

/// What the options set, and the names of the fields that they do.
fn settings(args: &SetArgs) -> Result<(pb::Tenant, Vec<String>), ClientError> {
    let seconds = match args.max_worker_hours {
        Some(Quota::Most(hours)) if !(0.0..=1e9).contains(&hours) => {
            return Err(wrong("--max-worker-hours", &format!("is {hours}; it must be 0 to 1,000,000,000")));
        }
        Some(Quota::Most(hours)) => Some((hours * 3600.0).round() as u64),
        _ => None,
    };
    let tenant = pb::Tenant {
        name: tenant_name(&args.tenant)?,
        weight: args.weight.unwrap_or_default(),
        max_workers: most(args.max_workers),
        max_queued: most(args.max_queued),
        max_worker_seconds: seconds,
        window_seconds: args.window.map_or(0, |window| window.as_secs()),
        max_stored_bytes: most(args.max_stored_bytes),
        create_time: None,
    };
    let given = [
        ("weight", args.weight.is_some()),
        ("max_workers", args.max_workers.is_some()),
        ("max_queued", args.max_queued.is_some()),
        ("max_worker_seconds", args.max_worker_hours.is_some()),
        ("window_seconds", args.window.is_some()),
        ("max_stored_bytes", args.max_stored_bytes.is_some()),
    ];
    let fields = given.into_iter().filter(|(_, given)| *given).map(|(field, _)| field.to_owned());
    Ok((tenant, fields.collect()))
}

fn wrong(option: &str, message: &str) -> ClientError {
    ClientError::invalid("the command line is not right:", vec![FieldError::new(option, message)])
}

fn most<T>(quota: Option<Quota<T>>) -> Option<T> {
    match quota {
        Some(Quota::Most(most)) => Some(most),
        Some(Quota::None) | None => None,
    }
}

fn quota<T: std::str::FromStr>(text: &str) -> Result<Quota<T>, String> {
    if text == "none" {
        return Ok(Quota::None);
    }
    text.parse().map(Quota::Most).map_err(|_| "give a number, or `none` for no limit".to_owned())
}

/// `500GB`, `2TiB`, `1000000`.
fn stored(text: &str) -> Result<Quota<u64>, String> {
    if text == "none" {
        return Ok(Quota::None);
    }
    let wrong = || "give a size such as 500GB or 2TiB, or `none` for no limit".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (amount, unit) = text.split_at(digits);
    let amount: u64 = amount.parse().map_err(|_| wrong())?;
    let unit = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    amount.checked_mul(unit).map(Quota::Most).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_numbers_sizes_or_none() {
        assert_eq!(quota::<u32>("4"), Ok(Quota::Most(4)));
        assert_eq!(quota::<u32>("none"), Ok(Quota::None));
        assert!(quota::<u32>("-1").is_err());
        assert_eq!(stored("500GB"), Ok(Quota::Most(500_000_000_000)));
        assert_eq!(stored("2 TiB"), Ok(Quota::Most(2 << 40)));
        for wrong in ["", "GB", "5 apples", "99999999999999999999", "9999999999TB"] {
            assert!(stored(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn worker_time_is_told_with_its_window() {
        let tenant = |seconds, window_seconds| pb::Tenant {
            max_worker_seconds: Some(seconds),
            window_seconds,
            ..Default::default()
        };
        assert_eq!(worker_time(&tenant(360_000, 604_800)).as_deref(), Some("100 h in 7d"));
        assert_eq!(worker_time(&tenant(5400, 86_400)).as_deref(), Some("1.5 h in 1d"));
        assert_eq!(worker_time(&pb::Tenant::default()), None);
    }
}
