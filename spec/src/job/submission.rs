//! Several jobs of one submission: the documents of a file, and the order that `queue.after` gives them.

use lorafleet_proto::v1 as pb;

use super::FieldError;

/// A mistake in one of several jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misplaced {
    /// Which job, from 0.
    pub job: usize,
    /// What is wrong with it.
    pub error: FieldError,
}

/// What one job of a submission says of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Links<'a> {
    /// What it is called.
    pub name: &'a str,
    /// `queue.after`.
    pub after: &'a [String],
    /// The job whose adapter it begins with, or is about: `jobs/{id}`, or `jobs/` and a name.
    pub adapter: Option<&'a str>,
}

impl<'a> Links<'a> {
    /// What a job says.
    pub fn of(spec: &'a pb::JobSpec) -> Self {
        let start = spec.adapter.as_ref().and_then(|adapter| adapter.start.as_ref());
        Self {
            name: &spec.display_name,
            after: spec.queue.as_ref().map_or(&[][..], |queue| &queue.after),
            adapter: start.map(|start| start.job.as_str()).filter(|job| !job.is_empty()),
        }
    }
}

/// What one job comes after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// Another job of the submission, from 0.
    Sibling(usize),
    /// A job that is stored already: `jobs/{id}`.
    Stored(String),
}

/// The jobs of a submission in an order in which each one's siblings come before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Indices of the jobs, first to last.
    pub jobs: Vec<usize>,
    /// What each job comes after, by index: also the job whose adapter it has.
    pub after: Vec<Vec<After>>,
    /// The job whose adapter each has.
    pub adapters: Vec<Option<After>>,
}

/// The documents of a YAML file that hold anything. Each keeps its lines' numbers, so that errors point into the file.
#[must_use]
pub fn documents(text: &str) -> Vec<String> {
    let mut documents = Vec::new();
    let mut document = String::new();
    for (number, line) in text.lines().enumerate() {
        let marker = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if let Some(rest) = marker {
            documents.push(std::mem::replace(&mut document, "\n".repeat(number)));
            document.push_str(rest);
        } else {
            document.push_str(line);
        }
        document.push('\n');
    }
    documents.push(document);
    let says_something = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with(['#', '%']);
    documents.retain(|document| document.lines().any(says_something));
    if documents.is_empty() { vec![text.to_owned()] } else { documents }
}

