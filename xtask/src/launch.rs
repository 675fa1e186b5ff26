//! Starts the ranks of a process group on this machine, and stops all if one fails.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::repo;

/// Time that the other ranks have to report and save after one failed, before they are killed.
const GRACE: Duration = Duration::from_secs(20);

/// Size of the process group, and the position of this machine in it.
#[derive(Clone, Debug, Default, Args)]
pub struct LaunchArgs {
    /// Number of processes on this machine (ranks); each takes an equal part of the train.accumulate
    /// batches of a step, whose gradients add up [default: 1]
    #[arg(long, value_name = "N")]
    pub nproc: Option<usize>,
    /// Number of machines; run the same command on each
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub nnodes: usize,
    /// Index of this machine, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub node_rank: usize,
    /// Address of machine 0 and a free port on it; required with --nnodes
    #[arg(long, value_name = "ADDR:PORT")]
    pub master: Option<String>,
}

impl LaunchArgs {
    /// Returns whether the run has a single process and needs no launcher.
    pub fn is_single(&self) -> bool {
        self.nproc.is_none() && self.nnodes <= 1
    }

    /// Returns the environment variables of each local process, as torchrun sets them.
    fn variables(&self) -> Result<Vec<Vec<(&'static str, String)>>> {
        let (local_size, nodes, node) = (self.nproc.unwrap_or(1), self.nnodes, self.node_rank);
        ensure!(local_size > 0 && nodes > 0, "--nproc and --nnodes must be at least 1");
        ensure!(node < nodes, "--node-rank {node} must be below --nnodes {nodes}");
        let (address, port) = match (&self.master, nodes) {
            (Some(master), _) => {
                let (address, port) =
                    master.rsplit_once(':').context("--master must be ADDR:PORT")?;
                let port: u16 =
                    port.parse().with_context(|| format!("--master: invalid port {port:?}"))?;
                (address.to_owned(), port)
            }
            (None, 1) => ("127.0.0.1".to_owned(), free_port()?),
            (None, _) => bail!("--nnodes {nodes} requires --master ADDR:PORT"),
        };
        let rank_variables = |local: usize| {
            vec![
                ("RANK", (node * local_size + local).to_string()),
                ("WORLD_SIZE", (nodes * local_size).to_string()),
                ("LOCAL_RANK", local.to_string()),
                ("LOCAL_WORLD_SIZE", local_size.to_string()),
                ("MASTER_ADDR", address.clone()),
                ("MASTER_PORT", port.to_string()),
            ]
        };
        Ok((0..local_size).map(rank_variables).collect())
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// Replaces this process by the command that `make` returns, or runs that command once per local
/// rank.
pub fn run(args: &LaunchArgs, make: impl Fn() -> Command) -> Result<ExitCode> {
    if args.is_single() {
        return repo::exec(&mut make());
    }
    let variables = args.variables()?;
    let signal = catch_signals()?;
    let mut ranks = Vec::new();
    for variables in variables {
        let mut command = make();
        // Divides the cores among the local processes.
        if std::env::var_os("OMP_NUM_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let each = (cores / args.nproc.unwrap_or(1)).max(1);
            command.env("OMP_NUM_THREADS", each.to_string());
        }
        let rank = variables[0].1.clone();
        if rank == "0" {
            status!("$ {}", repo::command_line(&command));
        } else {
            command.stderr(Stdio::piped());
        }
        command.envs(variables);
        match Process::start(&mut command, rank) {
            Ok(process) => ranks.push(process),
            Err(error) => {
                ranks.iter_mut().for_each(Process::kill);
                return Err(error);
            }
        }
    }
    wait(&mut ranks, &signal)
}

/// Installs handlers for SIGINT and SIGTERM; returns the number of the last signal, 0 for none.
fn catch_signals() -> Result<Arc<AtomicUsize>> {
    let caught = Arc::new(AtomicUsize::new(0));
    #[cfg(unix)]
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_usize(signal, Arc::clone(&caught), signal as usize)
            .context("cannot install signal handlers")?;
    }
    Ok(caught)
}

/// A local rank.
struct Process {
    rank: String,
    child: Child,
    status: Option<ExitStatus>,
    echo: Option<JoinHandle<()>>,
}

impl Process {
    fn start(command: &mut Command, rank: String) -> Result<Self> {
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run `{}`", repo::command_line(command)))?;
        let echo = child.stderr.take().map(|stderr| {
            let rank = rank.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    status!("[rank {rank}] {line}");
                }
            })
        });
        Ok(Self { rank, child, status: None, echo })
    }

    /// Returns the exit status if the process has ended.
    fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    fn signal(&self, name: &str) {
        // Fails only if the process has just ended, which is fine.
        let id = self.child.id().to_string();
        let _ =
            Command::new("kill").args([&format!("-{name}"), &id]).stderr(Stdio::null()).status();
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until all ranks have ended; returns the exit code of the first that failed.
fn wait(ranks: &mut [Process], signal: &AtomicUsize) -> Result<ExitCode> {
    let (mut failed, mut deadline, mut forwarded) = (None, None, false);
    loop {
        for process in ranks.iter_mut().filter(|process| process.status.is_none()) {
            let Some(status) = process.poll() else { continue };
            if !status.success() && failed.is_none() {
                failed = Some(status);
                deadline = Some(Instant::now() + GRACE);
                if status.code().is_none() {
                    status!("error: rank {} was terminated: {status}", process.rank);
                }
            }
        }
        if ranks.iter().all(|process| process.status.is_some()) {
            break;
        }
        match signal.load(Ordering::Relaxed) {
            // The terminal sends SIGINT to all processes itself.
            15 if !forwarded => {
                forwarded = true;
                ranks.iter().filter(|p| p.status.is_none()).for_each(|p| p.signal("TERM"));
            }
            _ => {}
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            for process in ranks.iter_mut().filter(|process| process.status.is_none()) {
                status!("warning: killing rank {}, which did not stop in time", process.rank);
                process.kill();
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for echo in ranks.iter_mut().filter_map(|process| process.echo.take()) {
        let _ = echo.join();
    }
    let code = failed.map_or(0, |status| status.code().unwrap_or(1));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn two_ranks() -> LaunchArgs {
        LaunchArgs { nproc: Some(2), nnodes: 1, ..LaunchArgs::default() }
    }

    #[test]
    fn sets_torchrun_variables() {
        let mut args = LaunchArgs { nnodes: 2, node_rank: 1, ..two_ranks() };
        assert!(args.variables().unwrap_err().to_string().contains("--master"));
        args.master = Some("10.0.0.1:29500".into());
        let all = args.variables().unwrap();
        let last: Vec<String> =
            all[1].iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500";
        assert_eq!(last.join(" "), expected);
        args.node_rank = 2;
        assert!(args.variables().unwrap_err().to_string().contains("--node-rank 2"));
        assert_eq!(two_ranks().variables().unwrap()[0][4].1, "127.0.0.1");
    }

    #[test]
    #[cfg(unix)]
    fn failed_rank_stops_all() {
        let run = |script: &str| {
            let make = || {
                let mut command = Command::new("sh");
                command.args(["-c", script]);
                command
            };
            format!("{:?}", run(&two_ranks(), make).unwrap())
        };
        assert_eq!(run("exit 0"), format!("{:?}", ExitCode::SUCCESS));
        let code = format!("{:?}", ExitCode::from(7));
        assert_eq!(run("if [ $RANK = 1 ]; then echo no >&2; exit 7; fi; sleep 1; exit 3"), code);
    }
}
