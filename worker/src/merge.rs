//! `lorafleet-worker merge`: a base with an adapter merged into it, as a new Hugging Face folder.

use std::{io::IsTerminal as _, ops::ControlFlow};

use anyhow::Context as _;
use lorafleet_lora::adapter::merge::{Merged, Progress, merge};
use lorafleet_spec::base::Dtype;

use crate::config::{MergeArgs, MergeDtype, cores};

/// Writes the folder, tells how far it is, and at the end what it did.
///
/// # Errors
/// A folder is no base or adapter, they do not fit, or the folder to write exists or cannot be written.
pub fn run(args: &MergeArgs) -> anyhow::Result<()> {
    let threads = args.threads.map_or_else(cores, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("start the threads")?;
    let dtype = args.dtype.map(|dtype| match dtype {
        MergeDtype::F32 => Dtype::F32,
        MergeDtype::F16 => Dtype::F16,
        MergeDtype::Bf16 => Dtype::Bf16,
    });
    let mut bar = Bar::default();
    let mut show = |progress: Progress<'_>| {
        bar.show(&progress);
        ControlFlow::Continue(())
    };
    let merged = pool.install(|| merge(&args.base, &args.adapter, &args.out, dtype, &mut show))?;
    bar.end();
    let Merged { changed, copied, untied, .. } = merged;
    println!("{}: {changed} tensors merged, {copied} copied", args.out.display());
    if untied {
        println!(
            "note: the base's output head is its token embedding, and the adapter changes one alone; here they are two \
             tensors (tie_word_embeddings: false)"
        );
    }
    Ok(())
}

/// One line that is written over: in a terminal at every percent, elsewhere a line at every tenth.
#[derive(Default)]
struct Bar {
    shown: Option<u64>,
}

impl Bar {
    fn show(&mut self, progress: &Progress<'_>) {
        let terminal = std::io::stderr().is_terminal();
        let percent = progress.done * 100 / progress.total.max(1);
        let step = if terminal { percent } else { percent / 10 * 10 };
        if self.shown == Some(step) {
            return;
        }
        self.shown = Some(step);
        if terminal {
            eprint!("\r\x1b[K{percent:3}% {}", progress.tensor);
        } else {
            eprintln!("{step:3}%");
        }
    }

    fn end(&self) {
        if std::io::stderr().is_terminal() && self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
