//! Wheels that contain LibTorch, the files to extract from them, and their SHA-256.

use anyhow::{Result, bail};

use super::VERSION;

/// Parts of LibTorch for one platform.
#[derive(Debug)]
pub struct Platform {
    /// Platform tags that pip accepts.
    pub tags: &'static [&'static str],
    /// Wheels, all required.
    pub wheels: &'static [Pin],
    /// Replace `libtorch.so`, which needs CUDA in these wheels, by a linker script.
    pub linker_script: bool,
}

/// A pinned wheel.
#[derive(Debug)]
pub struct Pin {
    /// Package, with `==VERSION` unless its version is that of torch.
    pub requirement: &'static str,
    /// SHA-256 of the wheel.
    pub sha256: &'static str,
    /// SHA-256 of the wheel's `RECORD`.
    pub record: &'static str,
    /// Files, or directories with a trailing `/`, and their destinations.
    pub take: &'static [(&'static str, &'static str)],
}

/// Linux on x86-64.
pub const LINUX_X86_64: Platform = Platform {
    tags: &["manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_25_x86_64"],
    wheels: &[
        Pin {
            requirement: "torch",
            sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
            record: "86b11de9e81e378fe38d68644e581b98c138494d67197b94ba12eade2be836e7",
            take: &[
                ("torch/include/", "include/"),
                ("torch/lib/libc10.so", "lib/libc10.so"),
                ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
                ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
            ],
        },
        Pin {
            requirement: "nvidia-cuda-runtime==13.0.96",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            record: "34c7a65651597fd8a376b049b69bb26db399a9ea443a7a142ccd34f5a10f79c4",
            take: &[("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13")],
        },
        Pin {
            requirement: "nvidia-cuda-cupti==13.0.85",
            sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
            record: "f8ae8ddce85f8e319abac90e956bf45a572e31f4ff01af2d634f37aa3d78e3eb",
            take: &[("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")],
        },
    ],
    linker_script: true,
};

/// Linux on ARM64. Extracted and verified on x86-64, but never run.
pub const LINUX_AARCH64: Platform = Platform {
    tags: &["manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_25_aarch64"],
    wheels: &[
        Pin {
            requirement: "torch",
            sha256: "d91aac77f24082809d2c5a93f52a5f085032740a1ebc9252a7b052ef5a4fddc6",
            record: "e4931d1af224e3e69f194c46667e22898830ee09efb52489a3f90ff55e219b5e",
            take: &[
                ("torch/include/", "include/"),
                ("torch/lib/libarm_compute.so", "lib/libarm_compute.so"),
                ("torch/lib/libarm_compute_graph.so", "lib/libarm_compute_graph.so"),
                ("torch/lib/libc10.so", "lib/libc10.so"),
                ("torch/lib/libgfortran.so.5", "lib/libgfortran.so.5"),
                ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
                ("torch/lib/libnvpl_blas_core.so.0", "lib/libnvpl_blas_core.so.0"),
                ("torch/lib/libnvpl_blas_lp64_gomp.so.0", "lib/libnvpl_blas_lp64_gomp.so.0"),
                ("torch/lib/libnvpl_lapack_core.so.0", "lib/libnvpl_lapack_core.so.0"),
                ("torch/lib/libnvpl_lapack_lp64_gomp.so.0", "lib/libnvpl_lapack_lp64_gomp.so.0"),
                ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
            ],
        },
        Pin {
            requirement: "nvidia-cuda-runtime==13.0.96",
            sha256: "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
            record: "8ff0b015e7bb39dbf9cfc2a997cdb581914c6661dbbdbc1a71c7cc3da6a4dc11",
            take: &[("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13")],
        },
        Pin {
            requirement: "nvidia-cuda-cupti==13.0.85",
            sha256: "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
            record: "d26eaae605b8bd5e97a7355a3938d2213f2062f0f23d2afd1c00c9d8647cf4a6",
            take: &[("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")],
        },
    ],
    linker_script: true,
};

/// macOS on ARM64, without CUDA. Extracted and verified on Linux, but never run.
pub const MACOS_ARM64: Platform = Platform {
    tags: &["macosx_11_0_arm64"],
    wheels: &[Pin {
        requirement: "torch",
        sha256: "7b6a60d48062809f58595509c524b88e6ddec3ebe25833d6462eeab81e5f2ce4",
        record: "46fcc2b1098231cce593fc18eed1696bc5f4ec8a7c888c4c503390ad0df7c1b9",
        take: &[
            ("torch/include/", "include/"),
            ("torch/lib/libc10.dylib", "lib/libc10.dylib"),
            ("torch/lib/libomp.dylib", "lib/libomp.dylib"),
            ("torch/lib/libtorch.dylib", "lib/libtorch.dylib"),
            ("torch/lib/libtorch_cpu.dylib", "lib/libtorch_cpu.dylib"),
        ],
    }],
    linker_script: false,
};

/// Returns the platform of this machine.
pub fn platform() -> Result<&'static Platform> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok(&LINUX_X86_64),
        ("linux", "aarch64") => Ok(&LINUX_AARCH64),
        ("macos", "aarch64") => Ok(&MACOS_ARM64),
        (os, arch) => {
            bail!("no LibTorch {VERSION} is available for {os} {arch}; build it and set LIBTORCH")
        }
    }
}

impl Pin {
    /// Returns the requirement specifier for pip.
    pub fn requirement(&self) -> String {
        if self.requirement.contains("==") {
            self.requirement.to_owned()
        } else {
            format!("{}=={VERSION}", self.requirement)
        }
    }

    /// Returns the destination of a wheel member if it is selected.
    pub fn destination(&self, name: &str) -> Option<String> {
        self.take.iter().find_map(|(from, to)| match from.ends_with('/') {
            true => name.strip_prefix(from).map(|rest| format!("{to}{rest}")),
            false => (name == *from).then(|| (*to).to_owned()),
        })
    }
}
