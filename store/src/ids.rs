//! Names that occur in places of the store, as types that cannot be anything else.

use std::fmt;
use std::str::FromStr;

use lorafleet_proto::v1::Fence;
use serde::{Deserialize, Serialize};

/// A name that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: it must be {rule}")]
pub struct InvalidId {
    what: &'static str,
    text: String,
    rule: &'static str,
}

impl InvalidId {
    pub(crate) fn new(what: &'static str, text: &str, rule: &'static str) -> InvalidId {
        // Such a name may have come from anybody, at any length.
        let text = text.chars().take(120).collect();
        InvalidId { what, text, rule }
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<$name, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok($name(text.to_owned())) } else { Err(InvalidId::new($what, text, $rule)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<$name, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// A job's id, the last part of `jobs/{id}`.
    JobId,
    "job id",
    "1 to 63 lower-case letters, digits and '-'",
    |text| (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
);

text_id!(
    /// The name of a file within the folder of a base or a checkpoint; never a path.
    FileName,
    "file name",
    "1 to 128 letters, digits, '.', '-' and '_', not beginning with '.'",
    |text| (1..=128).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
);

/// A checkpoint of a job: the step that it holds and the fence under which it was written.
///
/// Prints as `{step:010}-{attempt:04}-{generation:04}-{generation_id}`, so names and ids sort alike: by step, then by
/// attempt, then by generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CheckpointId {
    step: u64,
    attempt: u32,
    generation: u32,
    generation_id: String,
}

impl CheckpointId {
    const RULE: &str = "{step:010}-{attempt:04}-{generation:04}-{generation id of 16 lower-case hex digits}";

    /// The checkpoint of this step, written under this fence.
    ///
    /// # Errors
    /// When the step has more than 10 digits, attempt or generation more than 4, or the generation id is not 16
    /// lower-case hex digits.
    pub fn new(step: u64, fence: &Fence) -> Result<CheckpointId, InvalidId> {
        let id = CheckpointId {
            step,
            attempt: fence.attempt,
            generation: fence.generation,
            generation_id: fence.generation_id.clone(),
        };
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let fits = step < 10_000_000_000 && fence.attempt < 10_000 && fence.generation < 10_000;
        if fits && fence.generation_id.len() == 16 && fence.generation_id.bytes().all(hex) {
            Ok(id)
        } else {
            Err(InvalidId::new("checkpoint", &id.to_string(), Self::RULE))
        }
    }

    /// The last step that it holds.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The fence under which it was written.
    pub fn fence(&self) -> Fence {
        Fence {
            attempt: self.attempt,
            generation: self.generation,
            generation_id: self.generation_id.clone(),
        }
    }

    /// The API's resource name, `jobs/{job}/checkpoints/{id}`.
    pub fn resource_name(&self, job: &JobId) -> String {
        format!("jobs/{job}/checkpoints/{self}")
    }

    /// The job and id of a resource name.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse_resource_name(name: &str) -> Result<(JobId, CheckpointId), InvalidId> {
        let parts: Vec<&str> = name.splitn(5, '/').collect();
        match parts[..] {
            ["jobs", job, "checkpoints", id] => Ok((job.parse()?, id.parse()?)),
            _ => Err(InvalidId::new("checkpoint's name", name, "jobs/{job}/checkpoints/{checkpoint}")),
        }
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CheckpointId { step, attempt, generation, generation_id } = self;
        write!(f, "{step:010}-{attempt:04}-{generation:04}-{generation_id}")
    }
}

impl FromStr for CheckpointId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<CheckpointId, InvalidId> {
        let invalid = || InvalidId::new("checkpoint", text, Self::RULE);
        let parts: Vec<&str> = text.splitn(5, '-').collect();
        let [step, attempt, generation, generation_id] = parts[..] else { return Err(invalid()) };
        let fence = Fence {
            attempt: attempt.parse().map_err(|_| invalid())?,
            generation: generation.parse().map_err(|_| invalid())?,
            generation_id: generation_id.to_owned(),
        };
        let id = CheckpointId::new(step.parse().map_err(|_| invalid())?, &fence)?;
        // One checkpoint has one name: no missing zeros, no plus signs.
        if id.to_string() == text { Ok(id) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for CheckpointId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<CheckpointId, InvalidId> {
        text.parse()
    }
}

impl From<CheckpointId> for String {
    fn from(id: CheckpointId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn checkpoint_ids_print_parse_and_sort_alike(
            a in (0u64..10_000_000_000, 0u32..10_000, 0u32..10_000, "[0-9a-f]{16}"),
            b in (0u64..3, 0u32..3, 0u32..3, "[0-9a-f]{16}"),
            c in (0u64..3, 0u32..3, 0u32..3, "[0-9a-f]{16}"),
        ) {
            let id = |(step, attempt, generation, generation_id)| {
                CheckpointId::new(step, &Fence { attempt, generation, generation_id }).unwrap()
            };
            let (a, b, c) = (id(a), id(b), id(c));
            prop_assert_eq!(a.to_string().parse::<CheckpointId>(), Ok(a.clone()));
            prop_assert_eq!(b.to_string().cmp(&c.to_string()), b.cmp(&c));
            let job: JobId = "0192-ab".parse().unwrap();
            prop_assert_eq!(CheckpointId::parse_resource_name(&a.resource_name(&job)), Ok((job, a)));
        }

        #[test]
        fn no_file_name_leaves_its_folder(text in ".{0,20}|[./]{0,6}") {
            if let Ok(name) = text.parse::<FileName>() {
                prop_assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'));
                let path = object_store::path::Path::parse(name.as_str()).unwrap();
                prop_assert_eq!(path.parts().count(), 1);
            }
        }
    }

    #[test]
    fn wrong_names_are_refused() {
        for wrong in ["", "..", "a/b", ".hidden", "a b", "a\\b", "ä", "a\0", &"x".repeat(129)] {
            assert!(wrong.parse::<FileName>().is_err(), "{wrong:?}");
        }
        for wrong in ["", "A", "a/b", "..", "a_b", &"x".repeat(64)] {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong:?}");
        }
        for wrong in [
            "5-1-1-0123456789abcdef",
            "+000000005-0001-0001-0123456789abcdef",
            "0000000005-0001-0001-0123456789ABCDEF",
            "0000000005-0001-0001-0123456789abcdef-x",
            "0000000005-0001-0001-../../x",
            "0000000005-0001-0001-",
        ] {
            assert!(wrong.parse::<CheckpointId>().is_err(), "{wrong:?}");
        }
        assert!(CheckpointId::parse_resource_name("jobs/a/checkpoints/b/c").is_err());
    }
}
