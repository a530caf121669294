//! The documentation: the job files that it shows are whole and valid, with the examples' base and data; its links lead
//! somewhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lorafleet_spec::{job::submission, sweep, validate};

/// The job files of a page: its YAML blocks that name a base.
fn job_files(page: &str) -> impl Iterator<Item = &str> {
    let blocks = page.split("\n```yaml\n").skip(1).filter_map(|block| block.split("\n```").next());
    blocks.filter(|block| block.lines().any(|line| line.starts_with("base:")))
}

#[test]
fn every_job_file_in_the_docs_is_valid() {
    let examples = root().join("examples");
    let mut count = 0;
    // README's is the reader's own.
    for (path, page) in pages().into_iter().filter(|(path, _)| !path.ends_with("README.md")) {
        for text in job_files(&page).flat_map(submission::documents) {
            let text = text.as_str();
            count += 1;
            let of_sweep = text.lines().any(|line| line.starts_with("sweep:")).then(|| one_of_sweep(text));
            let text = of_sweep.as_deref().unwrap_or(text);
            let report = validate::job_file(text, &examples);
            // The adapter to continue from is the reader's own.
            let errors: Vec<_> =
                report.errors.into_iter().filter(|error| error.path != "adapter.start").collect();
            assert!(errors.is_empty(), "{}:\n{text}\n{errors:#?}", path.display());
        }
    }
    assert!(count >= 10, "only {count} job files were found");
}

/// The job file within a sweep file whose children are in order.
fn one_of_sweep(text: &str) -> String {
    let file = sweep::parse_sweep(text).unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"));
    sweep::expand(&file.spec, &file.sweep).unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"));
    file.job_file
}

#[test]
fn the_example_sweep_is_in_order() {
    let examples = root().join("examples");
    let text = one_of_sweep(&fs::read_to_string(examples.join("sweep.yaml")).expect("the example"));
    assert_eq!(validate::job_file(&text, &examples).errors, []);
}

#[test]
fn the_example_pipeline_is_in_order() {
    let examples = root().join("examples");
    let text = fs::read_to_string(examples.join("pipeline.yaml")).expect("the example");
    let reports: Vec<_> =
        submission::documents(&text).iter().map(|text| validate::job_file(text, &examples)).collect();
    assert!(reports.iter().all(|report| report.errors.is_empty()), "{reports:#?}");
    let links: Vec<_> = reports.iter().map(|report| submission::Links::of(&report.spec)).collect();
    assert_eq!(submission::order(&links).map(|order| order.jobs), Ok(vec![0, 1, 2]));
}

/// The workspace's root.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("spec lies in the workspace's root")
}

/// README, CHANGELOG and what lies in docs/, with their paths.
fn pages() -> Vec<(PathBuf, String)> {
    let docs = fs::read_dir(root().join("docs")).expect("docs/ is there");
    let docs = docs.map(|entry| entry.expect("an entry of docs/").path());
    let all = docs.chain(["README.md", "CHANGELOG.md"].map(|name| root().join(name)));
    let pages = all.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.map(|path| (path.clone(), fs::read_to_string(&path).expect("a page is text"))).collect()
}

#[test]
fn no_page_has_marks_of_a_merge() {
    for (path, page) in pages() {
        let mark =
            page.lines().find(|line| ["<<<<<<< ", ">>>>>>> "].iter().any(|mark| line.starts_with(mark)));
        assert_eq!(mark, None, "{}", path.display());
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut count = 0;
    for (path, page) in pages() {
        let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => path.parent().expect("a page lies in a folder").join(file),
            };
            assert!(file.exists(), "{}: {target}", path.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&file).expect("a page is text");
                let found =
                    text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor);
                assert!(found, "{}: {target}", path.display());
            }
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} links were found");
}

/// The anchor that a heading gets where Markdown is shown.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
