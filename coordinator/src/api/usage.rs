//! The Usage service: a window of whole hours, and its entries.

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use lorafleet_proto::v1 as pb;
use pb::UsageGrouping;
use pbjson_types::Timestamp;
use tonic::{Request, Response, Status};

use super::{Services, error::ApiError, page::Page};
use crate::{
    access::Caller,
    convert,
    db::within,
    usage::{self, Window},
};

/// The window of a request that says none.
const DEFAULT: TimeDelta = TimeDelta::days(7);
/// The longest window.
const LONGEST: TimeDelta = TimeDelta::days(366);

/// The service.
#[derive(Debug)]
pub struct UsageService {
    pub(super) services: Services,
}

impl UsageService {
    async fn usage(
        &self,
        caller: &Caller,
        request: pb::GetUsageRequest,
    ) -> Result<pb::GetUsageResponse, ApiError> {
        let pool = &self.services.pool;
        let (start, end) = hours(request.start_time.as_ref(), request.end_time.as_ref(), Utc::now())?;
        let tenant = self.services.tenant_filter(caller, &request.tenant).await?;
        let window = Window { tenant, start, end };
        let (entries, next_page_token) = match request.group_by() {
            UsageGrouping::Unspecified | UsageGrouping::Tenant => {
                (within(usage::by_tenant(pool, &window)).await?, String::new())
            }
            UsageGrouping::Hour => (within(usage::by_hour(pool, &window)).await?, String::new()),
            UsageGrouping::Job => self.jobs(&request, &window).await?,
        };
        let (start_time, end_time) = (Some(convert::timestamp(start)), Some(convert::timestamp(end)));
        Ok(pb::GetUsageResponse { entries, next_page_token, start_time, end_time })
    }

    async fn jobs(
        &self,
        request: &pb::GetUsageRequest,
        window: &Window,
    ) -> Result<(Vec<pb::UsageEntry>, String), ApiError> {
        // Without a time of its own the window moves on from page to page; that is no other list.
        let time = |time: Option<&Timestamp>| time.map(|time| time.seconds).unwrap_or_default();
        let (start, end) = (time(request.start_time.as_ref()), time(request.end_time.as_ref()));
        let list = format!("usage/{:?}/{start}/{end}", window.tenant);
        let page = Page::read(request.page_size, &request.page_token, list)?;
        let before = page.after_number()?.unwrap_or(i64::MAX);
        let read = usage::by_job(&self.services.pool, window, before, page.read_size());
        let mut jobs = within(read).await?;
        let next = page.cut(&mut jobs, |job| job.number.to_string());
        Ok((jobs.into_iter().map(|job| job.entry).collect(), next))
    }
}

/// The window in whole hours: from the start of its first to the end of its last.
fn hours(
    start: Option<&Timestamp>,
    end: Option<&Timestamp>,
    now: DateTime<Utc>,
) -> Result<(DateTime<Utc>, DateTime<Utc>), ApiError> {
    let hour = TimeDelta::hours(1);
    let read = |field: &str, time: &Timestamp| {
        let floor = convert::time(time).and_then(|time| time.duration_trunc(hour).ok());
        floor.ok_or_else(|| ApiError::field(field, "is no time"))
    };
    let last = match end {
        Some(time) => read("end_time", time)?,
        None => read("end_time", &convert::timestamp(now))?,
    };
    let outside = || ApiError::field("end_time", "is too far from now");
    let end = last.checked_add_signed(hour).ok_or_else(outside)?;
    let start = match start {
        Some(time) => read("start_time", time)?,
        None => last.checked_sub_signed(DEFAULT).ok_or_else(outside)?,
    };
    if start >= end {
        return Err(ApiError::field("start_time", "is after end_time"));
    }
    if end - start > LONGEST + hour {
        let message = format!("is more than {} days before the window's end", LONGEST.num_days());
        return Err(ApiError::field("start_time", message));
    }
    Ok((start, end))
}

#[tonic::async_trait]
impl pb::usage_server::Usage for UsageService {
    async fn get_usage(
        &self,
        request: Request<pb::GetUsageRequest>,
    ) -> Result<Response<pb::GetUsageResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.usage(&caller, request.into_inner()).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).expect("a time").with_timezone(&Utc)
    }

    fn time(text: &str) -> Timestamp {
        convert::timestamp(at(text))
    }

    #[test]
    fn a_window_is_of_whole_hours_around_what_was_asked() {
        let now = at("2026-11-25T12:34:56Z");
        let (start, end) = hours(None, None, now).expect("a window");
        assert_eq!((start, end), (at("2026-11-18T12:00:00Z"), at("2026-11-25T13:00:00Z")));
        let asked = (time("2026-11-24T23:59:59Z"), time("2026-11-25T00:00:00Z"));
        let (start, end) = hours(Some(&asked.0), Some(&asked.1), now).expect("a window");
        assert_eq!((start, end), (at("2026-11-24T23:00:00Z"), at("2026-11-25T01:00:00Z")));
    }

    #[test]
    fn windows_that_are_none_are_refused_by_their_field() {
        let now = at("2026-11-25T12:34:56Z");
        let refused = |start: &Timestamp, end: &Timestamp| match hours(Some(start), Some(end), now) {
            Err(ApiError::Invalid(fields)) => fields[0].to_string(),
            other => panic!("{other:?}"),
        };
        let (early, late) = (time("2025-01-01T00:00:00Z"), time("2026-11-25T00:00:00Z"));
        assert_eq!(refused(&late, &early), "start_time: is after end_time");
        assert_eq!(refused(&early, &late), "start_time: is more than 366 days before the window's end");
        let never = Timestamp { seconds: i64::MAX, nanos: 0 };
        assert_eq!(refused(&early, &never), "end_time: is no time");
        assert_eq!(refused(&early, &Timestamp { seconds: 0, nanos: -1 }), "end_time: is no time");
    }
}
