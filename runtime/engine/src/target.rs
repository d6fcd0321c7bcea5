//! What machine code is made for: a processor, and what of it is used.
//!
//! A node compiles for itself and needs none of this. A hub compiles for edges, whose processors are others: an edge says what it has
//! ([`Target::host`]), the compiler uses no more than that, and the edge refuses code that does ([`Target::missing_on`]).

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What wasmtime does not write into its code: the version of it whose bugs and forms the code has, and what is ours. wasmtime compares all other
/// settings that matter with those that are written in the code. To be changed with `settings.rs`, and with wasmtime's first number.
pub(crate) const TERMS: &str = "wasmtime 48, skep code 1";

/// A name of the processor's makers, and that of the compiler's setting. What is not here is not used.
type Feature = (&'static str, &'static str);

/// As Cranelift 0.135 names them; the same that it looks for on its own machine.
const X86_64: &[Feature] = &[
    ("cmpxchg16b", "has_cmpxchg16b"),
    ("sse3", "has_sse3"),
    ("ssse3", "has_ssse3"),
    ("sse4.1", "has_sse41"),
    ("sse4.2", "has_sse42"),
    ("popcnt", "has_popcnt"),
    ("avx", "has_avx"),
    ("avx2", "has_avx2"),
    ("fma", "has_fma"),
    ("bmi1", "has_bmi1"),
    ("bmi2", "has_bmi2"),
    ("lzcnt", "has_lzcnt"),
    ("avx512bitalg", "has_avx512bitalg"),
    ("avx512dq", "has_avx512dq"),
    ("avx512f", "has_avx512f"),
    ("avx512vl", "has_avx512vl"),
    ("avx512vbmi", "has_avx512vbmi"),
];
const AARCH64: &[Feature] = &[
    ("lse", "has_lse"),
    ("fp16", "has_fp16"),
    ("dotprod", "has_dotprod"),
    ("i8mm", "has_i8mm"),
];

/// Whether this processor has a feature of the list of its kind.
#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    match feature {
        "cmpxchg16b" => std::is_x86_feature_detected!("cmpxchg16b"),
        "sse3" => std::is_x86_feature_detected!("sse3"),
        "ssse3" => std::is_x86_feature_detected!("ssse3"),
        "sse4.1" => std::is_x86_feature_detected!("sse4.1"),
        "sse4.2" => std::is_x86_feature_detected!("sse4.2"),
        "popcnt" => std::is_x86_feature_detected!("popcnt"),
        "avx" => std::is_x86_feature_detected!("avx"),
        "avx2" => std::is_x86_feature_detected!("avx2"),
        "fma" => std::is_x86_feature_detected!("fma"),
        "bmi1" => std::is_x86_feature_detected!("bmi1"),
        "bmi2" => std::is_x86_feature_detected!("bmi2"),
        "lzcnt" => std::is_x86_feature_detected!("lzcnt"),
        "avx512bitalg" => std::is_x86_feature_detected!("avx512bitalg"),
        "avx512dq" => std::is_x86_feature_detected!("avx512dq"),
        "avx512f" => std::is_x86_feature_detected!("avx512f"),
        "avx512vl" => std::is_x86_feature_detected!("avx512vl"),
        "avx512vbmi" => std::is_x86_feature_detected!("avx512vbmi"),
        _ => false,
    }
}

/// Whether this processor has a feature of the list of its kind.
#[cfg(target_arch = "aarch64")]
fn has(feature: &str) -> bool {
    match feature {
        "lse" => std::arch::is_aarch64_feature_detected!("lse"),
        "fp16" => std::arch::is_aarch64_feature_detected!("fp16"),
        "dotprod" => std::arch::is_aarch64_feature_detected!("dotprod"),
        "i8mm" => std::arch::is_aarch64_feature_detected!("i8mm"),
        _ => false,
    }
}

/// A kind of processor, with Linux on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cpu {
    #[serde(rename = "x86-64")]
    X86_64,
    Aarch64,
}

impl Cpu {
    /// Of this program.
    #[must_use]
    pub const fn own() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else {
            Self::X86_64
        }
    }

    fn features(self) -> &'static [Feature] {
        match self {
            Self::X86_64 => X86_64,
            Self::Aarch64 => AARCH64,
        }
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Aarch64 => "aarch64",
        })
    }
}

/// A processor and what of it code may use beyond what all of its kind have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    pub cpu: Cpu,
    /// By the names of the processor's makers: `avx2`, `lse`.
    pub features: BTreeSet<String>,
}

