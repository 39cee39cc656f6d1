//! The example program, its sampler on the stand-in.

use crate::standin::{Layout, place, skip, text};
use std::process::Command;

#[test]
fn writes_the_cpus_text() {
    let Some(place) = place() else { return };
    let me = std::env::current_exe().expect("a path");
    let profile = me.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let program = profile.join("examples/qwen2-generate");
    if !program.exists() {
        return skip("the example is not built");
    }
    // With min-p, the CPU's tokens are a Sampler's too, not Candle's.
    let run = |device, setup: &[(&str, &str)]| {
        let mut command = Command::new(&program);
        place.prepare(&mut command, Layout::Together);
        command.args([
            "-n", "20", "--seed", "7", "--min-p", "0.05", "--device", device,
        ]);
        command.envs(setup.iter().copied());
        let output = command.output().expect("the example starts");
        (
            output.status.success(),
            output.stdout.clone(),
            text(&output),
        )
    };
    let (_, cpu, _) = run("cpu", &[]);
    assert!(cpu.starts_with(b"As soon as breakfast was over,") && cpu.len() > 60);
    let (works, hip, said) = run("hip", &[]);
    if said.contains("this build knows no AMD GPU") {
        return skip(
            "the example is built without the feature: cargo build --features hip --example qwen2-generate",
        );
    }
    assert!(works && hip == cpu, "{said}");
    // Whatever goes wrong is one line.
    let (works, _, said) = run("hip", &[("STANDIN_DEVICES", "gfx9999:32")]);
    let error = said
        .lines()
        .find(|line| line.starts_with("error: "))
        .unwrap_or_default();
    assert!(
        !works && error.contains("do not compile for gfx9999"),
        "{said}"
    );
    // Then --device auto takes the CPU, and says why.
    let (works, auto, said) = run("auto", &[("STANDIN_DRIVER", "old")]);
    assert!(
        works
            && auto == cpu
            && said.contains("--device auto takes the CPU: ")
            && said.contains("update the driver"),
        "{said}"
    );
}
