//! The options of a console: what its ports are, and where they go.

use std::time::Duration;

use super::port::Kind;
use crate::Context;
use crate::hostdev::{Place, Setup, Spec};
use crate::options::{OptionError, Options};
use crate::stream::Way;

/// The most ports: their queues, and those of control, are 64.
const MAX_PORTS: usize = 31;

/// One port as its user described it.
pub(super) struct PortSetup {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) host: Setup,
}

/// The ports that the options describe. Options before the first `console` or `port` are those of port 0.
pub(super) fn ports(
    options: &Options,
    context: &Context<'_>,
    vdev: &'static str,
) -> Result<Vec<PortSetup>, OptionError> {
    let setup = || Setup {
        vdev,
        specs: Vec::new(),
        delayed: None,
        has_backpressure: true,
        has_replay: true,
        terminal: std::sync::Arc::clone(&context.terminal),
    };
    let mut ports = vec![PortSetup { kind: Kind::Console, name: String::new(), host: setup() }];
    for (name, value) in &options.options {
        let value = value.as_deref().unwrap_or_default();
        let bad = |problem: &'static str| OptionError::BadValue {
            vdev: options.kind.clone(),
            option: name.clone(),
            value: value.to_owned(),
            problem: problem.into(),
        };
        let kind = match name.as_str() {
            "console" => Some(Kind::Console),
            "port" => Some(Kind::Plain),
            _ => None,
        };
        if let Some(kind) = kind {
            check_name(value, &ports).map_err(bad)?;
            let host = Setup { has_replay: kind == Kind::Console, ..setup() };
            ports.push(PortSetup { kind, name: value.to_owned(), host });
        } else if let Some(port) = ports.last_mut() {
            set(&mut port.host, name, value).map_err(bad)?;
        }
    }
    for (index, port) in (0_usize..).zip(&mut ports) {
        // Without a word the first console is on the terminal, and the others wait for who comes.
        if port.host.specs.is_empty() {
            let place = if index == 0 { Place::Stdio } else { Place::Pty(None) };
            port.host.specs.push(Spec { way: None, place });
        }
    }
    Ok(ports)
}

fn check_name(name: &str, ports: &[PortSetup]) -> Result<(), &'static str> {
    if ports.len() >= MAX_PORTS {
        return Err("a console has at most 31 ports");
    }
    if name.is_empty() || name.len() > 64 || name.contains(|c: char| c.is_control() || c == '/') {
        return Err("a port has a name of at most 64 bytes, without slashes and control characters");
    }
    match ports.iter().any(|port| port.name == name) {
        true => Err("another port has this name"),
        false => Ok(()),
    }
}

/// Sets an option that a serial line has as well as a port. Others are not for it.
pub(crate) fn set(host: &mut Setup, name: &str, value: &str) -> Result<(), &'static str> {
    match name {
        "hostdev" => {
            let spec = Spec::parse(value)?;
            let has = |way| host.specs.iter().any(|other| other.way.is_none_or(|other| other == way));
            let is_taken = |way| spec.way.is_none_or(|own| own == way) && has(way);
            if is_taken(Way::In) || is_taken(Way::Out) {
                return Err("there is one input and one output, and one of them is given already");
            }
            host.specs.push(spec);
        }
        "delayed" => {
            host.delayed = Some(match value {
                "forever" => Duration::MAX,
                seconds => Duration::from_secs(
                    seconds.parse::<u32>().map_err(|_| "a number of seconds, or forever")?.into(),
                ),
            });
        }
        "tx-backpressure" => {
            host.has_backpressure = match value {
                "" | "on" | "yes" | "true" | "1" => true,
                "off" | "no" | "false" | "0" => false,
                _ => return Err("on or off"),
            };
        }
        _ => {}
    }
    Ok(())
}

/// Leaves standard input to who asked for it first.
pub(crate) fn claim_input(host: &mut Setup, context: &Context<'_>) {
    for spec in host.specs.iter_mut().filter(|spec| spec.place == Place::Stdio && spec.way != Some(Way::Out))
    {
        if !context.claim_input.replace(false) {
            // Both ways becomes out alone. In alone becomes a line on which nothing ever comes.
            match spec.way {
                None => spec.way = Some(Way::Out),
                Some(_) => spec.place = Place::Path("/dev/null".into()),
            }
        }
    }
}
