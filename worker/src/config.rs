//! The worker's flags, each with its environment variable; loopback by default.

use std::{fs, net::SocketAddr, path::PathBuf, thread::available_parallelism, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use lorafleet_proto::bearer::Bearer;
use lorafleet_telemetry::LogFormat;

use crate::collective::tcp::TcpOptions;

/// Trains the jobs of a lorafleet coordinator, alone or in gangs.
#[derive(Debug, Parser)]
#[command(name = "lorafleet-worker", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What else to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What a worker does besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answers a prompt with a base and, if given, an adapter of this machine.
    Generate(GenerateArgs),
    /// Merges an adapter of this machine into its base, as a new Hugging Face folder.
    Merge(MergeArgs),
    /// Prints the labels of texts, by a classifier of this machine.
    Classify(ClassifyArgs),
    /// Prints the logits of some tokens as JSON, to compare with other programs.
    Logits(LogitsArgs),
}

/// Where training computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// How to serve.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// The coordinator's URL.
    #[arg(long, env = "LORAFLEET_COORDINATOR", default_value = "http://127.0.0.1:7400", value_name = "URL")]
    pub coordinator: String,

    /// A token of the role operator, where the coordinator asks for one.
    #[arg(long, env = "LORAFLEET_TOKEN", hide_env_values = true, value_name = "TOKEN", default_value = "",
          hide_default_value = true, value_parser = Bearer::new)]
    pub token: Bearer,

    /// The worker's name, unique in the fleet; keep it over restarts. Default: the host's name and a number.
    #[arg(long, env = "LORAFLEET_WORKER_NAME")]
    pub name: Option<String>,

    /// Threads that compute. Default: the machine's cores, divided by --workers-on-machine.
    #[arg(long, env = "LORAFLEET_WORKER_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// How many workers share this machine.
    #[arg(long, env = "LORAFLEET_WORKERS_ON_MACHINE", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers_on_machine: u16,

    /// Where training computes. This build knows the CPU only.
    #[arg(long, env = "LORAFLEET_WORKER_DEVICE", value_enum, default_value = "cpu")]
    pub device: Device,

    /// Where peers connect; port 0 chooses a free one.
    #[arg(
        long,
        visible_alias = "listen",
        env = "LORAFLEET_COLLECTIVE_LISTEN",
        default_value = "127.0.0.1:0",
        value_name = "ADDRESS"
    )]
    pub collective_listen: SocketAddr,

    /// host:port, or host alone, by which peers reach this worker. Default: the address that it listens on.
    #[arg(
        long,
        visible_alias = "advertise",
        env = "LORAFLEET_COLLECTIVE_ADVERTISE",
        value_name = "HOST[:PORT]"
    )]
    pub collective_advertise: Option<String>,

    /// A peer without a sign of life for this long is lost.
    #[arg(long, env = "LORAFLEET_PEER_SILENCE", default_value = "5s", value_parser = humantime::parse_duration)]
    pub peer_silence: Duration,

    /// A peer that is alive but takes no part in a sum for this long is lost: longer than any step.
    #[arg(long, env = "LORAFLEET_STEP_LIMIT", default_value = "30m", value_parser = humantime::parse_duration)]
    pub step_limit: Duration,

    /// A member that waits for its gang's next generation, and has no line to the coordinator for this long, writes a
    /// checkpoint and gives up.
    #[arg(long, env = "LORAFLEET_ALONE_LIMIT", default_value = "10m", value_parser = humantime::parse_duration)]
    pub alone_limit: Duration,

    /// After SIGTERM the run may take this long to reach a step boundary and write its checkpoint.
    #[arg(long, env = "LORAFLEET_DRAIN_LIMIT", default_value = "10m", value_parser = humantime::parse_duration)]
    pub drain_limit: Duration,

    /// Keeps bases and data sets by their digest; workers may share it. Default: lorafleet/worker in the user's cache.
    #[arg(long, env = "LORAFLEET_WORKER_CACHE", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,

    /// The object store's root URL, where it differs from what the coordinator says.
    #[arg(long, env = "LORAFLEET_WORKER_STORE", hide_env_values = true, value_name = "URL")]
    pub store: Option<String>,

    /// Where Prometheus finds the metrics at /metrics; port 0 chooses a free one.
    #[arg(
        long,
        env = "LORAFLEET_WORKER_METRICS_LISTEN",
        default_value = "127.0.0.1:0",
        value_name = "ADDRESS"
    )]
    pub metrics_listen: SocketAddr,

    /// Where gRPC health is asked for, as `liveness` and `readiness`; port 0 chooses a free one.
    #[arg(
        long,
        env = "LORAFLEET_WORKER_HEALTH_LISTEN",
        default_value = "127.0.0.1:0",
        value_name = "ADDRESS"
    )]
    pub health_listen: SocketAddr,

    /// A label that jobs can ask for in `queue.selector`, such as zone=a; may be repeated. Every worker has `device`.
    #[arg(long = "label", env = "LORAFLEET_WORKER_LABELS", value_delimiter = ',', value_parser = parse_label,
          value_name = "NAME=VALUE")]
    pub labels: Vec<(String, String)>,

    /// How logs look: `human` or `json`.
    #[arg(long, env = "LORAFLEET_LOG_FORMAT", default_value = "human")]
    pub log_format: LogFormat,
}

