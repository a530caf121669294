//! Usage: who used how much of the fleet.

use std::time::{Duration, SystemTime};

use crate::{
    client::{Client, PAGE, pages},
    error::ClientError,
    pb::{self, usage_client::UsageClient},
    time::timestamp,
};

/// What of the usage is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuery {
    /// Of this tenant only, by name; empty: of all.
    pub tenant: String,
    /// How far back from now.
    pub since: Duration,
    /// How it is summed.
    pub group_by: pb::UsageGrouping,
    /// Entries at most.
    pub limit: usize,
}

impl Client {
    /// What was used, in entries as the query groups them.
    ///
    /// # Errors
    /// `NotFound` when there is no such tenant; `Invalid` when the window is longer than 366 days.
    pub async fn get_usage(&self, query: &UsageQuery) -> Result<Vec<pb::UsageEntry>, ClientError> {
        let start = SystemTime::now().checked_sub(query.since).unwrap_or(SystemTime::UNIX_EPOCH);
        let start_time = timestamp(start);
        pages(query.limit, |page_token| {
            let request = pb::GetUsageRequest {
                tenant: query.tenant.clone(),
                start_time: Some(start_time),
                end_time: None,
                group_by: query.group_by.into(),
                page_size: i32::try_from(query.limit).unwrap_or(PAGE).min(PAGE),
                page_token,
            };
            async {
                let call =
                    |channel, request| async move { UsageClient::new(channel).get_usage(request).await };
                let page = self.unary(request, call).await?;
                Ok((page.entries, page.next_page_token))
            }
        })
        .await
    }
}
