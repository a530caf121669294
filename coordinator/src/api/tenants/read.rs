//! What requests about tenants and tokens say, checked.

use std::{ops::RangeInclusive, time::Duration};

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{FieldError, TENANT_NAME_FORM, is_tenant_name};
use uuid::Uuid;

use super::super::error::ApiError;
use crate::{
    convert,
    tenants::{Quotas, Settings},
    tokens::TokenId,
};

const MAX_WEIGHT: f64 = 1e6;
/// An hour to 366 days, in seconds.
const WINDOWS: RangeInclusive<u64> = 3600..=31_622_400;
/// The database counts so far.
const MAX_COUNT: u32 = i32::MAX as u32;
const MAX_AMOUNT: u64 = i64::MAX as u64;
/// Bytes of a description.
const MAX_DESCRIPTION: usize = 200;
/// What an update may name.
const FIELDS: [&str; 6] =
    ["weight", "max_workers", "max_queued", "max_worker_seconds", "window_seconds", "max_stored_bytes"];

/// Some of a tenant's settings, which are to be changed.
#[derive(Clone, Debug)]
pub(super) struct Change {
    new: Settings,
    fields: Vec<&'static str>,
}

/// The name of a tenant, without the collection before it.
pub(super) fn own_name<'a>(field: &str, name: &'a str) -> Result<&'a str, ApiError> {
    let wrong = || ApiError::field(field, format!("is {name:?}; a tenant's name has {TENANT_NAME_FORM}"));
    is_tenant_name(name).then_some(name).ok_or_else(wrong)
}

/// Reads `tenants/{tenant}`.
pub(super) fn name<'a>(field: &str, name: &'a str) -> Result<&'a str, ApiError> {
    let tenant = name.strip_prefix("tenants/").filter(|tenant| is_tenant_name(tenant));
    tenant.ok_or_else(|| {
        ApiError::field(field, format!("`{name}` is not a tenant; its form is `tenants/{{tenant}}`"))
    })
}

/// Reads `tenants/{tenant}/tokens/{token}`.
pub(super) fn token_name<'a>(field: &str, name: &'a str) -> Result<(&'a str, TokenId), ApiError> {
    let read = || {
        let (tenant, token) = name.strip_prefix("tenants/")?.split_once("/tokens/")?;
        let token = Uuid::parse_str(token).ok()?;
        is_tenant_name(tenant).then_some((tenant, TokenId(token)))
    };
    read().ok_or_else(|| {
        ApiError::field(
            field,
            format!("`{name}` is not a token; its form is `tenants/{{tenant}}/tokens/{{id}}`"),
        )
    })
}

/// What a tenant may use; what is left out has its default. All mistakes at once, below the field `path`.
pub(super) fn settings(tenant: &pb::Tenant, path: &str) -> Result<Settings, ApiError> {
    let mut errors = Vec::new();
    let mut rule = |holds: bool, field: &str, message: String| {
        if !holds {
            errors.push(FieldError::new(format!("{path}.{field}"), message));
        }
    };
    let weight = if tenant.weight == 0.0 { 1.0 } else { tenant.weight };
    let fits = weight > 0.0 && weight <= MAX_WEIGHT;
    rule(fits, "weight", format!("is {weight}; it must be above 0 and at most {MAX_WEIGHT}"));
    let window =
        if tenant.window_seconds == 0 { Quotas::default().window.as_secs() } else { tenant.window_seconds };
    let (first, last) = (WINDOWS.start(), WINDOWS.end());
    rule(WINDOWS.contains(&window), "window_seconds", format!("is {window}; it must be {first} to {last}"));
    for (field, count) in [("max_workers", tenant.max_workers), ("max_queued", tenant.max_queued)] {
        rule(count.is_none_or(|n| n <= MAX_COUNT), field, format!("must be at most {MAX_COUNT}"));
    }
    let amounts =
        [("max_worker_seconds", tenant.max_worker_seconds), ("max_stored_bytes", tenant.max_stored_bytes)];
    for (field, amount) in amounts {
        rule(amount.is_none_or(|n| n <= MAX_AMOUNT), field, format!("must be at most {MAX_AMOUNT}"));
    }
    if !errors.is_empty() {
        return Err(ApiError::Invalid(errors));
    }
    let quotas = Quotas {
        max_workers: tenant.max_workers,
        max_queued: tenant.max_queued,
        max_worker_seconds: tenant.max_worker_seconds,
        window: Duration::from_secs(window),
        max_stored_bytes: tenant.max_stored_bytes,
    };
    Ok(Settings { weight, quotas })
}

