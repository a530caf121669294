//! `lorafleet-worker generate`: one prompt, answered by a base of this machine with or without an adapter.

use anyhow::Context as _;
use lorafleet_lora::{
    adapter::Adapter,
    base::Base,
    generate::{GenerateOptions, generate},
};
use lorafleet_spec::data::Tokenizer;

use crate::config::{GenerateArgs, cores};

/// Prints the answer.
///
/// # Errors
/// A folder is no base or adapter, or the prompt cannot be answered.
pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let threads = args.threads.map_or_else(cores, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("start the threads")?;
    let answer = pool.install(|| answer(args))?;
    if args.json {
        println!("{}", serde_json::json!({ "prompt": args.prompt, "answer": answer }));
    } else {
        println!("{answer}");
    }
    Ok(())
}

fn answer(args: &GenerateArgs) -> anyhow::Result<String> {
    let of_base = || format!("the base {}", args.base.display());
    let base = Base::load(&args.base).with_context(of_base)?;
    let tokenizer = Tokenizer::load(&args.base).with_context(of_base)?;
    let load = |dir: &std::path::PathBuf| {
        Adapter::load(dir, base.shape(), &|name| base.tensor(name))
            .with_context(|| format!("the adapter {}", dir.display()))
    };
    let adapter = args.adapter.as_ref().map(load).transpose()?;
    let prompt = tokenizer.encode_prompt(&args.prompt).context("the prompt")?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens as usize,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop: tokenizer.stop_ids().to_vec(),
    };
    let tokens = generate(&base, adapter.as_ref(), &prompt, &options).context("the prompt")?;
    Ok(tokenizer.decode(&tokens)?)
}
