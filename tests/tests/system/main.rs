//! The whole-system tests, in one program: each starts a fleet of its own.

mod api;
mod bad_start;
mod chaos;
mod command_line;
mod crash_points;
mod deploy;
mod elastic;
mod forms;
mod kill_all;
mod life;
mod no_shared_folder;
mod odd_members;
mod outages;
mod pipeline;
mod polite;
mod same_adapter;
mod sweep;
mod two_jobs;
mod up;
