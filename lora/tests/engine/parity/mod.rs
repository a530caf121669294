//! What transformers and PEFT compute on tiny random models, number for number.
//!
//! The cases in `tests/parity/` were made with torch 2.15, transformers 5.24 and peft 0.21 (`case.json` says so). The
//! environment variable LORAFLEET_PARITY_CASES names a folder of further cases; every one in it is run, by name. With
//! LORAFLEET_PARITY_KEEP the adapters and merged bases are left in that folder, for `loads_in_peft.py`.

mod case;
mod compare;

use std::path::{Path, PathBuf};

use case::Case;

/// What went wrong, with the tensor's name.
type Outcome<T = ()> = Result<T, String>;

#[test]
fn every_case_matches_peft() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity")];
    folders.extend(std::env::var_os("LORAFLEET_PARITY_CASES").map(PathBuf::from));
    let mut failures = Vec::new();
    for folder in folders {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut cases: Vec<PathBuf> =
            entries.map(|entry| entry.unwrap().path()).filter(|p| p.is_dir()).collect();
        cases.sort();
        assert!(!cases.is_empty(), "{} has no cases", folder.display());
        for dir in cases {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(form) = case::not_yet(&dir) {
                println!("case {name}: not run, {form} is not trained yet");
                continue;
            }
            match Case::load(&dir).and_then(|case| case.check()) {
                Ok(()) => println!("case {name}: as PEFT"),
                Err(message) => failures.push(format!("case {name}: {message}")),
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
