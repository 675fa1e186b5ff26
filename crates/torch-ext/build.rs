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
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .pic(true)
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(format!("{root}/include"))
        .include(format!("{root}/include/torch/csrc/api/include"))
        .file("cpp/foreach.cpp")
        .file("cpp/process.cpp")
        .compile("data2vec_torch_ext");
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}
