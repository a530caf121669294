//! Everything that can be said of a job file before it is sent.
