//! What flags take: how it is read, and which of it a shell can offer.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, Command, Error};
use devices::options::did_you_mean;
use log::LevelFilter;

use crate::qvmconf::OPTIONS;

/// A value that `read` understands, of which `offers` are some or all.
#[derive(Clone, Copy)]
pub(super) struct Value<R> {
    pub(super) read: R,
    pub(super) offers: fn() -> Vec<PossibleValue>,
}

impl<R: TypedValueParser> TypedValueParser for Value<R> {
    type Value = R::Value;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<R::Value, Error> {
        self.read.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.offers)().into_iter()))
    }
}

/// The types of vdevs, each with what it is for.
pub(super) fn vdevs() -> Vec<PossibleValue> {
    devices::KINDS.iter().map(|kind| PossibleValue::new(kind.name).help(kind.about)).collect()
}

/// The options of the configuration language, each with what it does.
pub(super) fn words() -> Vec<PossibleValue> {
    let rows = OPTIONS.iter().filter(|row| row.is_supported());
    rows.map(|row| PossibleValue::new(row.name).help(row.about)).collect()
}

pub(super) fn pci_config() -> Vec<PossibleValue> {
    ["ecam", "ports", "both"].map(PossibleValue::new).into()
}

/// The levels of messages.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) fn levels() -> Vec<PossibleValue> {
    LEVELS.map(PossibleValue::new).into()
}

pub(super) fn level(text: &str) -> Result<LevelFilter, String> {
    let hint = || did_you_mean(text, LEVELS);
    text.parse().map_err(|_| format!("a level is off, error, warn, info, debug or trace{}", hint()))
}

/// A number of vCPUs.
pub(super) fn count(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|count| *count != 0).ok_or("this is no number of 1 or more")
}

pub(super) fn seconds(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "this is no number of seconds")
}
