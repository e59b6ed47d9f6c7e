//! What was understood: as text for `mote check`, as facts for the file of a run.

use std::fmt::Write;

use boot::Kernel;

use crate::board::Placed;
use crate::config::{Config, DumpTo, LoadKind, Policy};
use crate::ending::Pty;
use crate::log::Rule;
use crate::qvmconf::length;
use crate::state::Json;

/// What was understood, for people.
pub(crate) fn text(config: &Config, placed: &[Placed]) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("system", config.name.as_deref().unwrap_or("(no name)"));
    line("kernel", &config.kernel.display().to_string());
    if let Some(initrd) = &config.initrd {
        line("initrd", &initrd.display().to_string());
    }
    for load in &config.loads {
        let path = load.path.display();
        match (load.kind, load.address) {
            (LoadKind::Acpi, _) => line("acpi table", &path.to_string()),
            (_, address) => line("data", &format!("{path} at {:#x}", address.unwrap_or(0))),
        }
    }
    line("cmdline", &command_line(config));
    for (index, cpu) in config.cpus.iter().enumerate() {
        let runmask: Vec<_> = cpu.runmask.iter().map(u16::to_string).collect();
        let runs_on = if runmask.is_empty() { "any host processor".into() } else { runmask.join(",") };
        let sched = cpu.sched.map(|sched| format!(", {sched}")).unwrap_or_default();
        line(&format!("cpu {index}"), &format!("on {runs_on}{sched}"));
    }
    line("memory", &format!("{} of RAM", length(config.memory.size())));
    out.push_str(&config.memory.to_string());
    for (vdev, placed) in config.vdevs.iter().zip(placed) {
        let places: Vec<_> = placed.places.iter().map(ToString::to_string).collect();
        let interrupt = placed.interrupt.map(|gsi| format!(" ioapic:{gsi}")).unwrap_or_default();
        let name = if placed.name == placed.kind { String::new() } else { format!(" '{}'", placed.name) };
        let _ = writeln!(out, "{:<12} {}{name} at {}{interrupt}", "vdev", placed.kind, places.join(" "));
        for (option, value) in &vdev.options.options {
            let value = value.as_deref().unwrap_or_default();
            let line = format!("  {option:<10} {value}");
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("pci-config", &format!("{:?}", config.pci_config).to_lowercase());
    line("escape", &config.escape.to_string());
    let usual = [Rule::default()];
    let loggers = if config.loggers.is_empty() { &usual[..] } else { &config.loggers };
    loggers.iter().for_each(|rule| line("logger", &rule.to_string()));
    let policy = |policy| match policy {
        Policy::Abort => "abort",
        Policy::Fail => "fail",
        Policy::Ignore => "ignore",
    };
    line("unsupported", "instruction abort");
    line("unsupported", &format!("reference {}", policy(config.unsupported.reference)));
    line("unsupported", &format!("register {}", policy(config.unsupported.register)));
    match &config.dump {
        DumpTo::Directory(directory) => line("dump", &format!("files in {}", directory.display())),
        DumpTo::Command(command) => line("dump", &format!("|{command}")),
    }
    match config.power_button_wait {
        Some(wait) => line("power button", &format!("the power is cut {} s after it", wait.as_secs())),
        None => line("power button", "the guest has for ever to heed it"),
    }
    if let Some(directory) = &config.state_dir {
        line("state", &format!("{}/state.json", directory.display()));
    }
    if config.is_dry {
        line("dryrun", "the guest is not started");
    }
    out
}

fn command_line(config: &Config) -> String {
    let line = boot::CommandLine::new(&config.default_words(), &config.command_line);
    line.map(|line| line.as_str().to_owned()).unwrap_or_default()
}

/// What was understood, for programs. Addresses are texts, as JSON's numbers are not exact.
pub(crate) fn facts(
    config: &Config,
    kernel: &Kernel,
    placed: &[Placed],
    ptys: &[Pty],
) -> Vec<(&'static str, Json)> {
    let offset = |[physical, offset]: [u64; 2]| {
        Json::Object(vec![
            ("physical", format!("{physical:#x}").into()),
            ("virtual", format!("{offset:#x}").into()),
        ])
    };
    let vdev = |placed: &Placed| {
        Json::Object(vec![
            ("name", placed.name.into()),
            ("type", placed.kind.clone().into()),
            ("loc", placed.places.iter().map(|place| place.to_string().into()).collect()),
            ("intr", placed.interrupt.map(|gsi| format!("ioapic:{gsi}")).into()),
        ])
    };
    let pty = |pty: &Pty| {
        Json::Object(vec![
            ("vdev", pty.vdev.clone().into()),
            ("port", pty.port.clone().into()),
            ("path", pty.path.display().to_string().into()),
        ])
    };
    let area = |area: &crate::areas::Area| {
        Json::Object(vec![
            ("use", format!("{:?}", area.what).to_lowercase().into()),
            ("start", format!("{:#x}", area.range.start).into()),
            ("end", format!("{:#x}", area.range.end).into()),
        ])
    };
    vec![
        ("mote", env!("CARGO_PKG_VERSION").into()),
        ("pid", u64::from(std::process::id()).into()),
        ("system", config.name.as_deref().into()),
        ("kernel", config.kernel.display().to_string().into()),
        ("kernelOffset", kernel.distance().map(offset).into()),
        ("initrd", config.initrd.as_ref().map(|path| path.display().to_string()).into()),
        ("cmdline", command_line(config).into()),
        ("cpus", (config.cpus.len() as u64).into()),
        ("memory", config.memory.areas().iter().map(area).collect()),
        ("vdevs", placed.iter().map(vdev).collect()),
        ("ptys", ptys.iter().map(pty).collect()),
    ]
}
