//! The example as a user runs it: a process, its output, its exit code.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// `cargo test` builds examples beside the tests.
fn program() -> PathBuf {
    let me = std::env::current_exe().expect("a path");
    let profile = me.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let program = profile.join("examples").join("qwen2-generate");
    let program = program.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        program.exists(),
        "build it first: cargo build --example qwen2-generate"
    );
    program
}

fn run(args: &[&str]) -> Output {
    // No hub is at this address: whoever asks it learns at once that there is no network.
    let mut command = Command::new(program());
    command.args(args).env("HF_ENDPOINT", "http://127.0.0.1:9");
    // Nor an AMD GPU: what `--device auto` does shall not depend on the machine.
    command.env("HIP_VISIBLE_DEVICES", "-1");
    command.env(
        "HF_HOME",
        std::env::temp_dir().join("candle-sampler-empty-hub"),
    );
    command
        .env("RUST_BACKTRACE", "1")
        .output()
        .expect("the example starts")
}

fn text(args: &[&str]) -> String {
    let output = run(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// How `--device auto` begins to say that it has looked for an AMD GPU and found none.
const NO_GPU: &str = "--device auto takes the CPU: ";

/// The smallest gap between the two largest logits on the way is 0.014, far above what another CPU's order of
/// additions changes.
#[test]
fn greedy_text_is_fixed() {
    let golden = "As soon as breakfast was over, she could not help feeling that she had been so much \
        in love with her sister, and that she had never seen him before. She had been at home, and had \
        been able to make her feel that she had been so very much attached to her, that she had been so \
        much in love with him, that she\n";
    assert_eq!(text(&["--temperature", "0", "-n", "64", "--cpu"]), golden);
}

#[test]
fn with_no_arguments_it_writes_sentences_and_says_how_fast() {
    let output = run(&[]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), errors(&output));
    assert!(output.status.success(), "{err}");
    assert!(out.starts_with("As soon as breakfast was over,"), "{out}");
    let sentences = out.matches(['.', '!', '?']).count();
    let common = [" the ", " and ", " to ", " of "].map(|word| out.matches(word).count());
    assert!(
        sentences >= 2 && out.split_whitespace().count() > 60,
        "{out}"
    );
    assert!(common.iter().sum::<usize>() > 5, "{out}");
    let mut lines = err.lines().skip_while(|line| line.starts_with(NO_GPU));
    let model = lines.next().unwrap_or_default();
    assert!(
        model.starts_with("tiny-austen") && model.contains("--model-id"),
        "{err}"
    );
    for part in ["prompt tokens", "tokens/s", "ms forward", "ms sampling"] {
        assert!(err.contains(part), "{part:?} is not in {err}");
    }
}

#[test]
fn candles_sampler_and_ours_write_the_same_text() {
    for flags in [
        &["--temperature", "0"][..],
        &["--temperature", "1", "--top-p", "1"],
        &["--top-p", "0.9"],
        &["--top-k", "40"],
        &["--top-k", "40", "--top-p", "0.8", "--temperature", "1.2"],
    ] {
        for seed in ["1", "2"] {
            let run = |sampler| {
                let args = ["-n", "60", "--seed", seed, "--sampler", sampler];
                text(&[&args[..], flags].concat())
            };
            assert_eq!(
                run("candle-sampler"),
                run("candle"),
                "{flags:?}, seed {seed}"
            );
        }
    }
    assert_ne!(
        text(&["-n", "60", "--seed", "1"]),
        text(&["-n", "60", "--seed", "2"])
    );
}

#[test]
fn the_flags_do_what_they_say() {
    let plain = text(&["-n", "30", "--temperature", "0"]);
    assert_eq!(
        text(&["-n", "30", "--temperature", "0", "--split-prompt"]),
        plain
    );
    let one = text(&["-n", "30", "--top-k", "1", "--sampler", "candle-sampler"]);
    assert_eq!(one, plain, "the most probable token is the greedy one");
    assert_eq!(
        text(&["-n", "30", "--min-p", "1"]),
        plain,
        "so is the only one with min-p 1"
    );
    assert_ne!(
        text(&["-n", "30", "--temperature", "0", "--repeat-penalty", "1"]),
        plain
    );
    assert!(text(&["-n", "5", "--prompt", "Emma was"]).starts_with("Emma was"));
    assert_eq!(text(&["-n", "0"]), "As soon as breakfast was over,\n");
    let stats = errors(&run(&["-n", "5", "--stats"]));
    assert!(
        stats.contains("median") && stats.contains("99 %"),
        "{stats}"
    );
}

/// A copy of the tiny model in a directory of its own, to damage.
fn copy_of_the_model(name: &str) -> PathBuf {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-austen");
    let copy = std::env::temp_dir().join(format!("candle-sampler-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&copy).expect("a directory");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(model.join(file), copy.join(file)).expect("a copy");
    }
    copy
}

#[test]
fn every_mistake_gets_one_clear_line() {
    let damaged = copy_of_the_model("damaged");
    let weights = damaged.join("model.safetensors");
    let whole = std::fs::read(&weights).expect("weights");
    std::fs::write(&weights, &whole[..whole.len() / 2]).expect("half of them");
    let foreign = copy_of_the_model("foreign");
    std::fs::write(foreign.join("config.json"), r#"{"model_type": "llama"}"#).expect("a file");
    let nonsense = copy_of_the_model("nonsense");
    std::fs::write(nonsense.join("config.json"), "{").expect("a file");
    let weightless = copy_of_the_model("weightless");
    std::fs::remove_file(weightless.join("model.safetensors")).expect("it was there");
    let gguf = damaged.join("cut.gguf");
    std::fs::write(&gguf, b"GGUF\x03\0\0\0\x10\0\0\0\0\0\0\0").expect("a file");
    let text_file = damaged.join("text.gguf");
    std::fs::write(&text_file, "not a model").expect("a file");
    let path = |p: &Path| p.to_str().expect("a plain path").to_owned();
    let long = "word ".repeat(2000);

    for (args, expected) in [
        (
            vec!["--model", "/no/such/file.gguf"],
            "no such file: /no/such/file.gguf",
        ),
        (vec!["--model", &path(&gguf)], "not a whole GGUF file"),
        (vec!["--model", &path(&text_file)], "not a whole GGUF file"),
        (vec!["--model", &path(&damaged)], "the weights"),
        (
            vec!["--model", &path(&foreign)],
            "a \"llama\" model, not qwen2 or qwen3",
        ),
        (vec!["--model", &path(&nonsense)], "config.json"),
        (vec!["--model", &path(&weightless)], "no such file"),
        (
            vec!["--tokenizer-file", "/no/tokenizer.json"],
            "tokenizer /no/tokenizer.json",
        ),
        (vec!["--which", "9b"], "--which 9b is not one of"),
        (
            vec!["--model-id", "nobody/nothing"],
            "cannot get config.json from the Hugging Face hub",
        ),
        (vec!["--top-p", "1.5"], "top_p = 1.5 is out of range"),
        (vec!["--top-p", "nan"], "top_p = NaN is out of range"),
        (vec!["--top-k", "0"], "top_k = 0 is out of range"),
        (vec!["--min-p", "-1"], "min_p = -1 is out of range"),
        (
            vec!["--temperature", "-1"],
            "temperature = -1 is out of range",
        ),
        (
            vec!["--repeat-penalty", "0"],
            "--repeat-penalty = 0 is out of range",
        ),
        (
            vec!["--min-p", "0.1", "--sampler", "candle"],
            "--min-p needs --sampler candle-sampler",
        ),
        (vec!["--prompt", &long], "the model's context 1024"),
        (vec!["--prompt", ""], "the prompt is empty"),
        (
            vec!["--device", "hip", "--sampler", "candle"],
            "--device hip needs --sampler candle-sampler",
        ),
        #[cfg(not(feature = "hip"))]
        (
            vec!["--device", "hip"],
            "--device hip: this build knows no AMD GPU (add --features hip",
        ),
        #[cfg(feature = "hip")]
        (
            vec!["--device", "hip"],
            "--device hip: hipGetDeviceCount failed: hipErrorNoDevice (100)",
        ),
        #[cfg(feature = "hip")]
        (vec!["--device", "hip"], "is the amdgpu driver loaded"),
        #[cfg(not(feature = "cuda"))]
        (vec!["--device", "cuda"], "--features cuda"),
    ] {
        let output = run(&args);
        let said = errors(&output);
        let said: Vec<&str> = said
            .lines()
            .filter(|line| !line.starts_with("tiny-austen") && !line.starts_with(NO_GPU))
            .collect();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said:?}");
        assert!(
            said.len() == 1 && said[0].starts_with("error: "),
            "{args:?}: {said:#?}"
        );
        assert!(
            said[0].contains(expected),
            "{args:?}: {said:?}, expected {expected:?}"
        );
        assert!(output.stdout.is_empty(), "{args:?}: an error has no text");
    }
    for directory in [damaged, foreign, nonsense, weightless] {
        std::fs::remove_dir_all(directory).expect("removed");
    }
}

/// One line where an AMD GPU was looked for, none where the build knows none; the text is the CPU's either way.
#[cfg(not(feature = "cuda"))]
#[test]
fn auto_says_why_it_takes_the_cpu() {
    let args = ["-n", "20", "--seed", "7"];
    let auto = run(&[&args[..], &["--device", "auto"]].concat());
    let said = errors(&auto);
    let reasons: Vec<&str> = said.lines().filter(|l| l.starts_with(NO_GPU)).collect();
    assert_eq!(reasons.len(), usize::from(cfg!(feature = "hip")), "{said}");
    assert!(
        reasons.iter().all(|r| r.contains("no AMD GPU is visible")),
        "{said}"
    );
    let cpu = run(&[&args[..], &["--cpu"]].concat());
    assert!(auto.status.success() && cpu.status.success(), "{said}");
    assert_eq!(auto.stdout, cpu.stdout);
    assert!(!errors(&cpu).contains(NO_GPU));
}

/// A long text, its streams in our hands.
#[cfg(unix)]
fn start() -> std::process::Child {
    Command::new(program())
        .args(["-n", "1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example starts")
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_text_with_the_summary() {
    let mut child = start();
    let mut out = child.stdout.take().expect("piped");
    let mut start = [0; 40];
    out.read_exact(&mut start).expect("text is streaming");
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.expect("kill runs").success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("text");
    let output = child.wait_with_output().expect("it ends");
    let said = errors(&output);
    assert!(
        output.status.success() && said.contains("tokens/s"),
        "{said}"
    );
    let count = said
        .lines()
        .find(|line| line.contains("tokens generated"))
        .expect("a summary");
    let generated: usize = count
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("a number");
    assert!(generated < 1000, "{said}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = start();
    let mut start = [0; 10];
    child
        .stdout
        .take()
        .expect("piped")
        .read_exact(&mut start)
        .expect("text is streaming");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", errors(&output));
}
