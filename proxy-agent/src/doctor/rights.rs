// SPDX-License-Identifier: Apache-2.0

//! The agent's privileges: capabilities, and bpf(2), which seccomp or the kernel may refuse.
//!
//! Lockdown is irrelevant: even `confidentiality` only keeps programs from reading kernel memory.

use std::fs;
use std::io;

use proxy_kernel::bpf;
use proxy_kernel::capabilities::{self, Capability};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;

const CAPABILITIES: &str = "capabilities";
const SYSCALL: &str = "bpf-syscall";

pub fn checks(subject: &Subject) -> Vec<Check> {
    let (whose, path) = match subject.pid() {
        Some(pid) => ("the agent", format!("/proc/{pid}/status")),
        // A later agent is likely to get the privileges of the doctor.
        None => ("this process", "/proc/self/status".to_owned()),
    };
    let effective = fs::read_to_string(&path).and_then(|status| capabilities::effective(&status));
    let capabilities = match effective {
        Ok(effective) => judge(
            whose,
            effective,
            subject.choice().map(|choice| choice.backend.as_str()),
        ),
        Err(error) => {
            let remedy = "run the doctor in the agent's pid namespace (kubectl exec into its pod)";
            check::unknown(CAPABILITIES, format!("read {path}"), &error, remedy)
        }
    };
    let seccomp = fs::read_to_string("/proc/self/status").is_ok_and(|status| is_filtered(&status));
    let wanted = subject.choice().is_none_or(|choice| choice.asked == "ebpf");
    vec![
        capabilities,
        syscall(bpf::load_filter().map(drop), seccomp, wanted),
    ]
}

fn judge(whose: &str, effective: u64, backend: Option<&str>) -> Check {
    let has = |capability: Capability| effective & capability.bit() != 0;
    let remedy = |name| {
        format!("run it as root, or add {name} to the container's securityContext.capabilities")
    };
    if !has(Capability::NetAdmin) {
        return Check::broken(
            CAPABILITIES,
            format!("{whose} lacks NET_ADMIN: it cannot change addresses, rules and programs"),
            remedy("NET_ADMIN"),
        );
    }
    let may_load = (has(Capability::Bpf) && has(Capability::Perfmon)) || has(Capability::SysAdmin);
    if !may_load && backend == Some("ebpf") {
        return Check::warning(
            CAPABILITIES,
            format!(
                "{whose} lacks BPF or PERFMON: a restarted agent cannot load the programs of backend \
                 ebpf"
            ),
            remedy("BPF and PERFMON (SYS_ADMIN before Linux 5.8)"),
        );
    }
    if !has(Capability::NetRaw) && backend == Some("iptables") {
        return Check::warning(
            CAPABILITIES,
            format!("{whose} lacks NET_RAW: iptables-legacy cannot read or change its tables"),
            remedy("NET_RAW"),
        );
    }
    let names: Vec<_> = Capability::ALL
        .into_iter()
        .filter(|capability| has(*capability))
        .map(Capability::name)
        .collect();
    let limit = if may_load {
        ""
    } else {
        "; backend ebpf needs BPF and PERFMON"
    };
    Check::ok(
        CAPABILITIES,
        format!("{whose} has {}{limit}", names.join(", ")),
    )
}

/// Whether a seccomp filter is active (`Seccomp:` of proc(5)).
fn is_filtered(status: &str) -> bool {
    let mut lines = status.lines();
    lines.any(|line| {
        line.strip_prefix("Seccomp:")
            .is_some_and(|mode| mode.trim() == "2")
    })
}

fn syscall(answer: io::Result<()>, seccomp: bool, wanted: bool) -> Check {
    let Err(error) = answer else {
        return Check::ok(SYSCALL, "bpf(2) can load programs");
    };
    let (cause, remedy) = match error.raw_os_error() {
        Some(libc::ENOSYS) if !seccomp => (
            "the kernel is built without CONFIG_BPF_SYSCALL",
            "use a kernel with it, or --backend=nftables",
        ),
        Some(libc::EPERM | libc::ENOSYS | libc::EACCES) if seccomp => (
            "a seccomp filter is active, or the capability BPF is missing",
            "give the container the capability BPF and seccompProfile.type: Unconfined, or a profile that \
             allows bpf(2)",
        ),
        Some(libc::EPERM | libc::EACCES) => (
            "the capability BPF (SYS_ADMIN before Linux 5.8; before 5.11 SYS_RESOURCE too) is missing, or a \
             security module denies it",
            "add the capability BPF to the container, and allow it in SELinux or AppArmor",
        ),
        _ => (
            "the kernel rejects a program of two instructions",
            "check the kernel's log",
        ),
    };
    let finding = format!("bpf(2) is refused ({error}): {cause}; backend ebpf cannot be used");
    if wanted {
        Check::broken(SYSCALL, finding, remedy)
    } else {
        Check::warning(SYSCALL, finding, remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn what_is_missing_depends_on_the_backend() {
        let net_admin = Capability::NetAdmin.bit();
        let bpf = Capability::Bpf.bit() | Capability::Perfmon.bit();
        for (effective, backend, verdict) in [
            (0, None, Verdict::Broken),
            (bpf, Some("ebpf"), Verdict::Broken),
            (net_admin, Some("ebpf"), Verdict::Warning),
            (net_admin | bpf, Some("ebpf"), Verdict::Ok),
            (
                net_admin | Capability::SysAdmin.bit(),
                Some("ebpf"),
                Verdict::Ok,
            ),
            (net_admin, Some("nftables"), Verdict::Ok),
            (net_admin, Some("iptables"), Verdict::Warning),
            (
                net_admin | Capability::NetRaw.bit(),
                Some("iptables"),
                Verdict::Ok,
            ),
        ] {
            let check = judge("it", effective, backend);
            assert_eq!(check.verdict, verdict, "{effective:x} {backend:?}");
        }
    }

    #[test]
    fn a_refusal_is_explained() {
        let refused = |errno, seccomp, wanted| {
            let check = syscall(Err(io::Error::from_raw_os_error(errno)), seccomp, wanted);
            (check.verdict, check.finding.contains("seccomp"))
        };
        assert_eq!(refused(libc::EPERM, true, true), (Verdict::Broken, true));
        assert_eq!(
            refused(libc::EPERM, false, false),
            (Verdict::Warning, false)
        );
        assert_eq!(refused(libc::ENOSYS, false, true), (Verdict::Broken, false));
        assert_eq!(syscall(Ok(()), true, true).verdict, Verdict::Ok);
        assert!(is_filtered("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!is_filtered("Seccomp:\t0\n"));
    }
}
