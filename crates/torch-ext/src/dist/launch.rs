//! Launch parameters of a process, from the environment variables of torchrun, Kubeflow or Slurm.

use super::Error;

/// Rank, world size and rendezvous address of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Rank of this process, from 0.
    pub rank: usize,
    /// Number of ranks (world size).
    pub size: usize,
    /// Rank within this machine, from 0: the index of this process's GPU.
    pub local_rank: usize,
    /// Number of ranks on this machine; 1 if unknown.
    pub local_size: usize,
    /// Host of the store (`MASTER_ADDR`).
    pub host: String,
    /// Port of the store (`MASTER_PORT`).
    pub port: u16,
    /// True if the launcher's agent hosts the store (torchrun); otherwise rank 0 does.
    pub agent_store: bool,
    /// Prefix of all keys in the store, different for each (re)start.
    pub prefix: String,
}

/// First port and number of ports for Slurm, which assigns none: chosen by job ID.
const SLURM_PORTS: (u16, u16) = (20_000, 20_000);

impl Launch {
    /// Reads the variables of torchrun, Kubeflow or Slurm, in this order; `None` if none is set.
    ///
    /// # Errors
    /// [`Error::Launch`] if a variable is missing or invalid.
    pub fn from_env() -> Result<Option<Self>, Error> {
        Self::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        let variables = Variables { get };
        let launch = if get("RANK").is_some() || get("WORLD_SIZE").is_some() {
            variables.torchrun()?
        } else if get("PET_NNODES").is_some() {
            variables.kubeflow()?
        } else if get("SLURM_STEP_NODELIST").is_some() && get("SLURM_PROCID").is_some() {
            match variables.slurm()? {
                // An interactive shell is a step of one task.
                launch if launch.size == 1 => return Ok(None),
                launch => launch,
            }
        } else {
            return Ok(None);
        };
        let Self { rank, size, .. } = launch;
        if rank >= size {
            return Err(Error::Launch(format!(
                "rank {rank} is out of range for world size {size}; ranks count from 0"
            )));
        }
        Ok(Some(launch))
    }
}

struct Variables<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
}

impl Variables<'_> {
    fn text(&self, name: &str) -> Result<String, Error> {
        (self.get)(name).ok_or_else(|| {
            Error::Launch(format!(
                "{name} is not set, but other variables of the launcher are; set it, or unset those"
            ))
        })
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T, Error> {
        let text = self.text(name)?;
        text.parse().map_err(|_| Error::Launch(format!("{name}={text:?} is not a valid number")))
    }

    fn number_or<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, Error> {
        if (self.get)(name).is_some() { self.number(name) } else { Ok(default) }
    }

    fn torchrun(&self) -> Result<Launch, Error> {
        let (rank, size) = (self.number("RANK")?, self.number("WORLD_SIZE")?);
        let run = (self.get)("TORCHELASTIC_RUN_ID").unwrap_or_default();
        let restart: u64 = self.number_or("TORCHELASTIC_RESTART_COUNT", 0)?;
        Ok(Launch {
            rank,
            size,
            local_rank: self.number_or("LOCAL_RANK", 0)?,
            local_size: self.number_or("LOCAL_WORLD_SIZE", 1)?,
            host: self.text("MASTER_ADDR")?,
            port: self.number("MASTER_PORT")?,
            agent_store: (self.get)("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True"),
            prefix: format!("data2vec/{run}/{restart}"),
        })
    }

    /// Reads the `PET_*` variables that torchrun would read if it ran in the container.
    fn kubeflow(&self) -> Result<Launch, Error> {
        let per_node = (self.get)("PET_NPROC_PER_NODE").unwrap_or_else(|| "1".into());
        if per_node != "1" {
            return Err(Error::Launch(format!(
                "PET_NPROC_PER_NODE={per_node}, but data2vec runs as one process per node; set numProcPerNode to 1, or start it with `torchrun --no-python`"
            )));
        }
        Ok(Launch {
            rank: self.number_or("PET_NODE_RANK", 0)?,
            size: self.number("PET_NNODES")?,
            local_rank: 0,
            local_size: 1,
            host: self.text("PET_MASTER_ADDR")?,
            port: self.number("PET_MASTER_PORT")?,
            agent_store: false,
            prefix: "data2vec/kubeflow".into(),
        })
    }

    fn slurm(&self) -> Result<Launch, Error> {
        let nodes = self.text("SLURM_STEP_NODELIST")?;
        let job: u64 = self.number_or("SLURM_JOB_ID", 0)?;
        let step = (self.get)("SLURM_STEP_ID").unwrap_or_default();
        let size = match (self.get)("SLURM_STEP_NUM_TASKS") {
            Some(_) => self.number("SLURM_STEP_NUM_TASKS")?,
            None => self.number("SLURM_NTASKS")?,
        };
        // `4`, or `4(x2),3` for several nodes: only tells whether all tasks are on this node.
        let tasks = (self.get)("SLURM_STEP_TASKS_PER_NODE").unwrap_or_default();
        let local_size = if tasks == format!("{size}") { size } else { 1 };
        let (first, count) = SLURM_PORTS;
        let host = match (self.get)("MASTER_ADDR") {
            Some(host) => host,
            None => first_host(&nodes).ok_or_else(|| {
                Error::Launch(format!(
                    "SLURM_STEP_NODELIST={nodes:?} contains no host; set MASTER_ADDR"
                ))
            })?,
        };
        Ok(Launch {
            rank: self.number("SLURM_PROCID")?,
            size,
            local_rank: self.number("SLURM_LOCALID")?,
            local_size,
            host,
            port: self.number_or("MASTER_PORT", first + (job % u64::from(count)) as u16)?,
            agent_store: false,
            prefix: format!("data2vec/{job}.{step}"),
        })
    }
}

