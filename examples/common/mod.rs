//! What the examples share.

/// Causes may have several lines (a backtrace, a compiler's log): the first says what happened.
pub fn one_line(error: &anyhow::Error) -> String {
    let causes = error.chain().map(|cause| cause.to_string());
    let lines: Vec<String> = causes
        .map(|c| c.lines().next().unwrap_or_default().to_owned())
        .collect();
    lines.join(": ")
}