/// What to generate from.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// The base's folder.
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// The adapter's folder, in PEFT's format; without it the base answers.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// What to answer, as a user's turn.
    #[arg(long)]
    pub prompt: String,
    /// Tokens of the answer at most.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: u32,
    /// 0: always the likeliest token; above, the more random.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    pub temperature: f64,
    /// Draw from the likeliest tokens that have this probability together.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads that compute. Default: the machine's cores.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Print JSON: prompt and answer.
    #[arg(long)]
    pub json: bool,
}

/// What to merge.
#[derive(Clone, Debug, Args)]
pub struct MergeArgs {
    /// The base's folder.
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// The adapter's folder, in PEFT's format.
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// The folder to write; it must not exist.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Number type of all weights. Default: each keeps its own.
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<MergeDtype>,
    /// Threads that compute. Default: the machine's cores.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Number types that a merge can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MergeDtype {
    /// 32-bit floating point.
    F32,
    /// IEEE 16-bit floating point.
    F16,
    /// bfloat16.
    Bf16,
}

/// What to classify.
#[derive(Clone, Debug, Args)]
pub struct ClassifyArgs {
    /// The base's folder.
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// The adapter's folder, in PEFT's format; without it the base must be a classifier.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A text; may be given several times.
    #[arg(long, required = true)]
    pub text: Vec<String>,
    /// The second text of each pair.
    #[arg(long)]
    pub second: Option<String>,
    /// Threads that compute. Default: the machine's cores.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Print a line of JSON for each text.
    #[arg(long)]
    pub json: bool,
}

/// What to compute logits of.
#[derive(Clone, Debug, Args)]
pub struct LogitsArgs {
    /// The base's folder.
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// The adapter's folder, in PEFT's format; without it the base's logits are printed.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Token ids, with commas between.
    #[arg(long, value_delimiter = ',', required = true, value_name = "IDS")]
    pub tokens: Vec<u32>,
}

impl ServeArgs {
    /// What one field alone cannot tell.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.device == Device::Cuda {
            return Err("--device cuda: this build has no CUDA support; train with --device cpu".into());
        }
        if self.collective_listen.ip().is_unspecified() && self.collective_advertise.is_none() {
            return Err(format!(
                "--collective-listen {} is no address that peers can use: name this host with --collective-advertise",
                self.collective_listen
            ));
        }
        if self.peer_silence < Duration::from_secs(2) {
            return Err("--peer-silence must be at least 2s: peers ping every second".into());
        }
        Ok(())
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        let share = || (cores() / usize::from(self.workers_on_machine)).max(1);
        self.threads.map_or_else(share, usize::from)
    }

    /// The worker's name.
    pub fn name(&self) -> String {
        let default = || format!("{}-{}", host_name(), std::process::id());
        self.name.clone().unwrap_or_else(default)
    }

    /// How peers reach the socket that listens on `local`.
    pub fn advertised(&self, local: SocketAddr) -> String {
        match &self.collective_advertise {
            None => local.to_string(),
            Some(host) if has_port(host) => host.clone(),
            Some(host) => format!("{host}:{}", local.port()),
        }
    }

    /// The cache's folder.
    ///
    /// # Errors
    /// The user has no cache folder.
    pub fn cache_dir(&self) -> Result<PathBuf, String> {
        if let Some(dir) = &self.cache_dir {
            return Ok(dir.clone());
        }
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        let cache = cache.ok_or("neither XDG_CACHE_HOME nor HOME is set: name a folder with --cache-dir")?;
        Ok(cache.join("lorafleet").join("worker"))
    }

    /// The gang's deadlines.
    pub fn tcp(&self) -> TcpOptions {
        TcpOptions {
            read: self.step_limit,
            write: self.step_limit,
            silence: self.peer_silence,
            ..TcpOptions::default()
        }
    }
}

