//! Progress of files that go to or come from the store.

use std::{io::IsTerminal as _, sync::Arc, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lorafleet::Progress;

/// A bar on the terminal for one file; nothing is drawn where there is no terminal.
pub struct Transfer {
    bar: ProgressBar,
}

impl Transfer {
    /// A bar for `size` bytes; 0 when the size is not known yet.
    pub fn new(what: &str, size: u64) -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar =
            ProgressBar::with_draw_target((size > 0).then_some(size), target).with_message(what.to_owned());
        let template = match size {
            0 => "  {msg}  {decimal_bytes}",
            _ => "  {msg}  [{bar:30}] {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    /// Where the transfer reports to.
    pub fn progress(&self) -> Progress {
        let bar = self.bar.clone();
        Arc::new(move |sent| bar.set_position(sent))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Progress of the files of one folder, each drawn in turn by its name.
pub fn by_name() -> impl Fn(&str, u64) -> Progress {
    let shown = std::cell::RefCell::new(None);
    move |name, size| {
        let transfer = Transfer::new(name, size);
        let progress = transfer.progress();
        // The bar before it is cleared when it is dropped here.
        shown.replace(Some(transfer));
        progress
    }
}
