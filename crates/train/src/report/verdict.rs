//! How a run is, at the top of its page: one line, and what it rests on.

use maud::{Markup, html};

use crate::doctor::{Diagnosis, Finding, Verdict};

/// The doctor's verdict; signs that are there now are open to the eye, those that have gone away folded.
pub fn verdict(diagnosis: &Diagnosis) -> Markup {
    let class = match diagnosis.verdict {
        Verdict::Healthy => "good",
        Verdict::Collapsed | Verdict::Diverged => "bad",
        Verdict::Suspicious | Verdict::TooEarly => "warn",
    };
    let (past, present): (Vec<_>, Vec<_>) =
        diagnosis.findings.iter().partition(|finding| finding.until.is_some());
    html! {
        section.verdict.(class) id="verdict" {
            h2 { "Health: " span.grade.(class) { (diagnosis.verdict) } }
            p.note { (lead(diagnosis.verdict)) }
            @if !present.is_empty() { ul { @for finding in present { (item(finding)) } } }
            @if !past.is_empty() || !diagnosis.actions.is_empty() {
                details {
                    summary { "What has been" }
                    ul {
                        @for finding in past { (item(finding)) }
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
            "No sign of collapse or divergence in losses, spreads, ranks and gradients."
        }
        Verdict::Suspicious => "Not lost, but look at what is below.",
        Verdict::Collapsed => "The model says the same everywhere: going on is of no use.",
        Verdict::Diverged => "The loss has left the region where something is learned.",
        Verdict::TooEarly => "Nothing is wrong so far, and little is known.",
    }
}

fn item(finding: &Finding) -> Markup {
    let (grade, class) = if finding.is_grave { ("grave", "bad") } else { ("hint", "warn") };
    html! {
        li {
            span.grade.(class) { (grade) } ", step " (finding.step)
            @if let Some(until) = finding.until { " to " (until) }
            ": " (finding.symptom.sign)
            span.evidence { (finding.symptom.evidence) "; what helps: " (finding.advice) }
        }
    }
}
