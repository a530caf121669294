//! The Kustomize base and its overlays: strict, consistent with themselves, with the programs and with docs/deploy.md.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, Secret, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Known, list, listens, object, read, root, text, yaml};

const BASE: &str = "deploy/kustomize/base";
const OVERLAYS: [&str; 2] = ["deploy/kustomize/overlays/trial", "deploy/kustomize/overlays/large-workers"];

/// What `kubectl kustomize` makes of a folder.
fn render(folder: &str) -> Result<Vec<Value>> {
    let copy = tempfile::TempDir::new()?;
    let folder = if is_old()? { old_words(folder, copy.path())? } else { root().join(folder) };
    let output = kubectl(&["kustomize", &folder.display().to_string()])?;
    Ok(serde_saphyr::from_multiple(&output)?)
}

fn kubectl(args: &[&str]) -> Result<String> {
    let output = Command::new("kubectl").args(args).output().context(
        "kubectl is missing; install it: apt-get install kubernetes-client (elsewhere: kubernetes.io/docs/tasks/tools)",
    )?;
    ensure!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Debian 12's kubectl is 1.20, whose Kustomize (2.0) calls two things otherwise; every kubectl since 1.21 does not.
fn is_old() -> Result<bool> {
    let version: Value = serde_json::from_str(&kubectl(&["version", "--client", "-o", "json"])?)?;
    let minor = text(&version, "/clientVersion/minor").trim_end_matches('+').parse::<u32>()?;
    Ok(minor < 21)
}

/// A copy of all that is in deploy/kustomize, in the words of Kustomize 2.0.
fn old_words(folder: &str, to: &Path) -> Result<std::path::PathBuf> {
    for folder in OVERLAYS.iter().chain([&BASE]) {
        fs::create_dir_all(to.join(folder))?;
        for file in fs::read_dir(root().join(folder))? {
            let file = file?;
            fs::copy(file.path(), to.join(folder).join(file.file_name()))?;
        }
        let file = format!("{folder}/kustomization.yaml");
        let mut kustomization = yaml(&file)?;
        let (files, folders): (Vec<Value>, Vec<Value>) = list(&kustomization, "/resources")
            .cloned()
            .partition(|path| path.as_str().is_some_and(|p| p.ends_with(".yaml")));
        let patches: Vec<Value> =
            list(&kustomization, "/patches").map(|patch| patch["path"].clone()).collect();
        let fields = kustomization.as_object_mut().context("a kustomization that is no map")?;
        fields.remove("patches");
        fields.insert("resources".into(), json!(files));
        fields.insert("bases".into(), json!(folders));
        fields.insert("patchesStrategicMerge".into(), json!(patches));
        fs::write(to.join(&file), kustomization.to_string())?;
    }
    Ok(to.join(folder))
}

/// The type takes the object and gives all of it back: it has no field that the type does not know.
fn strict<T: DeserializeOwned + Serialize>(value: &Value) -> Result<()> {
    let typed: T = serde_json::from_value(value.clone())?;
    kept(value, &serde_json::to_value(typed)?, "")
}

fn kept(written: &Value, typed: &Value, path: &str) -> Result<()> {
    match (written, typed) {
        (Value::Object(written), Value::Object(typed)) => written.iter().try_for_each(|(key, value)| {
            let path = format!("{path}/{key}");
            // An empty map or list is left out when it is written again.
            let empty = value == &json!({}) || value == &json!([]);
            match typed.get(key) {
                Some(typed) => kept(value, typed, &path),
                None if empty && !["emptyDir", "resources"].contains(&key.as_str()) => Ok(()),
                None => bail!("{path} is no field of its object"),
            }
        }),
        (Value::Array(written), Value::Array(typed)) if written.len() == typed.len() => written
            .iter()
            .zip(typed)
            .enumerate()
            .try_for_each(|(i, (w, t))| kept(w, t, &format!("{path}/{i}"))),
        _ => {
            ensure!(written == typed, "{path}: {written} became {typed}");
            Ok(())
        }
    }
}

fn strictly_typed(value: &Value) -> Result<()> {
    match (text(value, "/apiVersion"), text(value, "/kind")) {
        ("v1", "Namespace") => strict::<Namespace>(value),
        ("v1", "Service") => strict::<Service>(value),
        ("v1", "ServiceAccount") => strict::<ServiceAccount>(value),
        ("v1", "ConfigMap") => strict::<ConfigMap>(value),
        ("v1", "Secret") => strict::<Secret>(value),
        ("apps/v1", "Deployment") => strict::<Deployment>(value),
        ("apps/v1", "StatefulSet") => strict::<StatefulSet>(value),
        ("batch/v1", "Job") => strict::<Job>(value),
        ("policy/v1", "PodDisruptionBudget") => strict::<PodDisruptionBudget>(value),
        (version, kind) => bail!("an object of a kind that this test does not know: {version} {kind}"),
    }
}

/// Every rendered object of the base and the overlays.
fn each_rendering(check: impl Fn(&str, &[Value]) -> Result<()>) -> Result<()> {
    for folder in OVERLAYS.iter().chain([&BASE]) {
        let objects = render(folder)?;
        check(folder, &objects).with_context(|| (*folder).to_owned())?;
    }
    Ok(())
}

fn name(object: &Value) -> String {
    format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"))
}

/// Objects that make pods.
fn makers(objects: &[Value]) -> impl Iterator<Item = &Value> {
    objects.iter().filter(|object| object.pointer("/spec/template/spec/containers").is_some())
}

fn containers(maker: &Value) -> impl Iterator<Item = &Value> {
    list(maker, "/spec/template/spec/containers")
}

#[test]
fn every_object_is_one_of_kubernetes() -> Result<()> {
    each_rendering(|_, objects| {
        ensure!(objects.len() >= 9, "only {} objects", objects.len());
        objects.iter().try_for_each(|object| strictly_typed(object).with_context(|| name(object)))
    })?;
    // The check itself notices.
    let wrong = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"selectors": {"a": "b"}}});
    assert!(strictly_typed(&wrong).is_err(), "an unknown field was taken");
    Ok(())
}

