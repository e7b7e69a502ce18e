//! What the tour looks like: colour on a terminal, plain text elsewhere or where `NO_COLOR` is set.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use anstream::AutoStream;
use anstyle::AnsiColor;
use anstyle::Style;
use http::HeaderMap;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Yellow.on_default();
const NEW: Style = AnsiColor::Cyan.on_default();

/// A reply longer than this is cut: the tour is to be read.
const REPLY_CHARACTERS_MAX: usize = 600;

/// Standard output, with styles that are dropped where they would be noise.
pub(super) struct Paper(AutoStream<std::io::Stdout>);

impl Paper {
    pub(super) fn new() -> Self {
        Self(anstream::stdout())
    }

    pub(super) fn title(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.0, "{BOLD}{text}{BOLD:#}\n")?)
    }

    pub(super) fn line(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.0, "  {text}")?)
    }

    pub(super) fn step(&mut self, number: usize, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.0, "\n{BOLD}{number}. {text}{BOLD:#}")?)
    }

    /// What the host was told to do wrong.
    pub(super) fn misbehaves(&mut self, fault: &str) -> anyhow::Result<()> {
        Ok(writeln!(
            self.0,
            "  {DIM}the host is told to{DIM:#}  {BAD}{fault}{BAD:#}"
        )?)
    }

    /// What the service sent.
    pub(super) fn went_in(&mut self, path: &str, body: &str) -> anyhow::Result<()> {
        writeln!(self.0, "  {DIM}a service sends{DIM:#}      POST {path}")?;
        Ok(writeln!(self.0, "                       {body}")?)
    }

    /// What reached the host, with what the gateway added in colour. The signature is as secret as the key.
    pub(super) fn went_out(
        &mut self,
        target: &str,
        headers: &HeaderMap,
        body: &str,
        added: &str,
    ) -> anyhow::Result<()> {
        let stamp = headers
            .get("time-stamp")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let digits = headers.get("data-signature").map_or(0, |value| value.len());
        writeln!(self.0, "  {DIM}the host receives{DIM:#}    POST {target}")?;
        writeln!(
            self.0,
            "                       {NEW}time-stamp: {stamp}{NEW:#}"
        )?;
        writeln!(
            self.0,
            "                       {NEW}data-signature: {}{NEW:#}  {DIM}(never shown){DIM:#}",
            "*".repeat(digits)
        )?;
        match body.split_once(added) {
            Some((before, after)) => Ok(writeln!(
                self.0,
                "                       {before}{NEW}{added}{NEW:#}{after}"
            )?),
            None => Ok(writeln!(self.0, "                       {body}")?),
        }
    }

    /// Nothing left.
    pub(super) fn nothing_went_out(&mut self) -> anyhow::Result<()> {
        Ok(writeln!(
            self.0,
            "  {DIM}the host receives{DIM:#}    nothing: no call was spent"
        )?)
    }

    /// What the service got back.
    pub(super) fn came_back(
        &mut self,
        status: u16,
        outcome: &str,
        body: &str,
    ) -> anyhow::Result<()> {
        let style = if outcome == "done" { GOOD } else { BAD };
        let mut shown: String = body.chars().take(REPLY_CHARACTERS_MAX).collect();
        if shown.len() < body.len() {
            shown.push_str(" ...");
        }
        writeln!(
            self.0,
            "  {DIM}the service gets{DIM:#}     {status}  {style}Kybio-Gateway-Outcome: {outcome}{style:#}"
        )?;
        Ok(writeln!(self.0, "                       {shown}")?)
    }

    /// A counter that moved.
    pub(super) fn moved(&mut self, series: &str, by: f64) -> anyhow::Result<()> {
        Ok(writeln!(self.0, "  {GOOD}{by:>+4}{GOOD:#}  {series}")?)
    }

    /// What to paste.
    pub(super) fn curl(&mut self, folder: &Path, address: SocketAddr) -> anyhow::Result<()> {
        let (folder, port) = (folder.display(), address.port());
        writeln!(
            self.0,
            "\n{BOLD}Your turn{BOLD:#}  (Ctrl-C ends the demo and removes its files)\n"
        )?;
        writeln!(
            self.0,
            "curl --cacert {folder}/ca.pem --cert {folder}/orders.pem --key {folder}/orders.key -H 'Content-Type: application/json' \
             -d '{{\"customerNum\":\"KYBIO002\"}}' https://localhost:{port}/openapi/v1/customerOpenApi/queryByNumber\n"
        )?;
        Ok(self.0.flush()?)
    }
}