/// Returns the first host of a Slurm node list: `node03` of `node[03-05,09],other`.
fn first_host(nodes: &str) -> Option<String> {
    let Some((before, rest)) = nodes.split_once('[') else {
        return nodes.split(',').next().filter(|host| !host.is_empty()).map(str::to_owned);
    };
    if let Some((host, _)) = before.split_once(',') {
        return Some(host.to_owned());
    }
    let (inside, after) = rest.split_once(']')?;
    let number = inside.split([',', '-']).next()?;
    let after = after.split(',').next()?;
    Some(format!("{before}{number}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>, Error> {
        let get = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Launch::from_variables(&get)
    }

    fn launch_error(variables: &[(&str, &str)]) -> String {
        read(variables).expect_err("invalid variables").to_string()
    }

    #[test]
    fn no_launch_without_variables() {
        assert_eq!(read(&[]).expect("nothing is set"), None);
        // A batch script outside of srun is not a step.
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).expect("no step"), None);
    }

    const TORCHRUN: [(&str, &str); 6] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "10.0.0.1"),
        ("MASTER_PORT", "29501"),
    ];

    #[test]
    fn reads_torchrun_variables() {
        let expected = Launch {
            rank: 5,
            size: 8,
            local_rank: 1,
            local_size: 4,
            host: "10.0.0.1".into(),
            port: 29_501,
            agent_store: false,
            prefix: "data2vec//0".into(),
        };
        assert_eq!(read(&TORCHRUN).expect("valid variables"), Some(expected.clone()));
        let mut more = TORCHRUN.to_vec();
        more.extend([
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            ("TORCHELASTIC_RUN_ID", "x"),
            // Set by the agent for itself.
            ("PET_NNODES", "2"),
        ]);
        let expected = Launch { agent_store: true, prefix: "data2vec/x/2".into(), ..expected };
        assert_eq!(read(&more).expect("valid variables"), Some(expected));

        assert!(launch_error(&TORCHRUN[1..]).contains("RANK is not set"));
        assert!(launch_error(&TORCHRUN[..5]).contains("MASTER_PORT is not set"));
        let mut invalid = TORCHRUN;
        invalid[0].1 = "8";
        assert!(launch_error(&invalid).contains("rank 8 is out of range for world size 8"));
        invalid[1].1 = "many";
        assert!(launch_error(&invalid).contains("WORLD_SIZE=\"many\""));
    }

    #[test]
    fn reads_kubeflow_variables() {
        let mut variables = vec![
            ("PET_NNODES", "3"),
            ("PET_NPROC_PER_NODE", "1"),
            ("PET_NODE_RANK", "2"),
            ("PET_MASTER_ADDR", "job-0"),
            ("PET_MASTER_PORT", "29400"),
        ];
        let launch = read(&variables).expect("valid variables").expect("a group");
        assert_eq!((launch.rank, launch.size, launch.local_size), (2, 3, 1));
        assert_eq!((launch.host.as_str(), launch.port), ("job-0", 29_400));
        variables[1].1 = "8";
        assert!(launch_error(&variables).contains("torchrun --no-python"));
    }

    #[test]
    fn reads_slurm_variables() {
        let mut variables = vec![
            ("SLURM_PROCID", "3"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_STEP_NODELIST", "gpu[07-08]"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
            ("SLURM_JOB_ID", "123456"),
        ];
        let launch = read(&variables).expect("valid variables").expect("a group");
        assert_eq!((launch.rank, launch.size, launch.local_rank, launch.local_size), (3, 4, 1, 1));
        assert_eq!((launch.host.as_str(), launch.port), ("gpu07", 23_456));
        variables[2].1 = "1";
        variables[0].1 = "0";
        assert_eq!(read(&variables).expect("an interactive shell"), None);
    }

    #[test]
    fn first_host_of_node_lists() {
        let cases = [
            ("n1", "n1"),
            ("n1,n2", "n1"),
            ("n[3,5]", "n3"),
            ("n[03-05,09]-ib,m1", "n03-ib"),
            ("a,n[1-2]", "a"),
        ];
        for (nodes, host) in cases {
            assert_eq!(first_host(nodes).as_deref(), Some(host));
        }
        assert_eq!(first_host(""), None);
        assert_eq!(first_host("n[1"), None);
    }
}
