//! Parameters, memory, FLOPs and bytes of a job, by arithmetic.
