//! Which roles `ebla dev` runs and where: decided once, kept in `dev.json`, so that masters
//! and servers find each other again after a restart.

use crate::cli::Dev;
use crate::exit::Failure;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;

/// Masters and servers when neither flags nor the data directory say otherwise.
const MASTERS_DEFAULT: u64 = 1;
const SERVERS_DEFAULT: u64 = 3;

/// Addresses of all roles, in order of their number.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub masters: Vec<String>,
    pub servers: Vec<String>,
}

impl Plan {
    /// The plan of the data directory, brought in line with the flags, and every port free.
    pub fn load_or_make(args: &Dev) -> anyhow::Result<Self> {
        fs::create_dir_all(&args.data_dir)
            .with_context(|| format!("cannot make the data directory {}", args.data_dir.display()))?;
        let path = args.data_dir.join("dev.json");
        let kept = read(&path)?;
        let mut plan = kept.clone().unwrap_or(Self { masters: Vec::new(), servers: Vec::new() });
        plan.check(args, kept.is_some())?;
        plan.fill(args)?;
        plan.check_ports(&path)?;
        if kept.as_ref() != Some(&plan) {
            plan.write(&path)?;
        }
        Ok(plan)
    }

    /// Where clients find the cluster.
    pub fn endpoint(&self) -> &str {
        self.masters.first().map_or("", String::as_str)
    }

    /// The group of masters is fixed when it is formed, and servers hold rows.
    fn check(&self, args: &Dev, is_kept: bool) -> anyhow::Result<()> {
        let (masters, servers) = (self.masters.len() as u64, self.servers.len() as u64);
        if !is_kept {
            return Ok(());
        }
        if args.masters.is_some_and(|wanted| wanted != masters) {
            let hint = format!(
                "the data directory has {masters} masters, which is fixed: leave --masters out or use another --data-dir"
            );
            return Err(Failure::usage(hint).into());
        }
        if args.servers.is_some_and(|wanted| wanted < servers) {
            let hint = format!(
                "the data directory has rows on {servers} servers: give --servers {servers} or more, or leave it out"
            );
            return Err(Failure::usage(hint).into());
        }
        Ok(())
    }

    /// Puts the first master where it is wanted and finds free ports for whatever is missing.
    fn fill(&mut self, args: &Dev) -> anyhow::Result<()> {
        let masters = args.masters.unwrap_or((self.masters.len() as u64).max(MASTERS_DEFAULT));
        let no_servers_yet =
            if self.servers.is_empty() { SERVERS_DEFAULT } else { self.servers.len() as u64 };
        let servers = args.servers.unwrap_or(no_servers_yet);
        let listen = if args.listen.ends_with(":0") { self.first_or_free()? } else { args.listen.clone() };
        match self.masters.first_mut() {
            Some(first) => *first = listen,
            None => self.masters.push(listen),
        }
        // Held until all are found, so that no port is found twice.
        let mut held = Vec::new();
        while (self.masters.len() as u64) < masters {
            self.masters.push(free_address(&mut held)?);
        }
        while (self.servers.len() as u64) < servers {
            self.servers.push(free_address(&mut held)?);
        }
        Ok(())
    }

    fn first_or_free(&self) -> anyhow::Result<String> {
        self.masters.first().cloned().map_or_else(|| free_address(&mut Vec::new()), Ok)
    }

    /// Says clearly which port is taken, before any role fails over it.
    fn check_ports(&self, path: &Path) -> anyhow::Result<()> {
        let kept = self.masters.iter().skip(1).chain(&self.servers).map(|address| (address, true));
        for (address, is_kept) in self.masters.iter().take(1).map(|address| (address, false)).chain(kept) {
            let Err(error) = TcpListener::bind(address) else { continue };
            if error.kind() != ErrorKind::AddrInUse {
                return Err(error).with_context(|| format!("cannot listen at {address}"));
            }
            if is_kept {
                bail!(
                    "{address}, kept in {}, is in use: does a cluster already run on this directory? Otherwise stop what uses the port",
                    path.display()
                );
            }
            bail!("{address} is in use: stop what uses it, or choose another address with --listen");
        }
        Ok(())
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        let next = path.with_extension("json.next");
        fs::write(&next, text + "\n")
            .and_then(|()| fs::rename(&next, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Plan>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let plan = serde_json::from_str(&text)
        .with_context(|| format!("{} is damaged or of a newer version: restore it", path.display()))?;
    Ok(Some(plan))
}

fn free_address(held: &mut Vec<TcpListener>) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on loopback")?;
    let address = listener.local_addr()?.to_string();
    held.push(listener);
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn args(dir: &Path) -> Dev {
        Dev { data_dir: PathBuf::from(dir), masters: None, servers: None, listen: "127.0.0.1:0".to_owned() }
    }

    #[test]
    fn a_plan_is_kept_and_may_only_grow() {
        let dir = tempfile::tempdir().unwrap();
        let made = Plan::load_or_make(&Dev { masters: Some(3), ..args(dir.path()) }).unwrap();
        assert_eq!((made.masters.len(), made.servers.len()), (3, 3));
        assert_eq!(Plan::load_or_make(&args(dir.path())).unwrap(), made);
        let grown = Plan::load_or_make(&Dev { servers: Some(4), ..args(dir.path()) }).unwrap();
        assert_eq!((&grown.masters, &grown.servers[..3]), (&made.masters, &made.servers[..]));
        for bad in
            [Dev { masters: Some(1), ..args(dir.path()) }, Dev { servers: Some(2), ..args(dir.path()) }]
        {
            assert!(Plan::load_or_make(&bad).unwrap_err().is::<Failure>());
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let made = Plan::load_or_make(&args(dir.path())).unwrap();
        let _taken = TcpListener::bind(&made.servers[1]).unwrap();
        let error = Plan::load_or_make(&args(dir.path())).unwrap_err().to_string();
        assert!(error.contains(&made.servers[1]), "{error}");
    }
}
