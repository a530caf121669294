//! The rules that the adapter's fields must keep.

use std::collections::HashSet;

use lorafleet_proto::v1 as pb;

use super::{Check, MAX_LIST};
use crate::{
    job::{AdapterSpec, FieldError, Init, Method, Start},
    targets::{TargetRule, check_pattern},
};

impl Check {
    pub(super) fn adapter(&mut self, spec: &pb::AdapterSpec) -> Option<AdapterSpec> {
        let method = match pb::AdapterMethod::try_from(spec.method) {
            Ok(pb::AdapterMethod::Lora) => Some(Method::Lora),
            Ok(pb::AdapterMethod::Dora) => Some(Method::Dora),
            Ok(pb::AdapterMethod::Full) => Some(Method::Full),
            Ok(pb::AdapterMethod::Unspecified) | Err(_) => None,
        };
        let method = self.choice("adapter.method", method, spec.method, "lora, dora or full");
        let init = match pb::AdapterInit::try_from(spec.init) {
            Ok(pb::AdapterInit::Kaiming) => Some(Init::Kaiming),
            Ok(pb::AdapterInit::Gaussian) => Some(Init::Gaussian),
            Ok(pb::AdapterInit::Pissa) => Some(Init::Pissa),
            Ok(pb::AdapterInit::Olora) => Some(Init::Olora),
            Ok(pb::AdapterInit::Unspecified) | Err(_) => None,
        };
        let init = self.choice("adapter.init", init, spec.init, "kaiming, gaussian, pissa or olora");
        self.rule(spec.rank >= 1, "adapter.rank", || "is 0; it must be at least 1".to_owned());
        self.positive("adapter.alpha", spec.alpha);
        self.rule((0.0..1.0).contains(&spec.dropout), "adapter.dropout", || {
            format!("is {}; it must be 0 or above, and below 1", spec.dropout)
        });
        self.full(spec, method);
        self.names("adapter.modules_to_save", &spec.modules_to_save);
        self.names("adapter.layers_pattern", &spec.layers_pattern);
        self.rule(
            spec.layers_pattern.is_empty() || !spec.layers.is_empty(),
            "adapter.layers_pattern",
            || "is given without `adapter.layers`, whose module lists it names".to_owned(),
        );
        let start = spec.start.as_ref().and_then(|start| self.start(start));
        let plain = matches!(init, None | Some(Init::Kaiming));
        self.rule(start.is_none() || plain, "adapter.init", || {
            "is given beside `adapter.start`, which is the start already; keep one of them".to_owned()
        });
        let targets = self.targets("adapter.targets", &spec.targets);
        let exclude =
            if spec.exclude.is_empty() { None } else { self.targets("adapter.exclude", &spec.exclude) };
        self.rule(exclude != Some(TargetRule::AllLinear), "adapter.exclude", || {
            "is all-linear, which leaves nothing to train".to_owned()
        });
        self.rule(
            spec.layers.is_empty() || !matches!(targets, Some(TargetRule::Pattern(_))),
            "adapter.layers",
            || {
                "cannot be combined with a regular expression in `adapter.targets`; put the layers into it"
                    .to_owned()
            },
        );
        self.range("adapter.layers", spec.layers.len(), 0, MAX_LIST);
        Some(AdapterSpec {
            method: method?,
            init: init?,
            rank: spec.rank,
            alpha: spec.alpha,
            targets: targets?,
            exclude,
            layers: spec.layers.clone(),
            rank_pattern: self.rank_pattern(&spec.rank_pattern),
            alpha_pattern: self.alpha_pattern(&spec.alpha_pattern),
            rslora: spec.rslora,
            dropout: spec.dropout,
            layers_pattern: spec.layers_pattern.clone(),
            modules_to_save: spec.modules_to_save.clone(),
            start,
        })
    }

    fn start(&mut self, start: &pb::AdapterRef) -> Option<Start> {
        if start.job.is_empty() {
            return self.source("adapter.start", &start.source, &start.sha256).map(Start::Folder);
        }
        self.rule(start.source.is_empty() && start.sha256.is_empty(), "adapter.start", || {
            format!("names both {} and a folder; keep one of them", start.job)
        });
        let named = start.job.strip_prefix("jobs/").is_some_and(|name| !name.trim().is_empty());
        self.rule(named, "adapter.start", || {
            format!("is {:?}; a job is named jobs/ID, or jobs/NAME within one file", start.job)
        });
        Some(Start::Job(start.job.clone()))
    }

    /// Full fine-tuning has no adapter, so nothing may be said of one.
    fn full(&mut self, spec: &pb::AdapterSpec, method: Option<Method>) {
        if method != Some(Method::Full) {
            return;
        }
        let init = spec.init != pb::AdapterInit::Kaiming as i32;
        for (given, field) in [
            (init, "init"),
            (spec.rslora, "rslora"),
            (spec.dropout != 0.0, "dropout"),
            (!spec.exclude.is_empty(), "exclude"),
            (!spec.layers.is_empty(), "layers"),
            (!spec.modules_to_save.is_empty(), "modules_to_save"),
            (!spec.rank_pattern.is_empty(), "rank_pattern"),
            (!spec.alpha_pattern.is_empty(), "alpha_pattern"),
            (spec.start.is_some(), "start"),
        ] {
            self.rule(!given, &format!("adapter.{field}"), || {
                "is given beside `adapter.method: full`, which trains every weight and has no adapter"
                    .to_owned()
            });
        }
    }

    /// A list of names of modules.
    fn names(&mut self, path: &str, names: &[String]) {
        self.range(path, names.len(), 0, MAX_LIST);
        self.rule(names.iter().all(|name| !name.is_empty()), path, || "has an empty name".to_owned());
    }

    fn targets(&mut self, path: &str, entries: &[String]) -> Option<TargetRule> {
        self.range(path, entries.len(), 0, MAX_LIST);
        TargetRule::parse(entries).map_err(|message| self.0.push(FieldError::new(path, message))).ok()
    }

    fn rank_pattern(&mut self, patterns: &[pb::RankPattern]) -> Vec<(String, u32)> {
        self.patterns("adapter.rank_pattern", patterns.iter().map(|p| p.pattern.as_str()));
        for p in patterns {
            let path = format!("adapter.rank_pattern.{}", p.pattern);
            self.rule(p.rank >= 1, &path, || "is 0; it must be at least 1".to_owned());
        }
        patterns.iter().map(|p| (p.pattern.clone(), p.rank)).collect()
    }

    fn alpha_pattern(&mut self, patterns: &[pb::AlphaPattern]) -> Vec<(String, f64)> {
        self.patterns("adapter.alpha_pattern", patterns.iter().map(|p| p.pattern.as_str()));
        for p in patterns {
            self.positive(&format!("adapter.alpha_pattern.{}", p.pattern), p.alpha);
        }
        patterns.iter().map(|p| (p.pattern.clone(), p.alpha)).collect()
    }

    fn patterns<'a>(&mut self, path: &str, patterns: impl Iterator<Item = &'a str>) {
        let mut seen = HashSet::new();
        for pattern in patterns {
            let path = format!("{path}.{pattern}");
            if let Err(message) = check_pattern(pattern) {
                self.0.push(FieldError::new(&path, message));
            }
            self.rule(seen.insert(pattern), &path, || "is given twice".to_owned());
        }
        self.range(path, seen.len(), 0, MAX_LIST);
    }
}