/// The machine's cores, as far as this process may use them.
pub fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Reads `NAME=VALUE`.
fn parse_label(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE, as in zone=a"))?;
    for part in [name, value] {
        if let Some(wrong) = lorafleet_spec::check_label(part) {
            return Err(format!("a part of it {wrong}"));
        }
    }
    if name == "device" {
        return Err("every worker has the label `device` by itself; choose another name".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

fn has_port(host: &str) -> bool {
    // "[::1]" has colons but no port.
    host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

/// The host's name, in what a worker's name may hold.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    let name: String = name.trim().chars().filter(allowed).take(200).collect();
    if name.is_empty() { "worker".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> ServeArgs {
        let cli = Cli::try_parse_from(["lorafleet-worker"].iter().chain(more)).unwrap();
        assert!(cli.command.is_none());
        cli.serve
    }

    #[test]
    fn defaults_work_on_one_machine() {
        let args = parse(&[]);
        assert_eq!(args.check(), Ok(()));
        assert!(
            [args.collective_listen, args.metrics_listen, args.health_listen]
                .iter()
                .all(|a| a.ip().is_loopback())
        );
        assert_eq!(args.threads(), cores());
        assert!(parse(&["--workers-on-machine", "1000"]).threads() == 1);
        assert_eq!(parse(&["--threads", "3", "--workers-on-machine", "2"]).threads(), 3);
        assert!(!parse(&["--name", "w-1"]).name().is_empty());
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_do() {
        let error = parse(&["--device", "cuda"]).check().unwrap_err();
        assert!(error.contains("no CUDA"), "{error}");
        let error = parse(&["--listen", "0.0.0.0:7000"]).check().unwrap_err();
        assert!(error.contains("--collective-advertise"), "{error}");
        assert!(parse(&["--peer-silence", "1s"]).check().is_err());
    }

    #[test]
    fn labels_are_names_with_values() {
        let args = parse(&["--label", "zone=a", "--label", "disk=fast,rack=7"]);
        let labels: Vec<String> = args.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(labels, ["zone=a", "disk=fast", "rack=7"]);
        for wrong in ["zone", "zone=", "device=h200", "zone=a b"] {
            assert!(Cli::try_parse_from(["lorafleet-worker", "--label", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn peers_are_told_a_whole_address() {
        let local: SocketAddr = "0.0.0.0:7000".parse().unwrap();
        assert_eq!(parse(&[]).advertised(local), "0.0.0.0:7000");
        assert_eq!(parse(&["--advertise", "gpu-1"]).advertised(local), "gpu-1:7000");
        assert_eq!(parse(&["--advertise", "gpu-1:80"]).advertised(local), "gpu-1:80");
        assert_eq!(parse(&["--advertise", "[::1]"]).advertised(local), "[::1]:7000");
    }

    #[test]
    fn generate_is_a_command() {
        let cli =
            Cli::try_parse_from(["lorafleet-worker", "generate", "--base", "b", "--prompt", "p"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Generate(_))));
        let line =
            ["lorafleet-worker", "merge", "--base", "b", "--adapter", "a", "--out", "o", "--dtype", "bf16"];
        let Some(Command::Merge(args)) = Cli::try_parse_from(line).unwrap().command else { panic!("merge") };
        assert_eq!(args.dtype, Some(MergeDtype::Bf16));
    }
}
