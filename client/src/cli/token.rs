//! `lorafleet token …`: what lets callers speak for a tenant.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::ValueEnum;
use lorafleet::{pb, tenant_name, timestamp, token_name};
use pbjson_types::Timestamp;

use super::{Exit, Fleet, output};
use crate::show::{Table, age, date};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token, and show its secret, once.
    Create(CreateArgs),
    /// List tokens, without their secrets.
    List(ListArgs),
    /// End a token's validity.
    Revoke(RevokeArgs),
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// The tenant for which it speaks.
    #[arg(default_value = "default")]
    tenant: String,
    /// What it lets its bearer do.
    #[arg(long, value_enum)]
    role: Role,
    /// What to call it.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// How long it is valid, as `12h` or `90d` [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires_in: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only this tenant's.
    tenant: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct RevokeArgs {
    /// The token: TENANT/ID, as `lorafleet token list` shows it.
    #[arg(value_name = "TOKEN")]
    name: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// Looks at its tenant's jobs, and at the fleet.
    Viewer,
    /// Also submits jobs for its tenant, and ends them.
    Submitter,
    /// The same for all tenants; and is a worker.
    Operator,
    /// Everything.
    Admin,
}

impl From<Role> for pb::TokenRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Submitter => Self::Submitter,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    match args.command {
        Command::Create(args) => create(args, fleet).await,
        Command::List(args) => list(args, fleet).await,
        Command::Revoke(args) => revoke(args, fleet).await,
    }
}

async fn create(args: CreateArgs, fleet: &Fleet) -> anyhow::Result<Exit> {
    let token = pb::Token {
        role: pb::TokenRole::from(args.role).into(),
        description: args.description,
        expire_time: args.expires_in.map(from_now).transpose()?,
        ..Default::default()
    };
    let made = fleet.connect().await?.create_token(&tenant_name(&args.tenant)?, token).await?;
    if args.json {
        output::json(&made)?;
        return Ok(Exit::Done);
    }
    let token = made.token.unwrap_or_default();
    // The secret alone, so that a script can take it.
    output::line(&made.secret)?;
    eprintln!(
        "{} ({}): the line above is its secret, which is never shown again",
        short(&token.name),
        role(&token)
    );
    Ok(Exit::Done)
}

async fn list(args: ListArgs, fleet: &Fleet) -> anyhow::Result<Exit> {
    let parent = args.tenant.as_deref().map_or(Ok("tenants/-".to_owned()), tenant_name)?;
    let tokens = fleet.connect().await?.list_tokens(&parent).await?;
    let answer = pb::ListTokensResponse { tokens, ..Default::default() };
    let mut table = Table::new(&["TOKEN", "ROLE", "VALID", ">AGE", "DESCRIPTION"]);
    for token in &answer.tokens {
        table.row(vec![
            short(&token.name),
            role(token).to_owned(),
            validity(token),
            age(token.create_time.as_ref()),
            token.description.clone(),
        ]);
    }
    let nothing = "no tokens; make one with `lorafleet token create TENANT --role ROLE`";
    output::list(args.json, &answer, nothing, &table)
}

async fn revoke(args: RevokeArgs, fleet: &Fleet) -> anyhow::Result<Exit> {
    let token = fleet.connect().await?.revoke_token(&token_name(&args.name)?).await?;
    output::answer(args.json, &token, || format!("{} is revoked", short(&token.name)))
}

/// `team-a/0199…`, of `tenants/team-a/tokens/0199…`.
fn short(name: &str) -> String {
    name.strip_prefix("tenants/").unwrap_or(name).replacen("/tokens/", "/", 1)
}

fn role(token: &pb::Token) -> &'static str {
    match token.role() {
        pb::TokenRole::Unspecified => "unknown",
        pb::TokenRole::Viewer => "viewer",
        pb::TokenRole::Submitter => "submitter",
        pb::TokenRole::Operator => "operator",
        pb::TokenRole::Admin => "admin",
    }
}

fn validity(token: &pb::Token) -> String {
    let now = timestamp(SystemTime::now()).seconds;
    match (&token.revoke_time, &token.expire_time) {
        (Some(_), _) => "revoked".to_owned(),
        (None, Some(end)) if end.seconds <= now => "expired".to_owned(),
        (None, Some(end)) => format!("until {}", date(Some(end))),
        (None, None) => "yes".to_owned(),
    }
}

fn from_now(time: Duration) -> anyhow::Result<Timestamp> {
    let end = SystemTime::now().checked_add(time).context("--expires-in is too long")?;
    Ok(timestamp(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_named_as_it_can_be_typed() {
        let name = "tenants/team-a/tokens/0199-ab";
        assert_eq!(short(name), "team-a/0199-ab");
        assert_eq!(token_name(&short(name)).unwrap(), name);
        assert_eq!(token_name(name).unwrap(), name);
        assert!(
            ["", "team-a", "team-a/", "team-a/x y", "A/1"].iter().all(|typed| token_name(typed).is_err())
        );
    }

    #[test]
    fn validity_is_one_word_or_an_end() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let token = |expire_time, revoke_time| pb::Token { expire_time, revoke_time, ..Default::default() };
        assert_eq!(validity(&token(None, None)), "yes");
        assert_eq!(validity(&token(at(1), None)), "expired");
        assert_eq!(validity(&token(at(1), at(1))), "revoked");
        assert!(validity(&token(at(4_000_000_000), None)).starts_with("until 20"));
    }
}
