//! What the environment variables say, read once.

use std::time::Duration;

/// What happens at a failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// SIGKILL to this process.
    Kill,
    /// SIGSTOP to this process.
    Stop,
    /// The thread sleeps.
    Sleep(Duration),
    /// The caller gets an error.
    Error,
}

/// When what happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) name: String,
    /// Only at this step; at any without one.
    pub(crate) step: Option<u64>,
    pub(crate) always: bool,
    pub(crate) action: Action,
}

impl Rule {
    /// All rules of the variable's text; the first mistake is said.
    pub(crate) fn parse_all(text: &str) -> Result<Vec<Rule>, String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(Rule::parse).collect()
    }

    fn parse(text: &str) -> Result<Rule, String> {
        let (place, action) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME[@STEP][*]=ACTION"))?;
        let (place, always) = place.strip_suffix('*').map_or((place, false), |place| (place, true));
        let (name, step) = match place.split_once('@') {
            None => (place, None),
            Some((name, step)) => {
                (name, Some(step.parse().map_err(|_| format!("{step:?} in {text:?} is no step"))?))
            }
        };
        if name.is_empty() {
            return Err(format!("{text:?} names no failpoint"));
        }
        Ok(Rule { name: name.into(), step, always, action: action_of(action)? })
    }

    /// Whether it speaks of this point.
    pub(crate) fn matches(&self, name: &str, step: u64) -> bool {
        self.name == name && self.step.is_none_or(|at| at == step)
    }
}

fn action_of(text: &str) -> Result<Action, String> {
    let sleep = |ms: &str| ms.parse().ok().map(|ms| Action::Sleep(Duration::from_millis(ms)));
    match text {
        "kill" => Ok(Action::Kill),
        "stop" => Ok(Action::Stop),
        "error" => Ok(Action::Error),
        _ => text
            .strip_prefix("sleep:")
            .and_then(sleep)
            .ok_or_else(|| format!("{text:?} is none of kill, stop, sleep:MS, error")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read() {
        let rules =
            Rule::parse_all("mid-reduction@7=kill, a=stop,b*=error,checkpoint-before-row@3*=sleep:250")
                .unwrap();
        let rule = |name: &str, step, always, action| Rule { name: name.into(), step, always, action };
        assert_eq!(
            rules,
            [
                rule("mid-reduction", Some(7), false, Action::Kill),
                rule("a", None, false, Action::Stop),
                rule("b", None, true, Action::Error),
                rule("checkpoint-before-row", Some(3), true, Action::Sleep(Duration::from_millis(250))),
            ]
        );
        assert!(Rule::parse_all("").unwrap().is_empty());
    }

    #[test]
    fn mistakes_are_said() {
        for (text, says) in [
            ("a", "is not NAME"),
            ("=kill", "names no failpoint"),
            ("a@x=kill", "is no step"),
            ("a=die", "is none of"),
            ("a=sleep:", "is none of"),
        ] {
            let error = Rule::parse_all(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_rule_matches_its_step_or_any() {
        let rules = Rule::parse_all("a@2=kill,b=kill").unwrap();
        assert!(rules[0].matches("a", 2) && !rules[0].matches("a", 3) && !rules[0].matches("b", 2));
        assert!(rules[1].matches("b", 0) && rules[1].matches("b", 9));
    }
}
