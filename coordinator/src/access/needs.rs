//! What each call needs, by its service and its verb. What is not known here needs everything.

use super::Role;

/// What a caller must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Anybody, with or without a token: a probe has none.
    Nothing,
    /// Of this role or above.
    Role(Role),
}

/// What the call of a path (`/lorafleet.v1.Jobs/GetJob`) needs.
pub fn need(path: &str) -> Need {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return Need::Role(Role::Admin);
    };
    match service {
        "grpc.health.v1.Health" => Need::Nothing,
        "grpc.reflection.v1.ServerReflection" => Need::Role(Role::Viewer),
        "lorafleet.v1.Jobs" | "lorafleet.v1.Sweeps" | "lorafleet.v1.Artifacts" | "lorafleet.v1.Usage" => {
            Need::Role(by_verb(verb(method)))
        }
        "lorafleet.v1.Fleet" => Need::Role(match method {
            "ListWorkers" => Role::Viewer,
            "RegisterWorker" | "Attach" => Role::Operator,
            _ => Role::Admin,
        }),
        // Tenants, tokens, and what nobody has thought of here.
        _ => Need::Role(Role::Admin),
    }
}

/// Of services whose objects belong to tenants.
fn by_verb(verb: &str) -> Role {
    match verb {
        "Get" | "List" | "Watch" | "Explain" | "Stat" | "Download" => Role::Viewer,
        "Create" | "Submit" | "Cancel" | "Pause" | "Resume" | "Upload" | "Import" => Role::Submitter,
        _ => Role::Admin,
    }
}

/// The first word of `ListMetricPoints`.
fn verb(method: &str) -> &str {
    let end = method.char_indices().skip(1).find(|(_, letter)| letter.is_uppercase());
    end.map_or(method, |(end, _)| &method[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(service: &str, method: &str) -> Need {
        need(&format!("/lorafleet.v1.{service}/{method}"))
    }

    #[test]
    fn each_call_needs_its_role() {
        let table = [
            (Role::Viewer, "Jobs", "GetJob ListJobs WatchJob ExplainJob ListAttempts ListEvents"),
            (Role::Viewer, "Jobs", "ListCheckpoints ListMetricPoints"),
            (Role::Submitter, "Jobs", "CreateJob CreateJobs CancelJob PauseJob ResumeJob"),
            (Role::Viewer, "Sweeps", "GetSweep ListSweeps ListSweepChildren"),
            (Role::Submitter, "Sweeps", "CreateSweep CancelSweep"),
            (Role::Viewer, "Artifacts", "StatArtifact DownloadFile"),
            (Role::Submitter, "Artifacts", "UploadFile ImportData"),
            (Role::Viewer, "Fleet", "ListWorkers"),
            (Role::Operator, "Fleet", "RegisterWorker Attach"),
            (Role::Admin, "Tenants", "CreateTenant GetTenant ListTenants UpdateTenant DeleteTenant"),
            (Role::Admin, "Tenants", "CreateToken ListTokens RevokeToken"),
        ];
        for (role, service, methods) in table {
            for method in methods.split(' ') {
                assert_eq!(of(service, method), Need::Role(role), "{service}/{method}");
            }
        }
    }

    #[test]
    fn what_is_not_known_needs_everything() {
        let admin = Need::Role(Role::Admin);
        for (service, method) in
            [("Jobs", "PurgeJobs"), ("Jobs", ""), ("Fleet", "EvictWorker"), ("Other", "GetX")]
        {
            assert_eq!(of(service, method), admin, "{service}/{method}");
        }
        for path in ["", "/", "/x", "GetJob", "/lorafleet.v2.Jobs/GetJob", "/lorafleet.v1.Jobs/Getaway"] {
            assert_eq!(need(path), admin, "{path}");
        }
    }

    #[test]
    fn a_probe_needs_nothing() {
        assert_eq!(need("/grpc.health.v1.Health/Check"), Need::Nothing);
        assert_eq!(need("/grpc.health.v1.Health/Watch"), Need::Nothing);
    }
}
