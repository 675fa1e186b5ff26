//! Compiles the C++ shim against the LibTorch that torch-sys found.

use std::path::{Path, PathBuf};

/// C++ files that compile against every LibTorch.
const FILES: [&str; 11] = [
    "attention",
    "checkpoint",
    "dropout",
    "foreach",
    "linear",
    "memory",
    "moments",
    "norm",
    "precision",
    "process",
    "profile",
];

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    for name in ["LIBTORCH_INCLUDE", "DATA2VEC_CUDA_INCLUDE"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // With `doc-only` there is no LibTorch to compile against, and nothing is linked.
    if std::env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() {
        return;
    }
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys sets DEP_TCH_LIBTORCH_LIB");
    let root = match std::env::var("LIBTORCH_INCLUDE") {
        Ok(root) => PathBuf::from(root),
        Err(_) => Path::new(&lib).join(".."),
    };
    let mut build = compiler(&root);
    for flag in [
        "-O3",
        // Allow reordered sums, so that loops vectorise; infinities and NaN keep their meaning.
        "-fassociative-math",
        "-fno-signed-zeros",
        "-fno-trapping-math",
        "-fno-math-errno",
    ] {
        build.flag(flag);
    }
    build.files(FILES.map(|name| format!("cpp/{name}.cpp"))).compile("data2vec_torch_ext");
    println!("cargo:rustc-link-search=native={lib}");
    let nccl = process_groups(&root, Path::new(&lib));
    if nccl {
        // No symbol of it is used: it registers its hooks when it is loaded.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-lib=torch_cuda");
        println!("cargo:rustc-link-lib=c10_cuda");
    }
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}

/// Returns the compiler settings common to all files.
fn compiler(root: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        // Debug information of LibTorch's headers is thirty times the size of the code, in every
        // program.
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // As LibTorch was compiled: without it, some of its classes have more members.
        .define("NDEBUG", None)
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"));
    build
}

/// Compiles the process groups, or stubs that return errors. Returns true if NCCL is included.
fn process_groups(root: &Path, lib: &Path) -> bool {
    let wanted = std::env::var_os("CARGO_FEATURE_DISTRIBUTED").is_some();
    let header = "include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp";
    // On other systems LibTorch's Gloo uses a different transport, which is untested.
    let available = root.join(header).exists()
        && std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if wanted && !available {
        println!(
            "cargo:warning=this LibTorch has no process groups: distributed training is disabled"
        );
    }
    let mut build = compiler(root);
    build.flag("-O2");
    if !(wanted && available) {
        build.file("cpp/dist_absent.cpp").compile("data2vec_torch_ext_dist");
        return false;
    }
    build.define("USE_C10D_GLOO", None).include("cpp/stubs").files(["cpp/dist.cpp", "cpp/ddp.cpp"]);
    let nccl = nccl_includes(root, lib);
    if let Some(includes) = &nccl {
        build.define("USE_C10D_NCCL", None).includes(includes);
    }
    build.compile("data2vec_torch_ext_dist");
    nccl.is_some()
}

/// Returns the include directories of NCCL and CUDA, if LibTorch has CUDA.
///
/// `DATA2VEC_CUDA_INCLUDE` adds directories.
fn nccl_includes(root: &Path, lib: &Path) -> Option<Vec<PathBuf>> {
    if !lib.join("libtorch_cuda.so").exists() {
        return None;
    }
    let more = std::env::var_os("DATA2VEC_CUDA_INCLUDE").unwrap_or_default();
    let mut includes: Vec<PathBuf> = std::env::split_paths(&more).collect();
    // Next to the torch Python package, and in a CUDA toolkit.
    for dir in ["../nvidia/cu13/include", "../nvidia/nccl/include"] {
        includes.push(root.join(dir));
    }
    for toolkit in
        [std::env::var_os("CUDA_HOME").map(PathBuf::from), Some("/usr/local/cuda".into())]
    {
        includes.extend(toolkit.map(|toolkit| toolkit.join("include")));
    }
    includes.push("/usr/include".into());
    let found = |name: &str| includes.iter().any(|dir| dir.join(name).exists());
    // The last two are separate packages: nvidia-cuda-crt, nvidia-cuda-cccl.
    let needed = ["nccl.h", "cuda_runtime.h", "crt/host_config.h", "nv/target"];
    let missing: Vec<&str> =
        needed.into_iter().filter(|name| !found(name) && !found(&format!("cccl/{name}"))).collect();
    if !missing.is_empty() {
        println!(
            "cargo:warning=LibTorch has CUDA, but these headers were not found: {}; training on several GPUs is disabled. Set DATA2VEC_CUDA_INCLUDE to their directories",
            missing.join(", ")
        );
        return None;
    }
    let cccl: Vec<PathBuf> = includes.iter().map(|dir| dir.join("cccl")).collect();
    includes.extend(cccl);
    includes.retain(|dir| dir.is_dir() && dir != Path::new("/usr/include"));
    Some(includes)
}
