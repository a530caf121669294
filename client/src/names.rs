//! Resource names as people type them, turned into the API's.

use lorafleet_spec::{FieldError, TENANT_NAME_FORM, is_tenant_name};

use crate::error::ClientError;

/// The resource name of a job (`jobs/x`) from what a user typed: `x` or `jobs/x`.
///
/// # Errors
/// `Invalid` when it is empty or names something inside a job.
pub fn job_name(typed: &str) -> Result<String, ClientError> {
    let id = typed.strip_prefix("jobs/").unwrap_or(typed);
    if id.is_empty() || id.contains('/') || id.chars().any(char::is_whitespace) {
        return Err(invalid("JOB", format!("'{typed}' is not a job: give its id (x) or its name (jobs/x)")));
    }
    Ok(format!("jobs/{id}"))
}

/// The resource name of a sweep (`sweeps/x`) from what a user typed: `x` or `sweeps/x`.
///
/// # Errors
/// `Invalid` when it is empty or names something inside a sweep.
pub fn sweep_name(typed: &str) -> Result<String, ClientError> {
    let id = typed.strip_prefix("sweeps/").unwrap_or(typed);
    if id.is_empty() || id.contains('/') || id.chars().any(char::is_whitespace) {
        let message = format!("'{typed}' is not a sweep: give its id (x) or its name (sweeps/x)");
        return Err(invalid("SWEEP", message));
    }
    Ok(format!("sweeps/{id}"))
}

/// The resource name of a tenant (`tenants/x`) from what a user typed: `x` or `tenants/x`.
///
/// # Errors
/// `Invalid` when it is none.
pub fn tenant_name(typed: &str) -> Result<String, ClientError> {
    let name = typed.strip_prefix("tenants/").unwrap_or(typed);
    if !is_tenant_name(name) {
        return Err(invalid("TENANT", format!("'{typed}' is not a tenant; its name has {TENANT_NAME_FORM}")));
    }
    Ok(format!("tenants/{name}"))
}

/// The resource name of a token, which `lorafleet token list` shows: `tenants/{tenant}/tokens/{id}`, or `{tenant}/{id}`.
///
/// # Errors
/// `Invalid` when it is none.
pub fn token_name(typed: &str) -> Result<String, ClientError> {
    let short = typed.strip_prefix("tenants/").unwrap_or(typed);
    let parts = short.split_once("/tokens/").or_else(|| short.split_once('/'));
    let good = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    match parts {
        Some((tenant, id)) if good(id) => Ok(format!("{}/tokens/{id}", tenant_name(tenant)?)),
        _ => {
            let message = format!("'{typed}' is not a token's name; `lorafleet token list` shows them");
            Err(invalid("TOKEN", message))
        }
    }
}

/// The resource name of a checkpoint from what a user typed: its id within `job`, or its whole name.
///
/// # Errors
/// `Invalid` when it names a checkpoint of another job, or none at all.
pub fn checkpoint_name(job: &str, typed: &str) -> Result<String, ClientError> {
    let prefix = format!("{job}/checkpoints/");
    let id = typed.strip_prefix(&prefix).unwrap_or(typed);
    if id.is_empty() || id.contains('/') {
        return Err(invalid("--checkpoint", format!("'{typed}' is not a checkpoint of {job}")));
    }
    Ok(format!("{prefix}{id}"))
}

/// The last part of a resource name: what people read and type.
pub fn short_id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn invalid(field: &str, message: String) -> ClientError {
    ClientError::invalid("the command line is not right:", vec![FieldError::new(field, message)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_with_or_without_its_collection() {
        assert_eq!(job_name("abc").unwrap(), "jobs/abc");
        assert_eq!(job_name("jobs/abc").unwrap(), "jobs/abc");
        for wrong in ["", "jobs/", "jobs/a/b", "a b"] {
            assert!(job_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_checkpoint_belongs_to_its_job() {
        assert_eq!(checkpoint_name("jobs/a", "0001").unwrap(), "jobs/a/checkpoints/0001");
        assert_eq!(checkpoint_name("jobs/a", "jobs/a/checkpoints/0001").unwrap(), "jobs/a/checkpoints/0001");
        assert!(checkpoint_name("jobs/a", "jobs/b/checkpoints/0001").is_err());
    }

    #[test]
    fn short_ids_are_the_last_part() {
        assert_eq!(short_id("jobs/a/checkpoints/0001"), "0001");
        assert_eq!(short_id("plain"), "plain");
    }
}
