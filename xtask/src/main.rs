//! The project's own commands: demo, test, bench.

fn main() {}