/// Reads an update: the fields that its mask names.
pub(super) fn change(mut tenant: pb::Tenant, mask: &[String]) -> Result<Change, ApiError> {
    let field = |path: &String| {
        let known = FIELDS.into_iter().find(|field| field == path);
        known.ok_or_else(|| {
            let message = format!("`{path}` cannot be changed; {} can", FIELDS.join(", "));
            ApiError::field("update_mask", message)
        })
    };
    let fields = mask.iter().map(field).collect::<Result<Vec<_>, _>>()?;
    if fields.is_empty() {
        return Err(ApiError::field(
            "update_mask",
            format!("names nothing; {} can be changed", FIELDS.join(", ")),
        ));
    }
    // What is to be changed has no default.
    for (name, is_zero) in [("weight", tenant.weight == 0.0), ("window_seconds", tenant.window_seconds == 0)]
    {
        if is_zero && fields.contains(&name) {
            return Err(ApiError::field(format!("tenant.{name}"), "must be above 0"));
        }
    }
    // What is not to be changed need not be right.
    let unnamed = |name: &str| !fields.contains(&name);
    if unnamed("weight") {
        tenant.weight = 0.0;
    }
    if unnamed("window_seconds") {
        tenant.window_seconds = 0;
    }
    Ok(Change { new: settings(&tenant, "tenant")?, fields })
}

/// What people call a token.
pub(super) fn description<'a>(field: &str, text: &'a str) -> Result<&'a str, ApiError> {
    if text.len() > MAX_DESCRIPTION || text.contains(char::is_control) {
        let message = format!("must be one line of at most {MAX_DESCRIPTION} bytes");
        return Err(ApiError::field(field, message));
    }
    Ok(text)
}

/// When a token ends; it must be still to come.
pub(super) fn expire_time(
    field: &str,
    time: Option<&pbjson_types::Timestamp>,
) -> Result<Option<DateTime<Utc>>, ApiError> {
    let Some(time) = time else { return Ok(None) };
    match convert::time(time) {
        Some(time) if time > Utc::now() => Ok(Some(time)),
        _ => Err(ApiError::field(field, "must be still to come")),
    }
}

// === impl Change ===

impl Change {
    /// Changes what is named.
    pub(super) fn apply(self, settings: &mut Settings) {
        let (new, old) = (self.new.quotas, &mut settings.quotas);
        for field in self.fields {
            match field {
                "weight" => settings.weight = self.new.weight,
                "max_workers" => old.max_workers = new.max_workers,
                "max_queued" => old.max_queued = new.max_queued,
                "max_worker_seconds" => old.max_worker_seconds = new.max_worker_seconds,
                "window_seconds" => old.window = new.window,
                "max_stored_bytes" => old.max_stored_bytes = new.max_stored_bytes,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(error: ApiError) -> Vec<String> {
        match error {
            ApiError::Invalid(errors) => errors.into_iter().map(|error| error.path).collect(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn names_are_read_with_their_collections() {
        assert_eq!(name("name", "tenants/team-a").ok(), Some("team-a"));
        assert!(
            ["team-a", "tenants/", "tenants/A", "tenants/a/tokens/b"]
                .iter()
                .all(|n| name("name", n).is_err())
        );
        let id = Uuid::now_v7();
        let full = format!("tenants/a/tokens/{id}");
        assert_eq!(token_name("name", &full).ok(), Some(("a", TokenId(id))));
        assert!(token_name("name", "tenants/a/tokens/7").is_err());
    }

    #[test]
    fn settings_have_defaults_and_limits() {
        assert_eq!(settings(&pb::Tenant::default(), "tenant").ok(), Some(Settings::default()));
        let wrong = pb::Tenant {
            weight: -1.0,
            window_seconds: 60,
            max_workers: Some(u32::MAX),
            max_stored_bytes: Some(u64::MAX),
            ..Default::default()
        };
        let errors = settings(&wrong, "tenant").map(drop).map_err(paths);
        let names =
            ["weight", "window_seconds", "max_workers", "max_stored_bytes"].map(|n| format!("tenant.{n}"));
        assert_eq!(errors, Err(names.to_vec()));
        let nan = pb::Tenant { weight: f64::NAN, ..Default::default() };
        assert!(settings(&nan, "tenant").is_err());
    }

    #[test]
    fn an_update_changes_what_its_mask_names_and_lifts_what_is_absent() {
        let mut own = Settings::default();
        own.quotas.max_queued = Some(7);
        let new = pb::Tenant { weight: 2.0, max_workers: Some(4), ..Default::default() };
        let mask = ["max_workers".to_owned(), "max_queued".to_owned()];
        change(new.clone(), &mask).expect("a change").apply(&mut own);
        assert_eq!((own.weight, own.quotas.max_workers, own.quotas.max_queued), (1.0, Some(4), None));
        for mask in [vec![], vec!["name".to_owned()]] {
            assert_eq!(
                change(new.clone(), &mask).map(drop).map_err(paths),
                Err(vec!["update_mask".to_owned()])
            );
        }
        assert!(change(pb::Tenant::default(), &["weight".to_owned()]).is_err(), "0 is no weight");
    }

    #[test]
    fn a_token_ends_in_the_future_or_not_at_all() {
        let past = pbjson_types::Timestamp { seconds: 1, nanos: 0 };
        assert!(expire_time("t", Some(&past)).is_err());
        assert_eq!(expire_time("t", None).ok(), Some(None));
        assert!(description("d", "two\nlines").is_err());
    }
}
