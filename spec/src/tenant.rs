//! The form of a tenant's name.

/// What [`is_tenant_name`] asks for, to be read after "it has".
pub const TENANT_NAME_FORM: &str = "1 to 63 lower-case letters, digits or '-', with no '-' at either end";

/// Whether `name` has the form of a tenant's name.
pub fn is_tenant_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_lower_case_words() {
        for good in ["a", "default", "team-7", &"x".repeat(63)] {
            assert!(is_tenant_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "Team", "a b", "a.b", "ä", &"x".repeat(64)] {
            assert!(!is_tenant_name(bad), "{bad}");
        }
    }
}
