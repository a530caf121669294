//! Roles: what a token lets its bearer do. Each may do what those below it may.

use std::fmt;

use lorafleet_proto::v1 as pb;

/// A role, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Looks at its tenant's jobs, and at the fleet.
    Viewer,
    /// Submits jobs for its tenant, and ends them.
    Submitter,
    /// The same for all tenants; and is a worker.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// All of them, from the least to the most.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Submitter, Self::Operator, Self::Admin];

    /// As the database keeps it, and as people say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// From the database.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// Whether it is about all tenants, not its own alone.
    pub fn sees_all_tenants(self) -> bool {
        self >= Self::Operator
    }

    /// From a request; `None` when it says none.
    pub fn from_message(role: pb::TokenRole) -> Option<Self> {
        match role {
            pb::TokenRole::Unspecified => None,
            pb::TokenRole::Viewer => Some(Self::Viewer),
            pb::TokenRole::Submitter => Some(Self::Submitter),
            pb::TokenRole::Operator => Some(Self::Operator),
            pb::TokenRole::Admin => Some(Self::Admin),
        }
    }
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

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered_and_read_back() {
        assert!(Role::ALL.is_sorted());
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
            assert_eq!(Role::from_message(role.into()), Some(role));
        }
        assert_eq!(Role::parse("root"), None);
        assert_eq!(Role::ALL.map(Role::sees_all_tenants), [false, false, true, true]);
    }
}
