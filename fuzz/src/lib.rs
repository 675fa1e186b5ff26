//! A target for each parser of `data2vec_tests::parsers`.

/// Takes back libFuzzer's panic hook, which ends the process at panics too that a parser catches and makes an error of.
/// It still ends at those that nobody catches.
pub fn let_panics_be_caught() {
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
}

/// The target of the parser with this name.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        std::thread_local! {
            static PARSER: std::cell::RefCell<data2vec_tests::parsers::Parser> = {
                $crate::let_panics_be_caught();
                data2vec_tests::parsers::parser($name).into()
            };
        }

        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            PARSER.with_borrow_mut(|parse| parse(bytes));
        });
    };
}
