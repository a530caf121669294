//! The images, the compose file and the scrape config agree with each other and with the programs.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Known, list, listens, object, read, root, text, yaml};

const COMPOSE: &str = "deploy/compose.yaml";
const DOCKERFILE: &str = "deploy/docker/Dockerfile";

/// Names by which a service is found in its network.
fn names<'a>(name: &'a str, service: &'a Value) -> Vec<&'a str> {
    let aliases = list(service, "/networks/default/aliases").filter_map(Value::as_str);
    std::iter::once(name).chain(aliases).collect()
}

#[test]
fn compose_says_only_what_the_programs_know() -> Result<()> {
    let compose = yaml(COMPOSE)?;
    let all: Vec<(&str, &Value)> = object(&compose, "/services").collect();
    let found = |name: &str| all.iter().any(|(service, value)| names(service, value).contains(&name));
    let mut programs = 0;
    for (name, service) in &all {
        for (needed, _) in object(service, "/depends_on") {
            ensure!(found(needed), "{name} waits for {needed}, which is not there");
        }
        for mount in
            list(service, "/volumes").filter_map(Value::as_str).filter(|mount| mount.starts_with("./"))
        {
            let file = mount.split(':').next().unwrap_or_default();
            ensure!(root().join("deploy").join(file).exists(), "{name} mounts {file}, which is not there");
        }
        let image = text(service, "/image");
        ensure!(image.contains(':') && !image.ends_with(":latest"), "{name}: {image} is no fixed image");
        let Some(known) = Known::by_image(image)? else { continue };
        programs += 1;
        let flags = known.flags(list(service, "/command"))?;
        ensure!(!listens(&flags)?.is_empty(), "{name} listens nowhere");
        object(service, "/environment").try_for_each(|(variable, _)| known.variable(variable))?;
        for (_, value) in flags.iter().filter(|(flag, _)| *flag == "--coordinator") {
            let host = value.trim_start_matches("http://").split(':').next().unwrap_or_default();
            ensure!(found(host), "{name}: --coordinator={value}");
        }
        let target = format!(" AS {}\n", text(service, "/build/target"));
        ensure!(read(DOCKERFILE)?.contains(&target), "{name} builds a target that {DOCKERFILE} lacks");
    }
    ensure!(programs == 3, "{programs} of our programs run");
    Ok(())
}

#[test]
fn prometheus_looks_where_the_programs_serve_metrics() -> Result<()> {
    let (compose, config) = (yaml(COMPOSE)?, yaml("deploy/prometheus/prometheus.yml")?);
    let mut looked = 0;
    for lookup in list(&config, "/scrape_configs").flat_map(|job| list(job, "/dns_sd_configs")) {
        for wanted in list(lookup, "/names").filter_map(Value::as_str) {
            let services = object(&compose, "/services")
                .filter(|(name, service)| names(name, service).contains(&wanted));
            for (name, service) in services {
                looked += 1;
                let flag = format!("--metrics-listen=0.0.0.0:{}", lookup["port"]);
                let there = list(service, "/command").any(|argument| argument == flag.as_str());
                ensure!(there, "{name} does not run with {flag}");
            }
        }
    }
    ensure!(looked == 3, "Prometheus finds {looked} of three processes");
    Ok(())
}

#[test]
fn images_hold_programs_that_exist_and_run_as_nobody() -> Result<()> {
    let dockerfile = read(DOCKERFILE)?;
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).context("no USER")?;
    let id: u32 = user
        .split(':')
        .next()
        .unwrap_or_default()
        .parse()
        .context("USER must be a number: Kubernetes checks it")?;
    ensure!(id != 0, "the images run as root");
    let words: Vec<&str> = dockerfile.split_whitespace().collect();
    let packages: Vec<&str> = words.windows(2).filter(|pair| pair[0] == "-p").map(|pair| pair[1]).collect();
    ensure!(packages.len() == 3, "the build names {packages:?}");
    for package in packages {
        let named = ["coordinator", "worker", "client"].map(|folder| read(&format!("{folder}/Cargo.toml")));
        let line = format!("name = \"{package}\"\nversion");
        ensure!(
            named.iter().flatten().any(|manifest| manifest.contains(&line)),
            "there is no package {package}"
        );
    }
    for program in dockerfile.lines().filter_map(|line| line.strip_prefix("ENTRYPOINT [\"/usr/local/bin/")) {
        lorafleet_tests::process::program(program.trim_end_matches("\"]"))?;
    }
    // Cargo wants every member of the workspace, and the build its schema and its queries.
    let context = read("deploy/docker/Dockerfile.dockerignore")?;
    let manifest = read("Cargo.toml")?;
    let members = manifest
        .split_once("members = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .context("no members")?
        .0;
    let members =
        members.split(',').map(|member| member.trim().trim_matches('"')).filter(|member| !member.is_empty());
    for needed in members.chain(["Cargo.toml", "Cargo.lock", ".sqlx", "migrations"]) {
        ensure!(context.lines().any(|line| line == format!("!{needed}")), "the build cannot see {needed}");
    }
    Ok(())
}
