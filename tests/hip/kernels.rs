//! Compiling the kernels, and keeping them on disk.

use crate::common::{batch_of, mixed, sources};
use crate::library::{calls, fail_at, live, reset};
use crate::standin::{Layout, file, outside};
use crate::tokens::ids;
use candle_core::{DType, Result};
use candle_sampler::Sampler;
use candle_sampler::hip::HipDevice;
use libloading::os::unix::Library;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn on_hip() -> Result<Sampler> {
    Sampler::new(&mixed(3, 1000))?.on_hip(&HipDevice::new(0)?)
}

fn draw(sampler: &mut Sampler, dtype: DType) -> Result<Vec<u32>> {
    ids(sampler, &batch_of(&sources(1000), 3).to_dtype(dtype)?)
}

/// Why that does not work.
fn complaint() -> String {
    let drawn = on_hip().and_then(|mut hip| draw(&mut hip, DType::F32));
    drawn.expect_err("no kernels").to_string()
}

fn draws_the_cpus_tokens(hip: &mut Sampler, dtype: DType) -> Result<()> {
    let mut cpu = Sampler::new(&mixed(3, 1000))?;
    for row in 0..3 {
        cpu.set_position(row, hip.position(row));
    }
    assert_eq!(draw(hip, dtype)?, draw(&mut cpu, dtype)?);
    Ok(())
}

/// How often a function has been called since the last reset.
fn count(name: &str) -> usize {
    calls().iter().filter(|&call| call == name).count()
}

