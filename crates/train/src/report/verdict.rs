//! Renders the doctor's verdict at the top of a report.

use maud::{Markup, html};

use crate::doctor::{CheckResult, Diagnosis, Verdict};

/// Renders the verdict and active issues, with resolved issues and actions folded.
pub fn verdict(diagnosis: &Diagnosis) -> Markup {
    let class = match diagnosis.verdict {
        Verdict::Healthy => "good",
        Verdict::Collapsed | Verdict::Diverged => "bad",
        Verdict::Suspicious | Verdict::TooEarly => "warn",
    };
    let (resolved, active): (Vec<_>, Vec<_>) =
        diagnosis.results.iter().partition(|result| result.until.is_some());
    html! {
        section.verdict.(class) id="verdict" {
            h2 { "Health: " span.grade.(class) { (diagnosis.verdict) } }
            p.note { (lead(diagnosis.verdict)) }
            @if !active.is_empty() { ul { @for result in active { (item(result)) } } }
            @if !resolved.is_empty() || !diagnosis.actions.is_empty() {
                details {
                    summary { "Resolved issues and actions" }
                    ul {
                        @for result in resolved { (item(result)) }
                        @for action in &diagnosis.actions {
                            li { "step " (action.step) ": " (action.action) span.evidence { (action.reason) } }
                        }
                    }
                }
            }
        }
    }
}

fn lead(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Healthy => {
            "No collapse or divergence in losses, standard deviations, ranks and gradients."
        }
        Verdict::Suspicious => "Not lost, but check the issues below.",
        Verdict::Collapsed => "Targets, predictions or features are nearly constant: stop the run.",
        Verdict::Diverged => {
            "The loss is not finite, or far above that of an untrained model: stop the run."
        }
        Verdict::TooEarly => "No issue so far, but a diagnosis needs more steps.",
    }
}

fn item(result: &CheckResult) -> Markup {
    let (grade, class) = if result.is_severe { ("severe", "bad") } else { ("hint", "warn") };
    html! {
        li {
            span.grade.(class) { (grade) } ", step " (result.step)
            @if let Some(until) = result.until { " to " (until) }
            ": " (result.issue.check)
            span.evidence { (result.issue.evidence) "; advice: " (result.advice) }
        }
    }
}
