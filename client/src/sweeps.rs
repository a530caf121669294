//! Sweeps: a file that makes many jobs, and the calls about them.

use std::{fs, path::Path};

use lorafleet_spec::{
    FieldError,
    sweep::{Sweep, expand, parse_sweep},
};

use crate::{
    client::{Client, Line, PAGE, pages},
    error::ClientError,
    job_file::JobFile,
    pb::{self, sweeps_client::SweepsClient},
};

/// Largest answer: a page of a thousand children with their evaluations.
const MAX_MESSAGE: usize = 32 << 20;

/// A sweep file on this machine: a job file with a section `sweep`.
#[derive(Debug, Clone)]
pub struct SweepFile {
    /// The job file that is left without the section.
    pub job: JobFile,
    /// What the children have in common, without defaults.
    pub spec: pb::JobSpec,
    /// What differs.
    pub sweep: pb::SweepSpec,
    /// The children, by their fields alone.
    pub expanded: Sweep,
}

impl SweepFile {
    /// Reads a sweep file and works its children out. Blocks.
    ///
    /// # Errors
    /// `File` when it cannot be read; `Invalid` with everything that is wrong with it, or with a child.
    pub fn read(path: &Path) -> Result<Self, ClientError> {
        let text = fs::read_to_string(path).map_err(ClientError::file(path))?;
        let mistakes = |errors: Vec<FieldError>| JobFile::new(path, String::new()).mistakes(errors);
        let file = parse_sweep(&text).map_err(mistakes)?;
        let expanded = expand(&file.spec, &file.sweep).map_err(mistakes)?;
        Ok(Self { job: JobFile::new(path, file.job_file), spec: file.spec, sweep: file.sweep, expanded })
    }
}

/// Whether all children of a sweep have ended.
pub fn is_over(sweep: &pb::Sweep) -> bool {
    !matches!(sweep.state(), pb::SweepState::Running | pb::SweepState::Unspecified)
}

impl Client {
    /// Stores a sweep with all of its children; with the same `request_id` the same sweep, so it is retried safely.
    ///
    /// # Errors
    /// `Invalid` with each mistake, `NotFound` when base or data were never uploaded, `Refused` when the request id was
    /// used for another sweep.
    pub async fn create_sweep(
        &self,
        spec: &pb::JobSpec,
        sweep: &pb::SweepSpec,
        request_id: &str,
    ) -> Result<pb::Sweep, ClientError> {
        let request = pb::CreateSweepRequest {
            spec: Some(spec.clone()),
            sweep: Some(sweep.clone()),
            request_id: request_id.to_owned(),
        };
        self.unary(request, |channel, request| async move { sweeps(channel).create_sweep(request).await })
            .await
    }

    /// One sweep.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_sweep(&self, name: &str) -> Result<pb::Sweep, ClientError> {
        let request = pb::GetSweepRequest { name: name.to_owned() };
        self.unary(request, |channel, request| async move { sweeps(channel).get_sweep(request).await }).await
    }

    /// Cancels every child of a sweep that has not ended.
    ///
    /// # Errors
    /// `NotFound`; `Refused` when all have ended.
    pub async fn cancel_sweep(&self, name: &str) -> Result<pb::Sweep, ClientError> {
        let request = pb::CancelSweepRequest { name: name.to_owned() };
        self.unary(request, |channel, request| async move { sweeps(channel).cancel_sweep(request).await })
            .await
    }

    /// The newest `limit` sweeps, newest first.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn list_sweeps(&self, limit: usize) -> Result<Vec<pb::Sweep>, ClientError> {
        let page_size = i32::try_from(limit).unwrap_or(PAGE).min(PAGE);
        pages(limit, |page_token| {
            let request = pb::ListSweepsRequest { page_size, page_token };
            async {
                let call = |channel, request| async move { sweeps(channel).list_sweeps(request).await };
                let page = self.unary(request, call).await?;
                Ok((page.sweeps, page.next_page_token))
            }
        })
        .await
    }

    /// The children of a sweep in their order, with their evaluations.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn list_sweep_children(&self, sweep: &str) -> Result<Vec<pb::SweepChild>, ClientError> {
        pages(usize::MAX, |page_token| {
            let request =
                pb::ListSweepChildrenRequest { parent: sweep.to_owned(), page_size: PAGE, page_token };
            async {
                let call =
                    |channel, request| async move { sweeps(channel).list_sweep_children(request).await };
                let page = self.unary(request, call).await?;
                Ok((page.children, page.next_page_token))
            }
        })
        .await
    }
}

fn sweeps(channel: Line) -> SweepsClient<Line> {
    SweepsClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}
