//! Compiles the C++ shim against the LibTorch that torch-sys found.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    // With `doc-only` there is no LibTorch to compile against, and nothing is linked.
    if std::env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() {
        return;
    }
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("torch-sys tells where LibTorch's libraries are");
    let root = match std::env::var("LIBTORCH_INCLUDE") {
        Ok(root) => root,
        Err(_) => Path::new(&lib).join("..").display().to_string(),
    };
    let files = [
        "attention",
        "checkpoint",
        "dropout",
        "foreach",
        "linear",
        "memory",
        "precision",
        "process",
        "profile",
    ];
    let mut build = cc::Build::new();
    for flag in [
        "-O3",
        // Sums in any order, so that loops use vectors; infinities stay what they are.
        "-fassociative-math",
        "-fno-signed-zeros",
        "-fno-trapping-math",
        "-fno-math-errno",
    ] {
        build.flag(flag);
    }
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // As LibTorch itself was: some of its classes have more members without.
        .define("NDEBUG", None)
        .include(format!("{root}/include"))
        .include(format!("{root}/include/torch/csrc/api/include"))
        .files(files.map(|name| format!("cpp/{name}.cpp")))
        .compile("data2vec_torch_ext");
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}