/// A program in the place of the C++ compiler.
fn script(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, format!("#!/bin/sh\n{text}"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The first test to run, for each GPU, with a cache that does not have its kernels.
#[test]
fn compiled_at_first_use() -> Result<()> {
    if outside("kernels::compiled_at_first_use", &[]) {
        return Ok(());
    }
    let (mut first, mut second) = (on_hip()?, on_hip()?);
    for (i, dtype) in [DType::F32, DType::F16, DType::BF16]
        .into_iter()
        .enumerate()
    {
        assert_eq!(count("hiprtcCompileProgram"), i, "not before {dtype:?}");
        draws_the_cpus_tokens(&mut first, dtype)?;
        draws_the_cpus_tokens(&mut second, dtype)?;
        assert_eq!(count("hiprtcCompileProgram"), i + 1);
        assert_eq!(count("hiprtcDestroyProgram"), i + 1);
        assert_eq!(count("hipModuleLoadData"), i + 1, "they stay loaded");
    }
    drop((first, second));
    assert_eq!(live(), 3);
    Ok(())
}

/// The files of a cache.
fn entries(cache: &Path) -> Result<Vec<PathBuf>> {
    let folder = std::fs::read_dir(cache.join("candle-sampler"))?;
    folder.map(|entry| Ok(entry?.path())).collect()
}

#[test]
fn kept_on_disk() -> Result<()> {
    let own = file("own-cache");
    let path = ("XDG_CACHE_HOME", own.to_str().expect("a plain path"));
    let stages = ["kept", "damaged", "mended"].map(|stage| [("STAGE", stage), path]);
    let setups = stages.each_ref().map(|stage| (Layout::Apart, &stage[..]));
    if outside("kernels::kept_on_disk", &setups) {
        return Ok(());
    }
    let stage = std::env::var("STAGE").expect("a stage");
    if stage == "kept" {
        let folder = own.join("candle-sampler");
        std::fs::create_dir_all(&folder)?;
        for entry in entries(&file("cache"))? {
            std::fs::copy(&entry, folder.join(entry.file_name().expect("a name")))?;
        }
    }
    let kept = entries(&own)?;
    assert!(kept.len() >= 6, "at least three for each GPU: {kept:?}");
    if stage == "damaged" {
        for entry in &kept {
            let mut code = std::fs::read(entry)?;
            let middle = code.len() / 2;
            code[middle] ^= 1;
            std::fs::write(entry, code)?;
        }
    }
    draws_the_cpus_tokens(&mut on_hip()?, DType::F32)?;
    let damaged = usize::from(stage == "damaged");
    assert_eq!(count("hiprtcCompileProgram"), damaged, "{stage}");
    assert_eq!(entries(&own)?.len(), kept.len());
    Ok(())
}

#[test]
fn not_without_hiprtc() {
    if outside("kernels::not_without_hiprtc", &[(Layout::NoCompiler, &[])]) {
        return;
    }
    // SAFETY: hipRTC's initialisers have no preconditions.
    if unsafe { Library::new("libhiprtc.so") }.is_ok() {
        return println!("skipped: the machine has a hipRTC");
    }
    let said = complaint();
    let first = said.lines().next().unwrap_or_default();
    let begin = "cannot load hipRTC; install it, or add its folder to LD_LIBRARY_PATH: ";
    assert!(first.starts_with(begin), "{said}");
    for library in ["libhiprtc.so.5", "libamdhip64.so.5", "libhiprtc.so"] {
        assert!(first.contains(&format!("{library}: ")), "{library}: {said}");
    }
    assert_eq!(live(), 0);
}

/// What the compiler says is shown, under a line that names the target, and it is asked again next time.
#[test]
fn mistakes_are_shown() -> Result<()> {
    let compiler = file("complains");
    let setup = [
        ("CXX", compiler.to_str().expect("a plain path")),
        ("XDG_CACHE_HOME", "/nowhere"),
        ("STANDIN_DEVICES", "gfx942"),
    ];
    if outside("kernels::mistakes_are_shown", &[(Layout::Apart, &setup)]) {
        return Ok(());
    }
    script(&compiler, "echo a mistake\necho another >&2\nexit 1\n")?;
    for attempt in 1..3 {
        let said = complaint();
        let lines: Vec<&str> = said.lines().collect();
        let first =
            "the kernels do not compile for gfx942 (a newer hipRTC may know it); hipRTC says:";
        assert_eq!(lines[..3], [first, "a mistake", "another"], "{said}");
        assert_eq!(count("hiprtcCompileProgram"), attempt);
        assert_eq!(count("hiprtcDestroyProgram"), attempt);
    }
    assert_eq!(live(), 0);
    Ok(())
}

#[test]
fn unknown_targets_are_named() -> Result<()> {
    let unknown = [("STANDIN_DEVICES", "gfx9999:32")];
    let setups = [Layout::Apart, Layout::Together].map(|layout| (layout, &unknown[..]));
    if outside("kernels::unknown_targets_are_named", &setups) {
        return Ok(());
    }
    assert_eq!(HipDevice::new(0)?.target(), "gfx9999");
    let said = complaint();
    let first = "the kernels do not compile for gfx9999 (a newer hipRTC may know it); hipRTC says:";
    assert_eq!(said.lines().next(), Some(first), "{said}");
    assert!(said.contains("invalid target ID 'gfx9999'"), "{said}");
    assert_eq!(live(), 0);
    Ok(())
}

/// Each call on the way from the compiler to loaded kernels fails. Nothing is kept, neither in memory nor (without a cache) on
/// disk, so it can all happen in one process.
#[test]
fn fail_in_every_way() -> Result<()> {
    let quick = file("quick");
    let setup = [
        ("CXX", quick.to_str().expect("a plain path")),
        ("XDG_CACHE_HOME", ""),
        ("LOCALAPPDATA", ""),
        ("HOME", ""),
    ];
    if outside("kernels::fail_in_every_way", &[(Layout::Apart, &setup)]) {
        return Ok(());
    }
    // A compiler that makes the same ELF file of everything. Nobody runs it.
    std::fs::copy("/proc/self/exe", quick.with_extension("elf"))?;
    let last_output = "while [ $# -gt 1 ]; do [ $1 = -o ] && cp \"$0.elf\" $2; shift; done\n";
    script(&quick, last_output)?;
    complaint();
    let first = calls().iter().position(|call| call == "hiprtcVersion");
    let mut seen = Vec::new();
    for at in first.expect("a compiler").. {
        let mut name = String::new();
        // The last is no code of hipRTC's.
        for (code, text) in [(1, "_OUT_OF_MEMORY"), (11, "_INTERNAL_ERROR"), (719, "719")] {
            reset();
            fail_at(at, code);
            let said = complaint();
            name = calls()[at].clone();
            let begin = format!("{name} failed: ");
            assert!(said.starts_with(&begin), "{name}: {said}");
            assert!(said.contains(text) || !name.starts_with("hiprtc"), "{said}");
            let created = count("hiprtcCreateProgram");
            let created = created - usize::from(name == "hiprtcCreateProgram");
            assert_eq!(count("hiprtcDestroyProgram"), created, "{name}");
            assert_eq!(live(), 0);
        }
        if name == "hipModuleLoadData" {
            break;
        }
        seen.push(name);
    }
    println!("{seen:?}");
    for call in [
        "Version",
        "CreateProgram",
        "CompileProgram",
        "GetCode",
        "DestroyProgram",
    ] {
        assert!(seen.contains(&format!("hiprtc{call}")), "{call}: {seen:?}");
    }
    Ok(())
}
