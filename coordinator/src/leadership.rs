//! Which coordinator schedules: a row with an epoch, taken over by watching its counter stand still.

use std::time::{Duration, Instant};

use sqlx::{PgConnection, PgPool};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{db::DbError, stillness::Stillness};

/// A leader raises its counter this often.
pub const RENEWAL: Duration = Duration::from_secs(1);
/// A standby takes over after watching the counter stand still for this long.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// The right to schedule, until another epoch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    holder: Uuid,
    epoch: i64,
}

/// A coordinator that leads or would like to.
#[derive(Debug)]
pub struct Candidate {
    me: Uuid,
    watch: Stillness<i64>,
    leads: Option<(Leadership, Instant)>,
    told: watch::Sender<Option<Leadership>>,
}

impl Leadership {
    /// Who holds it.
    pub fn holder(&self) -> Uuid {
        self.holder
    }

    /// Its epoch: it holds until the next one begins.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Whether it still holds, within the caller's transaction.
    pub async fn holds(&self, tx: &mut PgConnection) -> Result<bool, DbError> {
        let holds = sqlx::query_scalar!(
            r#"select exists (select 1 from scheduler_lease where holder = $1 and epoch = $2) as "holds!""#,
            self.holder,
            self.epoch,
        )
        .fetch_one(tx)
        .await?;
        Ok(holds)
    }
}

impl Candidate {
    /// A coordinator process that just started.
    pub fn new() -> Self {
        Self { me: Uuid::new_v4(), watch: Stillness::new(), leads: None, told: watch::Sender::new(None) }
    }

    /// The leadership, as long as it is believed to hold; for what a leader does beside scheduling.
    pub fn leadership(&self) -> watch::Receiver<Option<Leadership>> {
        self.told.subscribe()
    }

    /// Renews the leadership when it is due, or takes it over when nobody has it or its holder stands still.
    pub async fn campaign(&mut self, pool: &PgPool, now: Instant) -> Result<Option<Leadership>, DbError> {
        if let Some((leadership, renewed)) = self.leads {
            if now.duration_since(renewed) < RENEWAL {
                return Ok(Some(leadership));
            }
            if self.renew(pool, leadership).await? {
                self.leads = Some((leadership, now));
                return Ok(Some(leadership));
            }
            self.leads = None;
            self.told.send_replace(None);
            self.watch.reset();
        }
        self.take_over(pool, now).await
    }

    /// The row could not be seen for a while, so nobody stood still before one's eyes.
    pub fn lost_sight(&mut self) {
        self.watch.reset();
    }

    /// Gives the leadership up, so that a standby need not wait.
    pub async fn resign(&mut self, pool: &PgPool) -> Result<(), DbError> {
        self.told.send_replace(None);
        if let Some((Leadership { holder, epoch }, _)) = self.leads.take() {
            sqlx::query!(
                "update scheduler_lease set holder = null where holder = $1 and epoch = $2",
                holder,
                epoch
            )
            .execute(pool)
            .await?;
        }
        Ok(())
    }

    async fn renew(&self, pool: &PgPool, leadership: Leadership) -> Result<bool, DbError> {
        let done = sqlx::query!(
            "update scheduler_lease set counter = counter + 1 where holder = $1 and epoch = $2",
            leadership.holder,
            leadership.epoch,
        )
        .execute(pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn take_over(&mut self, pool: &PgPool, now: Instant) -> Result<Option<Leadership>, DbError> {
        let row = sqlx::query!("select holder, epoch, counter from scheduler_lease").fetch_one(pool).await?;
        let still = self.watch.observe(now, &[(row.epoch, row.counter)]);
        let still = still.get(&row.epoch).is_some_and(|time| *time >= PATIENCE);
        if row.holder.is_some() && !still {
            return Ok(None);
        }
        let epoch = sqlx::query_scalar!(
            "update scheduler_lease set holder = $1, epoch = epoch + 1, counter = counter + 1
             where epoch = $2 and counter = $3 returning epoch",
            self.me,
            row.epoch,
            row.counter,
        )
        .fetch_optional(pool)
        .await?;
        let Some(epoch) = epoch else { return Ok(None) };
        let leadership = Leadership { holder: self.me, epoch };
        tracing::info!(epoch, "this coordinator schedules now");
        self.leads = Some((leadership, now));
        self.told.send_replace(Some(leadership));
        Ok(Some(leadership))
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;

    /// From the last renewal to the takeover, with the default time between two looks.
    const TAKEOVER: Duration = Duration::from_secs(5);
    const POLL: Duration = Duration::from_millis(250);

    #[tokio::test]
    async fn a_standby_takes_over_in_time_and_the_deposed_learns_of_it() {
        let postgres = lorafleet_postgres::Postgres::throwaway().expect("a throwaway Postgres");
        let options = PgConnectOptions::from_str(&postgres.url("postgres")).expect("a URL");
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(options);
        sqlx::migrate!("../migrations").run(&pool).await.expect("migrated");
        let (mut leader, mut standby) = (Candidate::new(), Candidate::new());
        let start = Instant::now();
        let first = leader.campaign(&pool, start).await.expect("an answer").expect("nobody led");
        // The leader renews for a while, and the standby sees it; then it is gone without a word.
        let mut now = start;
        while now < start + PATIENCE * 2 {
            assert_eq!(leader.campaign(&pool, now).await.expect("an answer"), Some(first));
            assert_eq!(standby.campaign(&pool, now).await.expect("an answer"), None, "one leads at a time");
            now += POLL;
        }
        let last_sign = now - POLL;
        let second = loop {
            if let Some(second) = standby.campaign(&pool, now).await.expect("an answer") {
                break second;
            }
            now += POLL;
        };
        assert!(now - last_sign < TAKEOVER, "{:?}", now - last_sign);
        assert_eq!(second.epoch, first.epoch + 1);
        // It comes back: its epoch is over, whatever it wants to write, and it finds out at its next renewal.
        let mut connection = pool.acquire().await.expect("a connection");
        assert!(!first.holds(&mut connection).await.expect("an answer"));
        assert!(second.holds(&mut connection).await.expect("an answer"));
        drop(connection);
        assert_eq!(leader.campaign(&pool, now + RENEWAL).await.expect("an answer"), None);
    }
}