#[test]
fn selectors_find_pods_and_services_their_ports() -> Result<()> {
    each_rendering(|_, objects| {
        for object in objects {
            let selector = match text(object, "/kind") {
                "Service" => "/spec/selector",
                "Deployment" | "StatefulSet" | "PodDisruptionBudget" => "/spec/selector/matchLabels",
                _ => continue,
            };
            let wanted: Vec<_> = object_pairs(object, selector);
            let found = makers(objects).find(|maker| {
                let labels = object_pairs(maker, "/spec/template/metadata/labels");
                !wanted.is_empty() && wanted.iter().all(|pair| labels.contains(pair))
            });
            let maker = found.with_context(|| format!("{} selects no pod", name(object)))?;
            let ports: Vec<&str> =
                containers(maker).flat_map(|c| list(c, "/ports")).map(|port| text(port, "/name")).collect();
            for port in list(object, "/spec/ports") {
                let target = text(port, "/targetPort");
                ensure!(ports.contains(&target), "{}: no port {target} in {}", name(object), name(maker));
            }
        }
        let services: Vec<&str> =
            objects.iter().filter(|o| o["kind"] == "Service").map(|o| text(o, "/metadata/name")).collect();
        for set in objects.iter().filter(|o| o["kind"] == "StatefulSet") {
            ensure!(services.contains(&text(set, "/spec/serviceName")), "{} has no Service", name(set));
        }
        Ok(())
    })
}

fn object_pairs<'a>(value: &'a Value, pointer: &str) -> Vec<(&'a str, &'a Value)> {
    object(value, pointer).collect()
}

#[test]
fn flags_variables_and_ports_are_those_of_the_programs() -> Result<()> {
    each_rendering(|_, objects| {
        let mut programs = 0;
        for (maker, container) in makers(objects).flat_map(|maker| containers(maker).map(move |c| (maker, c)))
        {
            let Some(known) = Known::by_image(text(container, "/image"))? else { continue };
            programs += 1;
            let flags = known.flags(list(container, "/args"))?;
            list(container, "/env").try_for_each(|variable| known.variable(text(variable, "/name")))?;
            let said: BTreeSet<i64> =
                list(container, "/ports").filter_map(|port| port["containerPort"].as_i64()).collect();
            ensure!(listens(&flags)? == said, "{}: ports {said:?} are not those of {flags:?}", name(maker));
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                let port =
                    container[probe]["grpc"]["port"].as_i64().with_context(|| format!("no {probe}"))?;
                ensure!(said.contains(&port), "{}: {probe} asks port {port}", name(maker));
                let service = if probe == "readinessProbe" { "readiness" } else { "liveness" };
                ensure!(container[probe]["grpc"]["service"] == service, "{probe} does not ask for {service}");
            }
            for (flag, value) in flags {
                if flag == "--coordinator" {
                    let host = value.trim_start_matches("http://").split(':').next().unwrap_or_default();
                    let there =
                        objects.iter().any(|o| o["kind"] == "Service" && o["metadata"]["name"] == host);
                    ensure!(there, "--coordinator={value} is no Service");
                }
            }
        }
        ensure!(programs == 2, "{programs} of our programs run");
        Ok(())
    })
}

