//! Titles, hints and groups of known metrics.

/// A chart of known metrics.
pub struct Known {
    /// Heading under which the chart is shown.
    pub group: &'static str,
    /// Title of the chart.
    pub title: &'static str,
    /// How to read the chart.
    pub hint: &'static str,
    /// Tag and name of each curve.
    pub tags: &'static [(&'static str, &'static str)],
    /// Whether the scale is logarithmic at first.
    pub log: bool,
    /// Whether the scale includes 0.
    pub zero: bool,
}

pub const LEARNING: &str = "Learning";
pub const HEALTH: &str = "Health";
const OPTIMIZER: &str = "Optimization";
const SPEED: &str = "Speed";
pub const OTHER: &str = "Other metrics";

/// Headings in the order of the page.
pub const GROUPS: [&str; 5] = [LEARNING, HEALTH, OPTIMIZER, SPEED, OTHER];

#[rustfmt::skip]
pub const KNOWN: &[Known] = &[
    Known {
        group: LEARNING, title: "Loss", log: false, zero: false,
        hint: "Pretraining: targets move with the teacher, so a falling loss alone proves nothing, and a rise after the first fall is usual. Fine-tuning: the held-out loss should fall too; if it rises while the training loss falls, the model overfits.",
        tags: &[("train/loss", "training"), ("held_out/loss", "held out"), ("validation/loss", "held out")],
    },
    Known {
        group: LEARNING, title: "Explained variance", log: false, zero: true,
        hint: "Shares of the targets’ variance on held-out examples. Content: predicted of what differs between tokens at the same position; 0 is what knowing positions alone reaches. Total: predicted of everything; 0 is what a constant reaches. Positions alone: what the mean target at each position explains; the nearer to 1, the less there is to learn.",
        tags: &[
            ("held_out/explained_content", "content"), ("held_out/explained_variance", "total"),
            ("held_out/explained_by_position", "positions alone"),
        ],
    },
    Known {
        group: LEARNING, title: "Standard deviation of targets and predictions", log: false, zero: true,
        hint: "Near 0: collapse. Predictions vary less than targets, because they are means.",
        tags: &[
            ("train/target_std", "targets"), ("train/pred_std", "predictions"),
            ("held_out/target_std", "targets, held out"), ("held_out/pred_std", "predictions, held out"),
        ],
    },
    Known {
        group: LEARNING, title: "Probe", log: false, zero: true,
        hint: "Accuracy of nearest neighbours on frozen features. At chance, the features do not separate the classes.",
        tags: &[("probe/accuracy", "accuracy"), ("probe/chance", "chance")],
    },
    Known {
        group: LEARNING, title: "Word error rate", log: false, zero: true,
        hint: "Substituted, deleted and inserted words per reference word. It can exceed 1.",
        tags: &[("validation/wer", "held out")],
    },
    Known {
        group: LEARNING, title: "Character error rate", log: false, zero: true,
        hint: "Falls long before the word error rate does. 1: only blanks are predicted.",
        tags: &[("validation/cer", "held out")],
    },
    Known {
        group: LEARNING, title: "Accuracy", log: false, zero: false,
        hint: "Share of held-out examples whose most probable class is right.",
        tags: &[("validation/accuracy", "top 1"), ("validation/top5", "top 5")],
    },
    Known {
        group: HEALTH, title: "Norm of the weights", log: false, zero: true,
        hint: "Norm of all weights. If it grows without limit, raise the weight decay or lower the learning rate.",
        tags: &[("health/student_norm", "student"), ("health/teacher_norm", "teacher")],
    },
    Known {
        group: HEALTH, title: "Distance between student and teacher", log: false, zero: true,
        hint: "Norm of the difference of their weights. If it is near 0 while the learning rate is not, the teacher follows the student too fast.",
        tags: &[("health/teacher_distance", "distance")],
    },
    Known {
        group: OPTIMIZER, title: "Gradient norm", log: true, zero: false,
        hint: "Before clipping. Short peaks are usual; if it rises steadily, lower the learning rate.",
        tags: &[("train/grad_norm", "norm")],
    },
    Known {
        group: OPTIMIZER, title: "Clipped steps", log: false, zero: true,
        hint: "Share of the steps whose gradient norm exceeded train.clip_norm. If it is always 1, the limit determines the step size rather than the learning rate.",
        tags: &[("train/clipped", "share")],
    },
    Known {
        group: OPTIMIZER, title: "Learning rate", log: false, zero: true,
        hint: "Learning rate of the schedule.",
        tags: &[("train/lr", "rate")],
    },
    Known {
        group: OPTIMIZER, title: "Teacher decay", log: false, zero: false,
        hint: "Share of the teacher’s weights that a step keeps. Nearer to 1: a slower teacher.",
        tags: &[("train/ema_decay", "decay")],
    },
    Known {
        group: OPTIMIZER, title: "Masked share", log: false, zero: true,
        hint: "Share of the tokens that are masked.",
        tags: &[("train/masked_share", "masked")],
    },
    Known {
        group: SPEED, title: "Throughput", log: false, zero: true,
        hint: "Units of data per second. Dips: the machine was busy with something else, or data arrived late.",
        tags: &[("train/units_per_second", "per second")],
    },
    Known {
        group: SPEED, title: "Time per step", log: false, zero: true,
        hint: "Seconds per step. On a GPU: until the work was queued.",
        tags: &[
            ("train/phases/embed", "local encoder"), ("train/phases/teacher", "teacher"), ("train/phases/student", "student"),
            ("train/phases/forward", "forward"), ("train/phases/backward", "backward"), ("train/phases/optimizer", "optimizer"),
            ("train/phases/ema", "teacher update"), ("train/phases/data", "waiting for data"),
        ],
    },
    Known {
        group: SPEED, title: "Waiting for data", log: false, zero: true,
        hint: "Share of the time. Above 0.05: raise train.workers, or move the data to a faster disk.",
        tags: &[("train/waiting", "share")],
    },
    Known {
        group: SPEED, title: "Epochs", log: false, zero: true,
        hint: "Passes over the data.",
        tags: &[("train/epoch", "epochs")],
    },
    Known {
        group: SPEED, title: "Unusable examples", log: false, zero: true,
        hint: "Number so far. The run fails above train.max_bad_examples.",
        tags: &[("train/bad_examples", "so far")],
    },
];

/// A chart of one metric of several layers.
#[derive(Clone, Copy, Debug)]
pub struct Family<'a> {
    /// Title of the chart.
    pub title: &'static str,
    /// How to read the chart.
    pub hint: &'static str,
    /// The layer of the tag.
    pub member: &'a str,
}

/// Returns the family of a tag: health metrics that exist for several layers share a chart.
pub fn family(tag: &str) -> Option<Family<'_>> {
    let name = tag.strip_prefix("health/")?;
    let (member, titles, hint) = if let Some(member) = name.strip_suffix("_rank") {
        (
            member,
            ["Effective rank of the blocks", "Effective rank by layer"],
            "Number of directions along which features vary. Near 1: collapse.",
        )
    } else {
        (
            name.strip_suffix("_std")?,
            ["Standard deviation of the blocks", "Standard deviation by layer"],
            "Mean standard deviation of the channels. Near 0: collapse.",
        )
    };
    let [of_blocks, by_layer] = titles;
    let title = if member.starts_with("block_") { of_blocks } else { by_layer };
    Some(Family { title, hint, member })
}
