//! What launchers tell a process about the others.

use super::Error;

/// The place of a process among those that were started together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Number of this process, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Number among those of this machine, from 0: which GPU is its own.
    pub local_rank: usize,
    /// How many are on this machine.
    pub local_size: usize,
    /// Where they meet.
    pub host: String,
    /// See `host`.
    pub port: u16,
    /// Whether the launcher keeps the store there; otherwise rank 0 does.
    pub served: bool,
    /// Before all keys of the store: another one for each start.
    pub prefix: String,
}

/// Slurm gives no port: one of these, by the job's number.
const SLURM_PORTS: (u16, u16) = (20_000, 20_000);

impl Launch {
    /// From the variables of torchrun, Kubeflow or Slurm, in this order; `None`: none of them is set.
    ///
    /// # Errors
    /// [`Error::Launch`] if one is missing or makes no sense.
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
                // An interactive shell is a step as well.
                launch if launch.size == 1 => return Ok(None),
                launch => launch,
            }
        } else {
            return Ok(None);
        };
        let Self { rank, size, .. } = launch;
        if rank >= size {
            return Err(Error::Launch(format!("rank {rank} of {size} processes: counted from 0")));
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
                "{name} is not set, but other variables of a launcher are: set it, or unset them"
            ))
        })
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T, Error> {
        let text = self.text(name)?;
        text.parse().map_err(|_| Error::Launch(format!("{name} = {text:?} is no such number")))
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
            served: (self.get)("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True"),
            prefix: format!("data2vec/{run}/{restart}"),
        })
    }

    /// The variables that torchrun would read in the container, where `data2vec` runs itself.
    fn kubeflow(&self) -> Result<Launch, Error> {
        let each = (self.get)("PET_NPROC_PER_NODE").unwrap_or_else(|| "1".into());
        if each != "1" {
            return Err(Error::Launch(format!(
                "PET_NPROC_PER_NODE = {each}: this program is one process; set numProcPerNode: 1, or run it by `torchrun --no-python`"
            )));
        }
        Ok(Launch {
            rank: self.number_or("PET_NODE_RANK", 0)?,
            size: self.number("PET_NNODES")?,
            local_rank: 0,
            local_size: 1,
            host: self.text("PET_MASTER_ADDR")?,
            port: self.number("PET_MASTER_PORT")?,
            served: false,
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
        // `4`, or `4(x2),3` where nodes differ: how many are here is not told, but whether all are is.
        let each = (self.get)("SLURM_STEP_TASKS_PER_NODE").unwrap_or_default();
        let local_size = if each == format!("{size}") { size } else { 1 };
        let (first, count) = SLURM_PORTS;
        let host = match (self.get)("MASTER_ADDR") {
            Some(host) => host,
            None => first_host(&nodes).ok_or_else(|| {
                Error::Launch(format!("SLURM_STEP_NODELIST = {nodes:?} names no host"))
            })?,
        };
        Ok(Launch {
            rank: self.number("SLURM_PROCID")?,
            size,
            local_rank: self.number("SLURM_LOCALID")?,
            local_size,
            host,
            port: self.number_or("MASTER_PORT", first + (job % u64::from(count)) as u16)?,
            served: false,
            prefix: format!("data2vec/{job}.{step}"),
        })
    }
}

/// Of `node[03-05,09],other`: `node03`.
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

    fn refused(variables: &[(&str, &str)]) -> String {
        read(variables).expect_err("variables without sense").to_string()
    }

    #[test]
    fn alone_without_variables() {
        assert_eq!(read(&[]).expect("nothing is set"), None);
        // A batch script that runs outside of srun is no step.
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
    fn torchrun() {
        let expected = Launch {
            rank: 5,
            size: 8,
            local_rank: 1,
            local_size: 4,
            host: "10.0.0.1".into(),
            port: 29_501,
            served: false,
            prefix: "data2vec//0".into(),
        };
        assert_eq!(read(&TORCHRUN).expect("good variables"), Some(expected.clone()));
        let mut more = TORCHRUN.to_vec();
        more.extend([
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            ("TORCHELASTIC_RUN_ID", "x"),
            // The agent's own.
            ("PET_NNODES", "2"),
        ]);
        let expected = Launch { served: true, prefix: "data2vec/x/2".into(), ..expected };
        assert_eq!(read(&more).expect("good variables"), Some(expected));

        assert!(refused(&TORCHRUN[1..]).contains("RANK is not set"));
        assert!(refused(&TORCHRUN[..5]).contains("MASTER_PORT is not set"));
        let mut far = TORCHRUN;
        far[0].1 = "8";
        assert!(refused(&far).contains("rank 8 of 8"));
        far[1].1 = "many";
        assert!(refused(&far).contains("WORLD_SIZE = \"many\""));
    }

    #[test]
    fn kubeflow() {
        let mut variables = vec![
            ("PET_NNODES", "3"),
            ("PET_NPROC_PER_NODE", "1"),
            ("PET_NODE_RANK", "2"),
            ("PET_MASTER_ADDR", "job-0"),
            ("PET_MASTER_PORT", "29400"),
        ];
        let launch = read(&variables).expect("good variables").expect("a group");
        assert_eq!((launch.rank, launch.size, launch.local_size), (2, 3, 1));
        assert_eq!((launch.host.as_str(), launch.port), ("job-0", 29_400));
        variables[1].1 = "8";
        assert!(refused(&variables).contains("torchrun --no-python"));
    }

    #[test]
    fn slurm() {
        let mut variables = vec![
            ("SLURM_PROCID", "3"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_STEP_NODELIST", "gpu[07-08]"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
            ("SLURM_JOB_ID", "123456"),
        ];
        let launch = read(&variables).expect("good variables").expect("a group");
        assert_eq!((launch.rank, launch.size, launch.local_rank, launch.local_size), (3, 4, 1, 1));
        assert_eq!((launch.host.as_str(), launch.port), ("gpu07", 23_456));
        variables[2].1 = "1";
        variables[0].1 = "0";
        assert_eq!(read(&variables).expect("an interactive shell"), None);
    }

    #[test]
    fn first_hosts() {
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
