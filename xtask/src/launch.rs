//! One run on several processes: starts those of this machine, and ends all when one fails.

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

/// How long the others have to say what happened when one process has failed, and to save when told to stop.
const GRACE: Duration = Duration::from_secs(20);

/// On how many processes.
#[derive(Clone, Debug, Default, Args)]
pub struct Processes {
    /// Processes on this machine; they share each step's batches (train.accumulate)
    #[arg(long, value_name = "N")]
    pub nproc: Option<usize>,
    /// Machines; the same command has to run on each
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub nnodes: usize,
    /// Number of this machine, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub node_rank: usize,
    /// Where the processes of several machines meet: machine 0, and a free port of it
    #[arg(long, value_name = "ADDR:PORT")]
    pub master: Option<String>,
}

impl Processes {
    /// Whether there are others to be met.
    pub fn is_one(&self) -> bool {
        self.nproc.is_none() && self.nnodes <= 1
    }

    /// The variables of each process of this machine, as torchrun sets them.
    fn variables(&self) -> Result<Vec<Vec<(&'static str, String)>>> {
        let (here, nodes, node) = (self.nproc.unwrap_or(1), self.nnodes, self.node_rank);
        ensure!(here > 0 && nodes > 0, "--nproc and --nnodes: at least 1");
        ensure!(node < nodes, "--node-rank {node}: counted from 0, of --nnodes {nodes}");
        let (address, port) = match (&self.master, nodes) {
            (Some(master), _) => {
                let (address, port) = master.rsplit_once(':').context("--master: not ADDR:PORT")?;
                let port: u16 = port.parse().with_context(|| format!("--master: port {port:?}"))?;
                (address.to_owned(), port)
            }
            (None, 1) => ("127.0.0.1".to_owned(), free_port()?),
            (None, _) => bail!("--nnodes {nodes}: --master ADDR:PORT tells where they meet"),
        };
        let of = |local: usize| {
            vec![
                ("RANK", (node * here + local).to_string()),
                ("WORLD_SIZE", (nodes * here).to_string()),
                ("LOCAL_RANK", local.to_string()),
                ("LOCAL_WORLD_SIZE", here.to_string()),
                ("MASTER_ADDR", address.clone()),
                ("MASTER_PORT", port.to_string()),
            ]
        };
        Ok((0..here).map(of).collect())
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// Becomes the command that `make` makes, or runs it as often as `processes` says.
pub fn run(processes: &Processes, make: impl Fn() -> Command) -> Result<ExitCode> {
    if processes.is_one() {
        return repo::become_command(&mut make());
    }
    let variables = processes.variables()?;
    let signal = listen()?;
    let mut all = Vec::new();
    for variables in variables {
        let mut command = make();
        // Together they have the cores of one.
        if std::env::var_os("OMP_NUM_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let each = (cores / processes.nproc.unwrap_or(1)).max(1);
            command.env("OMP_NUM_THREADS", each.to_string());
        }
        let rank = variables[0].1.clone();
        if rank == "0" {
            tell!("$ {}", repo::line(&command));
        } else {
            command.stderr(Stdio::piped());
        }
        command.envs(variables);
        match Process::start(&mut command, rank) {
            Ok(process) => all.push(process),
            Err(error) => {
                all.iter_mut().for_each(Process::kill);
                return Err(error);
            }
        }
    }
    wait(&mut all, &signal)
}

/// The number of a signal that asks this tool to stop; 0: none has come.
fn listen() -> Result<Arc<AtomicUsize>> {
    let caught = Arc::new(AtomicUsize::new(0));
    #[cfg(unix)]
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_usize(signal, Arc::clone(&caught), signal as usize)
            .context("cannot listen to signals")?;
    }
    Ok(caught)
}

struct Process {
    rank: String,
    child: Child,
    status: Option<ExitStatus>,
    echo: Option<JoinHandle<()>>,
}

impl Process {
    fn start(command: &mut Command, rank: String) -> Result<Self> {
        let mut child =
            command.spawn().with_context(|| format!("cannot run `{}`", repo::line(command)))?;
        let echo = child.stderr.take().map(|stderr| {
            let rank = rank.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    tell!("[rank {rank}] {line}");
                }
            })
        });
        Ok(Self { rank, child, status: None, echo })
    }

    /// How it ended, if it has.
    fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    fn signal(&self, name: &str) {
        // That it has just ended is no failure.
        let id = self.child.id().to_string();
        let _ =
            Command::new("kill").args([&format!("-{name}"), &id]).stderr(Stdio::null()).status();
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until all have ended; the exit code of the first that failed.
fn wait(all: &mut [Process], signal: &AtomicUsize) -> Result<ExitCode> {
    let (mut failed, mut until, mut forwarded) = (None, None, false);
    loop {
        for process in all.iter_mut().filter(|process| process.status.is_none()) {
            let Some(status) = process.poll() else { continue };
            if !status.success() && failed.is_none() {
                failed = Some(status);
                until = Some(Instant::now() + GRACE);
                if status.code().is_none() {
                    tell!("error: rank {} was ended: {status}", process.rank);
                }
            }
        }
        if all.iter().all(|process| process.status.is_some()) {
            break;
        }
        match signal.load(Ordering::Relaxed) {
            // The terminal has sent SIGINT to all of them.
            15 if !forwarded => {
                forwarded = true;
                all.iter().filter(|p| p.status.is_none()).for_each(|p| p.signal("TERM"));
            }
            _ => {}
        }
        if until.is_some_and(|until| Instant::now() > until) {
            for process in all.iter_mut().filter(|process| process.status.is_none()) {
                tell!("note: rank {} did not end by itself", process.rank);
                process.kill();
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for echo in all.iter_mut().filter_map(|process| process.echo.take()) {
        let _ = echo.join();
    }
    let code = failed.map_or(0, |status| status.code().unwrap_or(1));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn two() -> Processes {
        Processes { nproc: Some(2), nnodes: 1, ..Processes::default() }
    }

    #[test]
    fn each_process_knows_its_place() {
        let mut processes = Processes { nnodes: 2, node_rank: 1, ..two() };
        assert!(processes.variables().unwrap_err().to_string().contains("--master"));
        processes.master = Some("10.0.0.1:29500".into());
        let all = processes.variables().unwrap();
        let last: Vec<String> =
            all[1].iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500";
        assert_eq!(last.join(" "), expected);
        processes.node_rank = 2;
        assert!(processes.variables().unwrap_err().to_string().contains("--node-rank 2"));
        assert_eq!(two().variables().unwrap()[0][4].1, "127.0.0.1");
    }

    #[test]
    #[cfg(unix)]
    fn one_that_fails_ends_all() {
        let run = |script: &str| {
            let make = || {
                let mut command = Command::new("sh");
                command.args(["-c", script]);
                command
            };
            format!("{:?}", run(&two(), make).unwrap())
        };
        assert_eq!(run("exit 0"), format!("{:?}", ExitCode::SUCCESS));
        let code = format!("{:?}", ExitCode::from(7));
        assert_eq!(run("if [ $RANK = 1 ]; then echo no >&2; exit 7; fi; sleep 1; exit 3"), code);
    }
}