/// Why no code is made for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    #[error("this hub knows no feature `{feature}` of {cpu} processors: bring hub and edge to the same version")]
    Feature { cpu: Cpu, feature: String },
    #[error(
        "this build of skep compiles for {own} processors only: run a hub whose compiler has {asked}, or build one with `--features arm64`"
    )]
    Cpu { own: Cpu, asked: Cpu },
}

impl Target {
    /// This machine.
    #[must_use]
    pub fn host() -> Self {
        let cpu = Cpu::own();
        let found = cpu.features().iter().filter(|(name, _)| has(name));
        Self {
            cpu,
            features: found.map(|(name, _)| (*name).to_owned()).collect(),
        }
    }

    /// What a machine would need beside what `host` has, in words. `None`: code for this target runs there.
    #[must_use]
    pub fn missing_on(&self, host: &Self) -> Option<String> {
        if self.cpu != host.cpu {
            return Some(format!("it is for {} processors, this is {}", self.cpu, host.cpu));
        }
        let missing: Vec<&str> = self.features.difference(&host.features).map(String::as_str).collect();
        (!missing.is_empty()).then(|| {
            format!(
                "it needs a processor with {}, which this one has not",
                missing.join(", ")
            )
        })
    }

    /// Whether this build can compile for it.
    ///
    /// # Errors
    /// Another processor than this build's compiler knows, or a feature without a name here.
    pub fn check(&self) -> Result<(), BadTarget> {
        let known = |feature: &String| self.cpu.features().iter().any(|(name, _)| name == feature);
        if let Some(feature) = self.features.iter().find(|feature| !known(feature)) {
            return Err(BadTarget::Feature {
                cpu: self.cpu,
                feature: feature.clone(),
            });
        }
        let own = Cpu::own();
        if self.cpu != own && !(cfg!(feature = "arm64") && self.cpu == Cpu::Aarch64) {
            return Err(BadTarget::Cpu { own, asked: self.cpu });
        }
        Ok(())
    }

    /// The compiler makes code for it, and for nothing that it has not.
    ///
    /// # Errors
    /// The compiler knows no such processor.
    #[cfg(feature = "compiler")]
    pub(crate) fn set(&self, config: &mut wasmtime::Config) -> wasmtime::Result<()> {
        config.target(match self.cpu {
            Cpu::X86_64 => "x86_64-unknown-linux-gnu",
            Cpu::Aarch64 => "aarch64-unknown-linux-gnu",
        })?;
        for (name, flag) in self.cpu.features() {
            if self.features.contains(*name) {
                // SAFETY: who loads the code compares these features with its processor, here and in wasmtime, and refuses what it has not.
                unsafe { config.cranelift_flag_enable(flag) };
            }
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cpu)?;
        for feature in &self.features {
            write!(f, " +{feature}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(cpu: Cpu, features: &[&str]) -> Target {
        Target {
            cpu,
            features: features.iter().map(|f| (*f).to_owned()).collect(),
        }
    }

    #[test]
    fn code_runs_where_all_that_it_uses_is() {
        let host = target(Cpu::X86_64, &["sse3", "avx2"]);
        assert_eq!(target(Cpu::X86_64, &["sse3"]).missing_on(&host), None);
        assert_eq!(host.missing_on(&host), None);
        let more = target(Cpu::X86_64, &["sse3", "avx512f", "bmi2"])
            .missing_on(&host)
            .unwrap();
        assert_eq!(more, "it needs a processor with avx512f, bmi2, which this one has not");
        let other = target(Cpu::Aarch64, &[]).missing_on(&host).unwrap();
        assert_eq!(other, "it is for aarch64 processors, this is x86-64");
    }

    #[test]
    fn this_machine_can_be_compiled_for_and_what_is_not_known_cannot() {
        assert_eq!(Target::host().check(), Ok(()));
        assert_eq!(target(Cpu::own(), &[]).check(), Ok(()));
        let odd = target(Cpu::own(), &["avx1024"]).check().unwrap_err().to_string();
        assert!(odd.contains("knows no feature `avx1024`"), "{odd}");
    }

    #[test]
    fn a_target_reads_back_as_it_was_written() {
        let host = Target::host();
        let text = serde_json::to_string(&host).unwrap();
        assert_eq!(serde_json::from_str::<Target>(&text).unwrap(), host);
        assert!(serde_json::from_str::<Target>(r#"{"cpu":"z80","features":[]}"#).is_err());
        assert!(serde_json::from_str::<Target>(r#"{"cpu":"x86-64","features":[],"more":1}"#).is_err());
    }
}
