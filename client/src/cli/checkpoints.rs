//! `lorafleet checkpoints JOB`: the whole checkpoints of a job in the store.

use lorafleet::{job_name, pb, short_id};

use super::{Exit, Fleet, output};
use crate::show::{Table, age, bytes, number};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its id, or jobs/ID.
    job: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let name = job_name(&args.job)?;
    let checkpoints = fleet.connect().await?.list_checkpoints(&name).await?;
    let answer = pb::ListCheckpointsResponse { checkpoints, ..Default::default() };
    let mut table = Table::new(&["CHECKPOINT", ">STEP", ">SIZE", ">AGE", "", "WEIGHTS SHA256"]);
    for checkpoint in &answer.checkpoints {
        let weights = |file: &&pb::CheckpointFile| {
            matches!(file.name.as_str(), "adapter_model.safetensors" | "model.safetensors")
        };
        let weights = checkpoint.files.iter().find(weights);
        table.row(vec![
            short_id(&checkpoint.name).to_owned(),
            number(checkpoint.step),
            bytes(checkpoint.files.iter().map(|file| file.size_bytes).sum()),
            age(checkpoint.create_time.as_ref()),
            match (checkpoint.r#final, checkpoint.best) {
                (true, _) => "final",
                (_, true) => "best",
                _ => "",
            }
            .to_owned(),
            weights.map_or(String::new(), |file| file.sha256.clone()),
        ]);
    }
    output::list(args.json, &answer, &format!("{name} has no checkpoint yet"), &table)
}
