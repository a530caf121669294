//! The adapter that a job goes on from: fetched as a base is, a folder by the digest of its SHA256SUMS.

use lorafleet_lora::{Adapter, Base};
use lorafleet_spec::job::Source;
use tracing::info;

use super::{
    Run,
    end::{End, missing},
    prepare::digest,
};

const FIELD: &str = "adapter.start";

/// Fetches and reads it.
pub(super) fn load(run: &Run, source: &Source, base: &Base) -> Result<Adapter, End> {
    let digest = digest(source, FIELD)?;
    let dir = run.block_on(run.workshop.cache.adapter(&run.store, &digest));
    let dir = dir.map_err(|error| missing(&format!("spec.{FIELD}"), &error))?;
    let adapter = Adapter::load(&dir, base.shape(), &|name| base.tensor(name));
    let adapter =
        adapter.map_err(|error| End::Failed(format!("spec.{FIELD} ({}): {error}", source.source)))?;
    info!(adapter = %digest, "start read");
    Ok(adapter)
}