#[test]
fn a_worker_has_the_time_that_it_may_take_to_leave() -> Result<()> {
    each_rendering(|_, objects| {
        let worker =
            makers(objects).find(|o| o["metadata"]["name"] == "lorafleet-worker").context("no worker")?;
        let container = containers(worker).next().context("no container")?;
        let limit =
            list(container, "/args").filter_map(Value::as_str).find_map(|a| a.strip_prefix("--drain-limit="));
        let minutes: i64 =
            limit.and_then(|l| l.strip_suffix('m')).context("no --drain-limit in minutes")?.parse()?;
        let grace =
            worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        ensure!(grace > minutes * 60, "killed after {grace} s while it may take {minutes} minutes");
        Ok(())
    })
}

#[test]
fn pods_are_confined_and_limited() -> Result<()> {
    each_rendering(|_, objects| {
        for maker in makers(objects) {
            let pod = &maker["spec"]["template"]["spec"];
            ensure!(pod["securityContext"]["runAsNonRoot"] == true, "{} may run as root", name(maker));
            ensure!(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "{}", name(maker));
            ensure!(pod["automountServiceAccountToken"] == false, "{} has a token", name(maker));
            for container in containers(maker) {
                let context = &container["securityContext"];
                ensure!(context["readOnlyRootFilesystem"] == true, "{} writes its image", name(maker));
                ensure!(context["allowPrivilegeEscalation"] == false, "{}", name(maker));
                ensure!(context["capabilities"]["drop"] == json!(["ALL"]), "{}", name(maker));
                ensure!(
                    container.pointer("/resources/requests/cpu").is_some(),
                    "{} requests no cpu",
                    name(maker)
                );
                ensure!(
                    container.pointer("/resources/limits/memory").is_some(),
                    "{} has no limit",
                    name(maker)
                );
                let tag = text(container, "/image").rsplit_once(':').map_or("latest", |(_, tag)| tag);
                ensure!(tag != "latest", "{} has no fixed image", name(maker));
            }
        }
        Ok(())
    })
}

/// (kind of object, name, key; "" for the whole object) that a container's environment comes from.
fn references(container: &Value) -> Vec<(&'static str, &str, &str)> {
    let keys = list(container, "/env").flat_map(|variable| {
        [("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")].into_iter().filter_map(
            move |(kind, field)| {
                let from = variable.get("valueFrom")?.get(field)?;
                Some((kind, text(from, "/name"), text(from, "/key")))
            },
        )
    });
    let whole = list(container, "/envFrom").map(|from| match from.get("secretRef") {
        Some(secret) => ("Secret", text(secret, "/name"), ""),
        None => ("ConfigMap", text(from, "/configMapRef/name"), ""),
    });
    keys.chain(whole).collect()
}

#[test]
fn what_is_referred_to_is_documented_and_in_the_trial_there() -> Result<()> {
    let page = read("docs/deploy.md")?;
    each_rendering(|folder, objects| {
        for (kind, name, key) in makers(objects).flat_map(containers).flat_map(references) {
            ensure!(page.contains(&format!("`{name}`")), "docs/deploy.md does not say what {kind} {name} is");
            ensure!(
                key.is_empty() || page.contains(&format!("`{key}`")),
                "docs/deploy.md: no `{key}` of {name}"
            );
            let found = objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
            if let Some(found) = found {
                let has = |data: &str| found[data].get(key).is_some();
                let optional = key == "direct-url";
                ensure!(
                    key.is_empty() || optional || has("data") || has("stringData"),
                    "{name} has no {key}"
                );
            } else {
                ensure!(!folder.ends_with("trial"), "{kind} {name} is missing");
            }
        }
        Ok(())
    })?;
    for folder in OVERLAYS {
        ensure!(page.contains(folder), "docs/deploy.md does not name {folder}");
    }
    Ok(())
}
