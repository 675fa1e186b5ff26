//! Figures that are known: what they are called, and what to look for in them.

/// What is known of a figure.
pub struct Known {
    pub group: &'static str,
    pub title: &'static str,
    /// What to look for.
    pub hint: &'static str,
    /// Tag of each curve, and what it is called beside the others.
    pub tags: &'static [(&'static str, &'static str)],
    pub log: bool,
    pub zero: bool,
}

pub const LEARNING: &str = "How it learns";
pub const HEALTH: &str = "How healthy it is";
const OPTIMIZER: &str = "What the optimizer does";
const SPEED: &str = "How fast it goes";
pub const OTHER: &str = "What else was written down";

/// Headings, in this order on the page.
pub const GROUPS: [&str; 5] = [LEARNING, HEALTH, OPTIMIZER, SPEED, OTHER];

#[rustfmt::skip]
pub const KNOWN: &[Known] = &[
    Known {
        group: LEARNING, title: "Loss", log: false, zero: false,
        hint: "Pretraining: targets move with the teacher, so a fall alone proves nothing and a rise after the first fall is usual. Fine-tuning: held out should fall, too; when it rises while training falls, examples are learned by heart.",
        tags: &[("train/loss", "training"), ("held_out/loss", "held out"), ("validation/loss", "held out")],
    },
    Known {
        group: LEARNING, title: "Explained variance", log: false, zero: true,
        hint: "Share of the targets’ variance that is predicted on held-out examples. 0: no better than a constant. Should pass 0 early and stay up.",
        tags: &[("held_out/explained", "held out")],
    },
    Known {
        group: LEARNING, title: "Spread of targets and predictions", log: false, zero: true,
        hint: "Near 0: collapse. Predictions spread less than targets, since they are means.",
        tags: &[
            ("train/target_var", "targets"), ("train/pred_var", "predictions"),
            ("held_out/target_var", "targets, held out"), ("held_out/pred_var", "predictions, held out"),
        ],
    },
    Known {
        group: LEARNING, title: "Probe", log: false, zero: true,
        hint: "Share of labelled examples that nearest neighbours by frozen features get right. At chance: nothing was learned that labels care for.",
        tags: &[("probe/accuracy", "accuracy"), ("probe/chance", "chance")],
    },
    Known {
        group: LEARNING, title: "Word error rate", log: false, zero: true,
        hint: "Wrong, missing and added words for each word that was said. 1 or more: no word is right.",
        tags: &[("validation/wer", "held out")],
    },
    Known {
        group: LEARNING, title: "Letter error rate", log: false, zero: true,
        hint: "Falls long before the word error rate does. 1: only blanks.",
        tags: &[("validation/cer", "held out")],
    },
    Known {
        group: LEARNING, title: "Accuracy", log: false, zero: false,
        hint: "Share of held-out examples whose most probable class is right.",
        tags: &[("validation/accuracy", "held out"), ("validation/top5", "among the first five")],
    },
    Known {
        group: HEALTH, title: "Size of the weights", log: false, zero: true,
        hint: "Norms of all weights. Growth without end wants more weight decay or a lower learning rate.",
        tags: &[("health/student_norm", "student"), ("health/teacher_norm", "teacher")],
    },
    Known {
        group: HEALTH, title: "Way from student to teacher", log: false, zero: true,
        hint: "Norm of the difference of their weights. Near 0 while the learning rate is not: the teacher follows at once, and targets say what is predicted anyway.",
        tags: &[("health/teacher_distance", "distance")],
    },
    Known {
        group: OPTIMIZER, title: "Norm of the gradient", log: true, zero: false,
        hint: "Before clipping. Peaks that come back down are usual; a steady climb wants a lower learning rate.",
        tags: &[("train/grad_norm", "norm")],
    },
    Known {
        group: OPTIMIZER, title: "Clipped steps", log: false, zero: true,
        hint: "Share of the steps whose gradient was longer than train.clip_norm. Always 1: the limit sets the pace, not the learning rate.",
        tags: &[("train/clipped", "share")],
    },
    Known {
        group: OPTIMIZER, title: "Learning rate", log: false, zero: true,
        hint: "As the schedule says.",
        tags: &[("train/lr", "rate")],
    },
    Known {
        group: OPTIMIZER, title: "Teacher’s decay", log: false, zero: false,
        hint: "Share of the teacher that a step keeps. Nearer to 1: a slower teacher.",
        tags: &[("train/ema_decay", "decay")],
    },
    Known {
        group: OPTIMIZER, title: "Hidden share", log: false, zero: true,
        hint: "Share of the tokens that the student does not see.",
        tags: &[("train/masked_share", "hidden")],
    },
    Known {
        group: SPEED, title: "Throughput", log: false, zero: true,
        hint: "Units of data a second. Dips: something else took the machine, or the data came late.",
        tags: &[("train/units_per_second", "a second")],
    },
    Known {
        group: SPEED, title: "Where a step’s time goes", log: false, zero: true,
        hint: "Seconds a step. On a GPU: until the work is handed over.",
        tags: &[
            ("train/phases/embed", "local encoder"), ("train/phases/teacher", "teacher"), ("train/phases/student", "student"),
            ("train/phases/forward", "forward"), ("train/phases/backward", "backward"), ("train/phases/optimizer", "optimizer"),
            ("train/phases/ema", "moving the teacher"), ("train/phases/data", "waiting for data"),
        ],
    },
    Known {
        group: SPEED, title: "Waiting for data", log: false, zero: true,
        hint: "Share of the time that the model had nothing to do. Above 0.05: raise train.workers, or move the data to a faster disk.",
        tags: &[("train/waiting", "share")],
    },
    Known {
        group: SPEED, title: "Passes over the data", log: false, zero: true,
        hint: "Epochs so far.",
        tags: &[("train/epoch", "epochs")],
    },
    Known {
        group: SPEED, title: "Unusable examples", log: false, zero: true,
        hint: "Met so far. The run gives up at train.max_bad_examples.",
        tags: &[("train/bad_examples", "so far")],
    },
];

/// Tags of one kind, which share a figure.
#[derive(Clone, Copy, Debug)]
pub struct Family<'a> {
    pub title: &'static str,
    pub hint: &'static str,
    /// Which of them a tag is.
    pub member: &'a str,
}

/// The kind of figures of health that there is one of for each place in the model.
pub fn family(tag: &str) -> Option<Family<'_>> {
    let name = tag.strip_prefix("health/")?;
    let kinds = [
        (
            "_rank",
            "Effective rank",
            "In how many directions they vary, from 1 on. Near 1: collapse, in that place alone or in all.",
        ),
        (
            "_var",
            "Spread",
            "Mean standard deviation of the channels. Near 0: every token says the same.",
        ),
    ];
    kinds.into_iter().find_map(|(end, kind, hint)| {
        let member = name.strip_suffix(end)?;
        let title = match (member.starts_with("block_"), kind) {
            (true, "Spread") => "Spread of the blocks",
            (true, _) => "Effective rank of the blocks",
            (false, "Spread") => "Spread by place",
            (false, _) => "Effective rank by place",
        };
        Some(Family { title, hint, member })
    })
}
