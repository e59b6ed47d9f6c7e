//! What a vdev does when it ends the run: the option `action`, as qvm's watchdogs have it.

use crate::OptionHelp;
use crate::options::{OptionError, Options};

/// The option.
pub(crate) const ACTION: OptionHelp = OptionHelp {
    name: "action",
    value: "[dump,]terminate",
    about: "what happens then: the run ends, after a dump of the guest or without (default: terminate)",
};

/// Whether the guest is dumped before the run ends.
pub(crate) fn is_dumped(options: &Options) -> Result<bool, OptionError> {
    let parsed = options.parsed("action", |text| match text {
        "terminate" => Ok(false),
        "dump,terminate" => Ok(true),
        "fiq" | "dump,fiq" => Err("a fast interrupt is ARM's; use terminate or dump,terminate"),
        _ => Err("an action is terminate or dump,terminate"),
    })?;
    Ok(parsed.unwrap_or(false))
}
