//! Process groups: the test starts its own executable once per rank.

#![cfg(all(target_os = "linux", feature = "distributed"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use data2vec_torch_ext::dist::{Backend, Ddp, Error, Launch, ProcessGroup, Reduce};
use tch::{Device, Kind, Tensor};

const TASK: &str = "DATA2VEC_DIST_TASK";

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts rank `rank` of `size` with `task`.
fn spawn_rank(task: &str, rank: usize, size: usize, port: u16) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "run_rank", "--nocapture"])
        .env(TASK, task)
        .env("OMP_NUM_THREADS", "1");
    for (name, value) in [
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", size.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("LOCAL_WORLD_SIZE", size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".into()),
        ("MASTER_PORT", port.to_string()),
    ] {
        command.env(name, value);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs all ranks; returns whether each succeeded, and its output.
fn run_all(task: &str, size: usize) -> Vec<(bool, String)> {
    let port = free_port();
    let children: Vec<Child> = (0..size).map(|r| spawn_rank(task, r, size, port)).collect();
    let wait = |child: Child| {
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    children.into_iter().map(wait).collect()
}

fn group(seconds: u64) -> ProcessGroup {
    ProcessGroup::from_env(Backend::Gloo, Duration::from_secs(seconds)).unwrap().unwrap()
}

/// Runs a rank's task in a child process; does nothing in the test process.
#[test]
fn run_rank() {
    let Ok(task) = std::env::var(TASK) else { return };
    match task.as_str() {
        "collectives" => collectives(&group(20)),
        "gradients" => gradients(&group(20)),
        "exits" | "hangs" => peer_fails(task == "hangs", "all_reduce", &|group, _| {
            group.all_reduce(&[Tensor::from(1.0)], Reduce::Sum)
        }),
        "exits in backward" | "hangs in backward" => {
            peer_fails(task.starts_with("hangs"), "gradients", &|group, x| {
                Ddp::new(group, &[x.shallow_clone()])?.backward(group, &(x * 2.0))
            });
        }
        other => panic!("no task {other}"),
    }
}

/// Checks rank 0's error when rank 1 exits or hangs before `exchange`.
fn peer_fails(
    hangs: bool,
    collective: &str,
    exchange: &dyn Fn(&ProcessGroup, &Tensor) -> Result<(), Error>,
) {
    let group = group(if hangs { 2 } else { 20 });
    let x = Tensor::from(1.0_f32).set_requires_grad(true);
    group.barrier().unwrap();
    if group.rank() == 1 {
        if hangs {
            std::thread::sleep(Duration::from_secs(5));
        }
        std::process::exit(0);
    }
    let start = Instant::now();
    let error = exchange(&group, &x).unwrap_err().to_string();
    assert!(error.starts_with(&format!("rank 0: {collective}: ")), "{error}");
    assert!(!error.contains('\n'), "{error}");
    let took = start.elapsed();
    match hangs {
        false => assert!(took < Duration::from_secs(2), "{took:?}: {error}"),
        true => assert!(took > Duration::from_secs(1), "{took:?}: {error}"),
    }
}

fn collectives(group: &ProcessGroup) {
    let (rank, size) = (group.rank() as i64, group.size() as i64);
    let sum = size * (size - 1) / 2;
    for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int] {
        let x = Tensor::full([3, 2], rank, (kind, Device::Cpu));
        group.all_reduce(&[x.shallow_clone()], Reduce::Sum).unwrap();
        assert_eq!(x.double_value(&[2, 1]), sum as f64, "{kind:?}");
    }
    let x = Tensor::from(rank);
    group.all_reduce(&[x.shallow_clone()], Reduce::Max).unwrap();
    assert_eq!(x.int64_value(&[]), size - 1);

    // More than a bucket, of several kinds and shapes, one tensor not contiguous.
    let big = Tensor::full([7 << 20], rank, (Kind::Float, Device::Cpu));
    let transposed = Tensor::full([4, 3], rank, (Kind::Float, Device::Cpu)).tr();
    let integers = Tensor::full([2, 2], rank, (Kind::Int64, Device::Cpu));
    let last = Tensor::full([5], 1.5, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let list = [big, transposed, integers, last].map(|x| x.shallow_clone());
    group.all_reduce(&list, Reduce::Sum).unwrap();
    for (x, expected) in list.iter().zip([sum as f64, sum as f64, sum as f64, 1.5 * size as f64]) {
        let x = x.detach().to_kind(Kind::Double);
        assert_eq!([x.min().double_value(&[]), x.max().double_value(&[])], [expected, expected]);
    }

    group.broadcast(&list, size as usize - 1).unwrap();
    let mine = Tensor::from_slice(&[rank, rank + 10]);
    let all = group.all_gather(&mine).unwrap();
    assert_eq!(all.size(), [size, 2]);
    assert_eq!(all.int64_value(&[size - 1, 1]), size + 9);
    let parts = Tensor::arange(2 * size, (Kind::Float, Device::Cpu)).reshape([size, 2]);
    let part = group.reduce_scatter(&parts).unwrap();
    assert_eq!(Vec::<f32>::try_from(&part).unwrap()[0], (2 * rank * size) as f32);
    let error = group.reduce_scatter(&Tensor::zeros([size + 1], (Kind::Float, Device::Cpu)));
    assert!(error.unwrap_err().to_string().contains("number of ranks"));

    group.barrier().unwrap();
    group.monitored_barrier(Duration::from_secs(10)).unwrap();
    let texts = group.all_gather_str(&format!("{rank} ä")).unwrap();
    assert_eq!(texts.last().unwrap(), &format!("{} ä", size - 1));
    assert_eq!(group.all_gather_str("").unwrap(), vec![""; size as usize]);
    let store = group.store();
    assert!(!store.has("nothing").unwrap());
    let error = store.get("nothing", Duration::from_millis(50)).unwrap_err().to_string();
    assert!(error.contains("store.get: `nothing`"), "{error}");
    store.add("count", 2).unwrap();
    group.barrier().unwrap();
    assert_eq!(store.add("count", 0).unwrap(), 2 * size);
    assert!(group.collective_time() > Duration::ZERO);
    group.barrier().unwrap(); // rank 0 hosts the store
    group.leave().unwrap();
    assert!(group.barrier().unwrap_err().to_string().contains("left"));
}

/// Compares gradient sums over ranks and micro-batches with their values, with unused parameters.
fn gradients(group: &ProcessGroup) {
    let (rank, size) = (group.rank() as f64, group.size() as f64);
    let var = |n: i64| Tensor::ones([n], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    // Larger than a bucket; used by all ranks; only by rank 0; by none.
    let params = [var(8 << 20), var(3), var(2), var(5)];
    let ddp = Ddp::new(group, &params).unwrap();
    let [big, all, first, none] = &params;
    let loss = |factor: f64| {
        let loss =
            (big * factor).sum(Kind::Float) + (all * (factor * (rank + 1.0))).sum(Kind::Float);
        if group.rank() == 0 { loss + (first * factor).sum(Kind::Float) } else { loss }
    };
    for step in 1..4 {
        for param in &params {
            param.shallow_clone().zero_grad();
        }
        let factor = f64::from(step);
        loss(10.0 * factor).backward(); // an earlier micro-batch
        ddp.backward(group, &loss(factor)).unwrap();
        let grad = |param: &Tensor| {
            let grad = param.grad();
            assert_eq!(grad.min(), grad.max());
            grad.double_value(&[0])
        };
        let factor = 11.0 * factor;
        assert_eq!(grad(big), factor * size);
        assert_eq!(grad(all), factor * size * (size + 1.0) / 2.0);
        assert_eq!(grad(first), factor);
        assert!(!none.grad().defined() || grad(none) == 0.0);
    }
    // A local failure is not a collective's.
    let error = ddp.backward(group, &all.detach().sum(Kind::Float)).unwrap_err();
    assert!(matches!(error, Error::Torch(_)), "{error}");
    group.leave().unwrap();
    let error = ddp.backward(group, &loss(1.0)).unwrap_err().to_string();
    assert!(error.contains("has left the group"), "{error}");
    assert!(Ddp::new(group, &params).is_err());
}

#[test]
fn gradients_are_summed_over_1_2_and_4_ranks() {
    for size in [1, 2, 4] {
        for (success, output) in run_all("gradients", size) {
            assert!(success, "{output}");
        }
    }
}

#[test]
fn collectives_over_1_2_and_4_ranks() {
    for size in [1, 2, 4] {
        for (rank, (success, output)) in run_all("collectives", size).into_iter().enumerate() {
            assert!(success, "rank {rank} of {size}: {output}");
        }
    }
}

#[test]
fn exited_or_hanging_rank_is_an_error_in_time() {
    for task in ["exits", "hangs", "exits in backward", "hangs in backward"] {
        let (success, output) = run_all(task, 2).remove(0);
        assert!(success, "{task}: {output}");
    }
}

#[test]
fn missing_rank_is_an_error() {
    let launch = Launch {
        rank: 1,
        size: 2,
        local_rank: 1,
        local_size: 2,
        host: "127.0.0.1".into(),
        port: free_port(),
        agent_store: false,
        prefix: "x".into(),
    };
    let short = Duration::from_millis(300);
    let error = ProcessGroup::new(launch.clone(), Backend::Gloo, short).unwrap_err().to_string();
    assert!(error.starts_with("rank 1: init_process_group: 127.0.0.1:"), "{error}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let first = Launch { rank: 0, local_rank: 0, port, ..launch.clone() };
    let error = ProcessGroup::new(first, Backend::Gloo, short).unwrap_err().to_string();
    assert!(error.contains(&port.to_string()), "{error}");
    if !Backend::Nccl.is_available() {
        let error = ProcessGroup::new(launch, Backend::Nccl, short).unwrap_err().to_string();
        assert!(error.contains("NCCL"), "{error}");
    }
}

/// LibTorch's headers use Gloo's classes, which `cpp/stubs` only declares: no Gloo symbol may be
/// linked, nor the vtable of a LibTorch class with Gloo members.
#[test]
fn no_gloo_symbol_is_linked() {
    let nm = Command::new("nm").args(["-D", "-u"]).arg(std::env::current_exe().unwrap()).output();
    let Ok(nm) = nm else { return }; // no binutils
    let symbols = String::from_utf8_lossy(&nm.stdout).into_owned();
    assert!(symbols.contains("ProcessGroupGloo"), "{symbols}");
    for wrong in ["_ZN4gloo", "_ZNK4gloo", "_ZTVN4c10d16ProcessGroupGlooE"] {
        assert!(!symbols.contains(wrong), "{wrong}");
    }
}