/// Finds what the jobs of a submission come after, and whose adapters they have.
///
/// # Errors
/// A name that no other job of the submission has, or that several have, and each circle, by names.
pub fn order(jobs: &[Links<'_>]) -> Result<Order, Vec<Misplaced>> {
    let mut errors = Vec::new();
    let (mut after, mut adapters) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
    for (job, links) in jobs.iter().enumerate() {
        let mut keep = |path: &str, found: Result<After, String>| {
            let wrong = |message| errors.push(Misplaced { job, error: FieldError::new(path, message) });
            found.map_err(wrong).ok()
        };
        let names = links.after.iter().enumerate();
        let mut all: Vec<After> =
            names.filter_map(|(i, name)| keep(&format!("queue.after[{i}]"), resolve(jobs, name))).collect();
        let adapter = links.adapter.and_then(|named| keep("adapter.start", trainer(jobs, named)));
        all.extend(adapter.clone().filter(|adapter| !all.contains(adapter)));
        after.push(all);
        adapters.push(adapter);
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let sorted = sort(&after).map_err(|circle| {
        let names: Vec<&str> = circle.iter().map(|&job| jobs[job].name).collect();
        let message = format!("makes a circle: {} comes after itself", names.join(" comes after "));
        vec![Misplaced { job: circle[0], error: FieldError::new("queue.after", message) }]
    })?;
    Ok(Order { jobs: sorted, after, adapters })
}

fn resolve(jobs: &[Links<'_>], name: &str) -> Result<After, String> {
    if name.starts_with("jobs/") {
        return Ok(After::Stored(name.to_owned()));
    }
    sibling(jobs, name)?.map(After::Sibling).ok_or_else(|| {
        format!(
            "is {name}, which is neither jobs/ID of a job that was submitted before nor the name of a job of this \
             submission"
        )
    })
}

/// The job of `jobs/{id}` or `jobs/{name}`; a sibling's name goes first.
fn trainer(jobs: &[Links<'_>], named: &str) -> Result<After, String> {
    let name = named.strip_prefix("jobs/").unwrap_or(named);
    if let Some(job) = sibling(jobs, name)? {
        return Ok(After::Sibling(job));
    }
    let is_id = name.len() == 36 && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    is_id.then(|| After::Stored(named.to_owned())).ok_or_else(|| {
        format!(
            "is {named}, and there is no job {name} in this submission; of one that was submitted before, give the id"
        )
    })
}

/// The job of the submission that has this name.
fn sibling(jobs: &[Links<'_>], name: &str) -> Result<Option<usize>, String> {
    let mut same = jobs.iter().enumerate().filter(|(_, other)| other.name == name);
    match (same.next(), same.next()) {
        (Some(_), Some(_)) => Err(format!("is {name}, a name that several jobs of this submission have")),
        (found, _) => Ok(found.map(|(job, _)| job)),
    }
}

/// Jobs whose siblings all come before them, first come first; or a circle of them, each after the next.
fn sort(after: &[Vec<After>]) -> Result<Vec<usize>, Vec<usize>> {
    let mut sorted: Vec<usize> = Vec::with_capacity(after.len());
    let mut done = vec![false; after.len()];
    let waits = |job: usize, done: &[bool]| {
        after[job].iter().find_map(|one| match one {
            After::Sibling(other) if !done[*other] => Some(*other),
            _ => None,
        })
    };
    loop {
        let next = (0..after.len()).find(|&job| !done[job] && waits(job, &done).is_none());
        let Some(next) = next else { break };
        done[next] = true;
        sorted.push(next);
    }
    let Some(start) = done.iter().position(|done| !done) else { return Ok(sorted) };
    // Whoever is left waits for another that is left, so this walk comes back to where it was.
    let mut walk = vec![start];
    while let Some(next) = waits(walk[walk.len() - 1], &done) {
        if let Some(first) = walk.iter().position(|&job| job == next) {
            return Err(walk.split_off(first));
        }
        walk.push(next);
    }
    Err(walk)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn links<'a>(name: &'a str, after: &'a [String]) -> Links<'a> {
        Links { name, after, adapter: None }
    }

    #[test]
    fn documents_keep_their_lines() {
        let documents = documents("# two jobs\n---\nname: a\n--- # the second\nname: b\n---\n");
        assert_eq!(documents, ["\n\nname: a\n", "\n\n\n # the second\nname: b\n"]);
        assert_eq!(super::documents("name: a"), ["name: a\n"]);
        assert_eq!(super::documents(""), [""]);
        assert_eq!(super::documents("text: |\n  ---\n").len(), 1);
    }

    #[test]
    fn siblings_come_first_wherever_they_stand() {
        let (merge, train) = (names(&["evaluate", "jobs/x"]), names(&[]));
        let evaluate = names(&["train"]);
        let order =
            order(&[links("merge", &merge), links("evaluate", &evaluate), links("train", &train)]).unwrap();
        assert_eq!(order.jobs, [2, 1, 0]);
        assert_eq!(order.after[0], [After::Sibling(1), After::Stored("jobs/x".into())]);
    }

    #[test]
    fn an_adapter_of_a_sibling_comes_first() {
        let about = |name, adapter| Links { adapter: Some(adapter), ..links(name, &[]) };
        let stored = "jobs/0198b5c0-0000-7000-8000-000000000001";
        let jobs = [about("merge", "jobs/train"), links("train", &[]), about("other", stored)];
        let order = order(&jobs).unwrap();
        assert_eq!(order.jobs, [1, 0, 2]);
        assert_eq!(order.after[0], [After::Sibling(1)]);
        assert_eq!(order.adapters[2], Some(After::Stored(stored.into())));
        let wrong = super::order(&[about("merge", "jobs/trian")]).unwrap_err();
        assert!(
            wrong[0].error.to_string().starts_with("adapter.start: is jobs/trian, and there is no job trian")
        );
        let wrong = super::order(&[about("merge", "jobs/merge")]).unwrap_err();
        assert!(wrong[0].error.message.contains("circle"), "{wrong:?}");
    }

    #[test]
    fn circles_and_unknown_names_are_named() {
        let (a, b, c) = (names(&["c"]), names(&["a"]), names(&["b"]));
        let wrong = order(&[links("a", &a), links("b", &b), links("c", &c)]).unwrap_err();
        assert_eq!(
            (wrong[0].job, wrong[0].error.to_string().as_str()),
            (0, "queue.after: makes a circle: a comes after c comes after b comes after itself")
        );
        let wrong = order(&[links("a", &names(&["d"]))]).unwrap_err();
        assert!(wrong[0].error.to_string().starts_with("queue.after[0]: is d, which is neither jobs/ID"));
        let wrong = order(&[links("a", &names(&["b"])), links("b", &[]), links("b", &[])]).unwrap_err();
        assert!(wrong[0].error.message.contains("several jobs"));
    }

    proptest! {
        /// Every order puts each job behind all that it comes after; and there is one unless there is a circle.
        #[test]
        fn orders_are_orders(edges in prop::collection::vec((0..6_usize, 0..6_usize), 0..10)) {
            let labels = ["a", "b", "c", "d", "e", "f"];
            let after: Vec<Vec<String>> = (0..6)
                .map(|job| edges.iter().filter(|edge| edge.0 == job).map(|edge| labels[edge.1].to_owned()).collect())
                .collect();
            let jobs: Vec<Links> = labels.iter().zip(&after).map(|(name, after)| links(name, after)).collect();
            match order(&jobs) {
                Ok(order) => {
                    let place = |job: usize| order.jobs.iter().position(|&other| other == job).unwrap();
                    prop_assert!(edges.iter().all(|edge| place(edge.0) > place(edge.1)));
                }
                Err(wrong) => prop_assert!(wrong[0].error.message.contains("circle")),
            }
        }
    }
}
