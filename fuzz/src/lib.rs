//! libFuzzer targets for the parsers of `data2vec_tests::parsers`.

/// Replaces libFuzzer's panic hook, which aborts even at panics that a parser catches and returns
/// as errors.
///
/// Uncaught panics still abort.
pub fn allow_caught_panics() {
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
}

/// Defines the fuzz target of the parser `$name`.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        std::thread_local! {
            static PARSER: std::cell::RefCell<data2vec_tests::parsers::Parser> = {
                $crate::allow_caught_panics();
                data2vec_tests::parsers::parser($name).into()
            };
        }

        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            PARSER.with_borrow_mut(|parse| parse(bytes));
        });
    };
}
