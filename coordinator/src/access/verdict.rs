//! Whether a call may go on: a function of what it needs, the token that was shown, and the time.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{Caller, Role, needs::Need};
use crate::tokens::Token;

/// What came with a call.
#[derive(Clone, Debug)]
pub enum Shown {
    /// No token.
    Nothing,
    /// Something that is none.
    Garbage,
    /// A secret that belongs to no token.
    Unknown,
    /// A token, valid or not any more.
    Token(Arc<Token>),
}

/// Why a call may not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A token is asked for.
    #[error("this needs a token of the role {0} or above: give one with --token or LORAFLEET_TOKEN")]
    NoToken(Role),
    /// The header is not what it should be.
    #[error(
        "the authorization header holds no token of lorafleet; its form is `Bearer lft_` and 64 hex digits"
    )]
    Garbage,
    /// There is no such token.
    #[error("this fleet does not know the token; `lorafleet token create` makes one")]
    Unknown,
    /// It was revoked.
    #[error("{token} was revoked; ask an admin for another one")]
    Revoked {
        /// Which.
        token: String,
    },
    /// Its time is over.
    #[error("{token} has expired at {time}; ask an admin for another one")]
    Expired {
        /// Which.
        token: String,
        /// When, in RFC 3339.
        time: String,
    },
    /// It speaks for another tenant.
    #[error("{field}: the token is of tenant {own}, and cannot submit for tenant {other}")]
    OtherTenant {
        /// Where the request names the tenant.
        field: String,
        /// The token's tenant.
        own: String,
        /// The one that is named.
        other: String,
    },
    /// The role is too low.
    #[error("this needs the role {needed} or above; {token} has the role {has}")]
    RoleTooLow {
        /// Which token.
        token: String,
        /// What the call needs.
        needed: Role,
        /// What the token has.
        has: Role,
    },
}

/// Judges a call. `required`: without a token nobody gets in. A token that is shown counts either way. No caller comes of
/// a call that needs nothing.
pub fn judge(
    need: Need,
    shown: Shown,
    required: bool,
    now: DateTime<Utc>,
) -> Result<Option<Caller>, Refusal> {
    let Need::Role(needed) = need else { return Ok(None) };
    let token = match shown {
        Shown::Nothing if required => return Err(Refusal::NoToken(needed)),
        Shown::Nothing => return Ok(Some(Caller::anyone())),
        Shown::Garbage => return Err(Refusal::Garbage),
        Shown::Unknown => return Err(Refusal::Unknown),
        Shown::Token(token) => token,
    };
    if token.revoke_time.is_some() {
        return Err(Refusal::Revoked { token: token.name() });
    }
    if let Some(time) = token.expire_time.filter(|time| *time <= now) {
        return Err(Refusal::Expired { token: token.name(), time: time.to_rfc3339() });
    }
    if token.role < needed {
        return Err(Refusal::RoleTooLow { token: token.name(), needed, has: token.role });
    }
    Ok(Some(Caller::bearer(token)))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use uuid::Uuid;

    use super::*;
    use crate::{ids::TenantId, tokens::TokenId};

    fn token(role: Role) -> Token {
        Token {
            id: TokenId(Uuid::nil()),
            number: 1,
            tenant: TenantId::new(),
            tenant_name: "team-a".to_owned(),
            role,
            description: String::new(),
            create_time: DateTime::UNIX_EPOCH,
            expire_time: None,
            revoke_time: None,
        }
    }

    fn shown(token: Token) -> Shown {
        Shown::Token(Arc::new(token))
    }

    fn refused(need: Need, shown: Shown, required: bool, now: DateTime<Utc>) -> Option<Refusal> {
        judge(need, shown, required, now).err()
    }

    #[test]
    fn a_role_may_do_what_needs_it_or_less() {
        for has in Role::ALL {
            for needed in Role::ALL {
                let judged = judge(Need::Role(needed), shown(token(has)), true, Utc::now());
                assert_eq!(judged.is_ok(), has >= needed, "{has} does what needs {needed}");
            }
        }
    }

    #[test]
    fn without_a_token_all_is_allowed_or_nothing() {
        let viewer = Need::Role(Role::Viewer);
        let now = Utc::now();
        let caller =
            judge(Need::Role(Role::Admin), Shown::Nothing, false, now).ok().flatten().expect("let in");
        assert_eq!((caller.tenant_name(), caller.scope()), ("default", None));
        assert_eq!(refused(viewer, Shown::Nothing, true, now), Some(Refusal::NoToken(Role::Viewer)));
        assert!(matches!(judge(Need::Nothing, Shown::Garbage, true, now), Ok(None)), "probes show nothing");
    }

    #[test]
    fn a_token_that_is_shown_counts_although_none_is_asked_for() {
        let (admin, now) = (Need::Role(Role::Admin), Utc::now());
        for required in [true, false] {
            assert_eq!(refused(admin, Shown::Garbage, required, now), Some(Refusal::Garbage));
            assert_eq!(refused(admin, Shown::Unknown, required, now), Some(Refusal::Unknown));
            let low = refused(admin, shown(token(Role::Operator)), required, now);
            assert!(matches!(low, Some(Refusal::RoleTooLow { .. })), "{low:?}");
        }
    }

    #[test]
    fn revoked_and_expired_tokens_are_none() {
        let (viewer, now) = (Need::Role(Role::Viewer), Utc::now());
        let revoked = Token { revoke_time: Some(now), ..token(Role::Admin) };
        assert!(matches!(refused(viewer, shown(revoked), true, now), Some(Refusal::Revoked { .. })));
        let ends = Token { expire_time: Some(now), ..token(Role::Admin) };
        assert!(refused(viewer, shown(ends.clone()), true, now - TimeDelta::seconds(1)).is_none());
        assert!(matches!(refused(viewer, shown(ends), true, now), Some(Refusal::Expired { .. })));
    }

    #[test]
    fn those_below_operators_see_their_own_tenant() {
        let caller = |role| Caller::bearer(Arc::new(token(role)));
        for role in Role::ALL {
            let own_only = caller(role).scope().is_some();
            assert_eq!(own_only, role < Role::Operator, "{role}");
            assert_eq!(caller(role).may_name("team-b"), !own_only, "{role}");
            assert!(caller(role).may_name("team-a"));
        }
    }
}
