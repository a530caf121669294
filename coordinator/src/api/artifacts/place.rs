//! From a reference in a request to a place in the store; what is not one of the known places is refused here.

use lorafleet_proto::v1 as pb;
use lorafleet_spec::FieldError;
use lorafleet_store::{CheckpointId, Digest, FileName, InvalidId, JobId, Path, layout};

use crate::api::error::ApiError;

/// A file in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A data set, by the digest of its bytes.
    Dataset(Digest),
    /// A file of a base.
    Base {
        /// The base's digest.
        base: Digest,
        /// The file.
        name: FileName,
        /// The digest of the file's bytes, where the caller said it.
        sha256: Option<Digest>,
    },
    /// A file of a checkpoint.
    Checkpoint {
        /// The job.
        job: JobId,
        /// The checkpoint.
        id: CheckpointId,
        /// The file.
        name: FileName,
    },
}

impl Place {
    /// Reads a reference that stands in the request's field `field`; all that is wrong with it at once.
    pub(super) fn parse(field: &str, reference: Option<pb::ArtifactRef>) -> Result<Place, ApiError> {
        use pb::artifact_ref::Place as Reference;
        let mut read = Fields { field, errors: Vec::new() };
        let place = match reference.and_then(|reference| reference.place) {
            None => {
                let missing = "name a data set, a file of a base or a file of a checkpoint";
                return Err(ApiError::field(field, missing));
            }
            Some(Reference::DatasetSha256(digest)) => {
                read.parse("dataset_sha256", &digest).map(Place::Dataset)
            }
            Some(Reference::BaseFile(file)) => {
                let base = read.parse("base_file.base_sha256", &file.base_sha256);
                let name = read.parse("base_file.name", &file.name);
                let said = !file.sha256.is_empty();
                let sha256 = said.then(|| read.parse("base_file.sha256", &file.sha256)).flatten();
                base.zip(name).map(|(base, name)| Place::Base { base, name, sha256 })
            }
            Some(Reference::CheckpointFile(file)) => {
                let checkpoint = CheckpointId::parse_resource_name(&file.checkpoint);
                let checkpoint = read.keep("checkpoint_file.checkpoint", checkpoint);
                let name = read.parse("checkpoint_file.name", &file.name);
                checkpoint.zip(name).map(|((job, id), name)| Place::Checkpoint { job, id, name })
            }
        };
        match place {
            Some(place) if read.errors.is_empty() => Ok(place),
            _ => Err(ApiError::Invalid(read.errors)),
        }
    }

    /// Where it lies.
    pub(super) fn path(&self) -> Path {
        match self {
            Place::Dataset(digest) => layout::dataset(digest),
            Place::Base { base, name, .. } => layout::base_file(base, name),
            Place::Checkpoint { job, id, name } => layout::checkpoint_file(job, id, name),
        }
    }
}

/// Gathers what is wrong with fields.
struct Fields<'a> {
    field: &'a str,
    errors: Vec<FieldError>,
}

impl Fields<'_> {
    fn parse<T: std::str::FromStr<Err = InvalidId>>(&mut self, name: &str, text: &str) -> Option<T> {
        self.keep(name, text.parse())
    }

    fn keep<T>(&mut self, name: &str, result: Result<T, InvalidId>) -> Option<T> {
        let field = self.field;
        result
            .map_err(|error| self.errors.push(FieldError::new(format!("{field}.{name}"), error.to_string())))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base_file(base: &str, name: &str, sha256: &str) -> Option<pb::ArtifactRef> {
        let file = pb::BaseFile { base_sha256: base.into(), name: name.into(), sha256: sha256.into() };
        Some(pb::ArtifactRef { place: Some(pb::artifact_ref::Place::BaseFile(file)) })
    }

    #[test]
    fn all_wrong_fields_are_named() {
        let Err(ApiError::Invalid(errors)) = Place::parse("artifact", base_file("x", "../y", "z")) else {
            panic!("accepted");
        };
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        let expected =
            ["artifact.base_file.base_sha256", "artifact.base_file.name", "artifact.base_file.sha256"];
        assert_eq!(paths, expected);
        assert!(matches!(Place::parse("artifact", None), Err(ApiError::Invalid(_))));
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_its_folder(name in "[./a%\\\\]{0,12}|.{0,12}") {
            let base = Digest::of(b"base");
            if let Ok(place) = Place::parse("artifact", base_file(&base.to_string(), &name, "")) {
                let path = place.path();
                prop_assert_eq!(path.parts().count(), 3);
                prop_assert!(path.prefix_matches(&layout::base(&base)));
            }
        }
    }
}
